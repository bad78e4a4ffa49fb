"""TPU topologies without TPUs: libtpu describes any slice and compiles for it."""

import contextlib
import importlib.metadata
import importlib.util
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence

import jax
from jax.experimental import topologies

from cpt_jax.plan.network import DevicePosition
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.hardware import CHIPS, Chip

# Environment variables that libtpu reads when it is loaded. The first skips the metadata server,
# which exists only on Cloud TPUs; the second lets several programs compile at the same time.
LIBTPU_ENVIRONMENT = {'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true'}
_TPUS = {name: chip for name, chip in CHIPS.items() if chip.topologies}
# Without these options, libtpu describes the two cores of a v4 chip as two devices.
_OPTIONS = {'v4': {'chip_config_name': 'megacore', 'chips_per_host_bounds': (2, 2, 1)}}


def find_topology_chip(name: str) -> Chip:
    """Returns the chip of a topology such as v5p:4x4x4.

    Raises:
      UserError: there is no such chip, or no such slice of it.
    """
    kind, _, size = name.partition(':')
    if kind not in _TPUS:
        examples = ', '.join(
            f'{chip.name}:{chip.topologies[0]} to {chip.name}:{chip.topologies[-1]}'
            for chip in _TPUS.values()
        )
        raise UserError(f'--topology {name!r}: choose one of {examples}')
    chip = _TPUS[kind]
    if not (
        size in chip.topologies or _is_single_chip(chip, size) or _consists_of_cubes(chip, size)
    ):
        known = ', '.join(f'{kind}:{size}' for size in chip.topologies)
        others = ', and others whose sides are multiples of 4' if chip.dimensions == 3 else ''
        raise UserError(f'--topology {name!r}: choose one of {known}{others}')
    return chip


def get_topology_devices(name: str, slices: int) -> Sequence[jax.Device]:
    """Returns the devices of `slices` slices of a topology.

    Programs can be compiled for these devices, but not run on them.

    Raises:
      UserError: see `find_topology_chip`; or libtpu is not installed or does not know the slice.
    """
    chip = find_topology_chip(name)
    if slices < 1:
        raise UserError(f'--slices={slices}: must be 1 or more')
    if slices > 1 and not chip.dcn_rate:
        raise UserError(f'--slices={slices}: slices of {chip.name} cannot be joined')
    if importlib.util.find_spec('libtpu') is None:
        raise UserError(
            f'libtpu is not installed, and is needed to compile for TPUs (no TPU is needed): pip '
            f'install {get_libtpu_requirement()!r}'
        )
    os.environ.update(LIBTPU_ENVIRONMENT)
    options = _OPTIONS.get(chip.name, {})
    if _is_single_chip(chip, name.partition(':')[2]):
        options = {'chips_per_host_bounds': (1, 1, 1)}
    try:
        with _hide_stderr():
            return topologies.get_topology_desc(
                topology_name=name, platform='tpu', num_slices=slices, **options
            ).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f'--topology {name!r}: libtpu {get_libtpu_version()} does not know this topology: '
            f'{error}'
        ) from error


def locate_devices(devices: Sequence[jax.Device]) -> list[DevicePosition]:
    """Returns the position of each device."""
    return [
        DevicePosition(getattr(device, 'slice_index', 0), tuple(device.coords))
        for device in devices
    ]


def get_libtpu_version() -> str:
    """Returns the version of the installed libtpu wheel."""
    return importlib.metadata.version('libtpu')


def get_libtpu_requirement() -> str:
    """Returns the pip requirement of libtpu for this release of JAX, the one of `jax[tpu]`."""
    wanted = (
        re.match(r'libtpu\s*\(?([=<>~!][^;)]*)', line)
        for line in importlib.metadata.requires('jax') or []
    )
    return next((f'libtpu{found[1].strip()}' for found in wanted if found), 'libtpu')


def _is_single_chip(chip: Chip, size: str) -> bool:
    return chip.dimensions == 2 and size == '1x1'


def _consists_of_cubes(chip: Chip, size: str) -> bool:
    """Returns whether a size is a valid large 3D slice, which consists of cubes of 4x4x4 chips."""
    if chip.dimensions != 3 or not re.fullmatch(r'\d+x\d+x\d+', size):
        return False
    sides = [int(side) for side in size.split('x')]
    largest = [int(side) for side in chip.topologies[-1].split('x')]
    return (
        all(side and side % 4 == 0 for side in sides)
        and sides == sorted(sides)
        and math.prod(sides) <= math.prod(largest)
    )


@contextlib.contextmanager
def _hide_stderr() -> Iterator[None]:
    """Hides what libtpu writes to stderr when it finds no TPU, unless loading it fails.

    Redirects the file descriptor, because libtpu does not write through sys.stderr.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as hidden:
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except BaseException as error:
            # The message of a JaxRuntimeError is complete without the hidden lines.
            if not isinstance(error, jax.errors.JaxRuntimeError):
                hidden.seek(0)
                os.write(stderr, hidden.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)

"""TPU slices without a TPU: libtpu describes any of them, and compiles for it."""

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

from cpt_jax.plan.network import Place
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.hardware import CHIPS, Chip

# Read by libtpu when it is loaded: there is no metadata server to ask, and two programs may compile
# at the same time.
ENVIRONMENT = {'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true'}
_TPUS = {name: chip for name, chip in CHIPS.items() if chip.topologies}
# v4 needs to be told what a chip and a host are, or libtpu describes cores: twice the devices.
_OPTIONS = {'v4': {'chip_config_name': 'megacore', 'chips_per_host_bounds': (2, 2, 1)}}


def check_topology(name: str) -> Chip:
    """The chip of a topology such as v5p:4x4x4.

    Raises:
      UserError: no such chip, or it comes in no such slice.
    """
    kind, _, size = name.partition(':')
    if kind not in _TPUS:
        examples = ', '.join(
            f'{chip.name}:{chip.topologies[0]} to {chip.name}:{chip.topologies[-1]}'
            for chip in _TPUS.values()
        )
        raise UserError(f'--topology {name!r}: choose one of {examples}')
    chip = _TPUS[kind]
    if not (size in chip.topologies or _is_single(chip, size) or _is_of_cubes(chip, size)):
        whole = ', and others whose sides are multiples of 4' if chip.dimensions == 3 else ''
        raise UserError(
            f'--topology {name!r}: {kind} comes as '
            f'{", ".join(f"{kind}:{known}" for known in chip.topologies)}{whole}'
        )
    return chip


def devices_of(name: str, slices: int) -> Sequence[jax.Device]:
    """The devices of one or several slices of a topology; they can be compiled for, and run
    nothing.

    Raises:
      UserError: see `check_topology`; or libtpu is not installed, or does not know the slice.
    """
    chip = check_topology(name)
    if slices < 1:
        raise UserError(f'--slices={slices}: must be 1 or more')
    if importlib.util.find_spec('libtpu') is None:
        raise UserError(
            f'libtpu is not installed; it compiles for TPUs without one: pip install '
            f'{libtpu_requirement()!r}'
        )
    os.environ.update(ENVIRONMENT)
    options = (
        {'chips_per_host_bounds': (1, 1, 1)}
        if _is_single(chip, name.partition(':')[2])
        else _OPTIONS.get(chip.name, {})
    )
    try:
        with _quiet():
            return topologies.get_topology_desc(
                topology_name=name, platform='tpu', num_slices=slices, **options
            ).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f'--topology {name!r}: libtpu {libtpu_version()} does not know it: {error}'
        ) from error


def places_of(devices: Sequence[jax.Device]) -> list[Place]:
    """Where each device is."""
    return [Place(getattr(device, 'slice_index', 0), tuple(device.coords)) for device in devices]


def libtpu_version() -> str:
    """Of the installed wheel."""
    return importlib.metadata.version('libtpu')


def libtpu_requirement() -> str:
    """What pip should install: the libtpu that this release of JAX was made with, and that
    `jax[tpu]` installs on a pod.
    """
    wanted = (
        re.match(r'libtpu\s*\(?([=<>~!][^;)]*)', line)
        for line in importlib.metadata.requires('jax') or []
    )
    return next((f'libtpu{found[1].strip()}' for found in wanted if found), 'libtpu')


def _is_single(chip: Chip, size: str) -> bool:
    return chip.dimensions == 2 and size == '1x1'


def _is_of_cubes(chip: Chip, size: str) -> bool:
    """Larger 3D slices are made of cubes of 4 x 4 x 4 chips."""
    if chip.dimensions != 3 or not re.fullmatch(r'\d+x\d+x\d+', size):
        return False
    sides, most = ([int(side) for side in text.split('x')] for text in (size, chip.topologies[-1]))
    return (
        all(side and side % 4 == 0 for side in sides)
        and sides == sorted(sides)
        and math.prod(sides) <= math.prod(most)
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps off the screen what libtpu writes to stderr when it finds no TPU; shows it where
    loading fails.
    """
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        except BaseException as error:
            if not isinstance(error, jax.errors.JaxRuntimeError):  # its message says it all
                caught.seek(0)
                os.write(screen, caught.read())
            raise
        finally:
            os.dup2(screen, 2)
            os.close(screen)

import importlib.metadata
import os
import subprocess
import sys

import pytest

from cpt_jax.plan import topology
from cpt_jax.plan.topology import (
    find_topology_chip,
    get_libtpu_requirement,
    get_topology_devices,
    locate_devices,
)
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.hardware import CHIPS

TPUS = {name: chip for name, chip in CHIPS.items() if chip.topologies}


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('', ['v4:2x2x1', 'v5e:2x2', 'v5p:2x2x1', 'v6e:16x16', 'tpu7x:']),
        ('v9:2x2', ['v5e:2x2']),
        ('h100:2x2', ['v5e:2x2']),
        ('v5e', ['v5e:2x2', 'v5e:16x16']),
        ('v5e:3x3', ['v5e:2x2', 'v5e:8x16']),
        ('v5e:32x32', ['v5e:16x16']),
        ('v5p:4x4', ['v5p:2x2x1', 'v5p:16x16x24', 'multiples of 4']),
        ('v5p:2x4x8', ['multiples of 4']),
        ('v5p:8x4x4', ['v5p:4x4x8']),
        ('v5p:16x16x28', ['v5p:16x16x24']),
        ('v5p:0x4x4', ['multiples of 4']),
    ],
)
def test_invalid_names_are_refused_with_valid_ones(name, words):
    with pytest.raises(UserError) as error:
        find_topology_chip(name)
    assert repr(name) in str(error.value) and all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    'name', ['v5e:1x1', 'v6e:8x8', 'v5p:4x4x12', 'v5p:12x12x12', 'tpu7x:4x4x4']
)
def test_valid_names_are_accepted(name):
    assert find_topology_chip(name) is CHIPS[name.partition(':')[0]]


SMALLEST = [(f'{name}:{chip.topologies[0]}', 1) for name, chip in TPUS.items()]


@pytest.mark.parametrize(('name', 'slices'), [*SMALLEST, ('v5e:1x1', 1), ('v5p:2x2x1', 3)])
def test_topology_has_all_devices_of_its_chips(libtpu, name, slices):
    chip = find_topology_chip(name)
    devices = get_topology_devices(name, slices)
    chips = 1
    for side in name.partition(':')[2].split('x'):
        chips *= int(side)
    assert len(devices) == chips * slices * chip.devices
    assert {device.device_kind for device in devices} == {chip.device_kind}
    places = locate_devices(devices)
    assert len(set(places)) == chips * slices and {place.slice for place in places} == set(
        range(slices)
    )


@pytest.mark.parametrize(
    'name', [f'{name}:{size}' for name, chip in TPUS.items() for size in chip.topologies[-1:]]
)
def test_libtpu_knows_the_largest_topologies(libtpu, name):
    assert len(get_topology_devices(name, 1)) >= 256


def test_without_libtpu_the_error_gives_the_install_command(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'libtpu==0\.0\.\d+\.\*'"):
        get_topology_devices('v5e:2x2', 1)


def test_slices_that_cannot_be_joined_are_refused():
    with pytest.raises(UserError, match='--slices=2: slices of v3 cannot be joined'):
        get_topology_devices('v3:2x2', 2)


def test_zero_slices_are_refused():
    with pytest.raises(UserError, match='--slices=0'):
        get_topology_devices('v5e:2x2', 0)


def test_installed_libtpu_is_the_one_that_jax_requires(libtpu):
    """A plan must compile the same program as a pod."""
    wanted = get_libtpu_requirement().removeprefix('libtpu==').removesuffix('*')
    assert importlib.metadata.version('libtpu').startswith(wanted)


def test_libtpu_prints_nothing_without_a_tpu(libtpu):
    """libtpu writes lines to the process's stderr when it is loaded."""
    code = (
        'from cpt_jax.plan.topology import get_topology_devices\n'
        "print(len(get_topology_devices('v5e:2x2', 1)))"
    )
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=environment, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '4\n', '')


def test_stderr_of_a_failed_load_is_shown(capfd):
    with pytest.raises(ZeroDivisionError), topology._hide_stderr():
        os.write(2, b'why it failed\n')
        _ = 1 / 0
    assert 'why it failed' in capfd.readouterr().err

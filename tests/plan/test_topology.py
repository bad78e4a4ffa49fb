import importlib.metadata
import os
import subprocess
import sys

import pytest

from cpt_jax.plan import topology
from cpt_jax.plan.topology import check_topology, devices_of, libtpu_requirement, places_of
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
def test_wrong_names_are_answered_with_valid_ones(name, words):
    with pytest.raises(UserError) as error:
        check_topology(name)
    assert repr(name) in str(error.value) and all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    'name', ['v5e:1x1', 'v6e:8x8', 'v5p:4x4x12', 'v5p:12x12x12', 'tpu7x:4x4x4']
)
def test_right_names(name):
    assert check_topology(name) is CHIPS[name.partition(':')[0]]


SMALLEST = [(f'{name}:{chip.topologies[0]}', 1) for name, chip in TPUS.items()]


@pytest.mark.parametrize(('name', 'slices'), [*SMALLEST, ('v5e:1x1', 1), ('v5p:2x2x1', 3)])
def test_devices_are_as_many_as_the_chips_have(libtpu, name, slices):
    chip = check_topology(name)
    devices = devices_of(name, slices)
    chips = 1
    for side in name.partition(':')[2].split('x'):
        chips *= int(side)
    assert len(devices) == chips * slices * chip.devices
    assert {device.device_kind for device in devices} == {chip.device_kind}
    places = places_of(devices)
    assert len(set(places)) == chips * slices and {place.slice for place in places} == set(
        range(slices)
    )


@pytest.mark.parametrize(
    'name', [f'{name}:{size}' for name, chip in TPUS.items() for size in chip.topologies[-1:]]
)
def test_the_largest_are_known_to_libtpu(libtpu, name):
    assert len(devices_of(name, 1)) >= 256


def test_without_libtpu_there_is_a_command(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'libtpu==0\.0\.\d+\.\*'"):
        devices_of('v5e:2x2', 1)


def test_no_slices_are_none():
    with pytest.raises(UserError, match='--slices=0'):
        devices_of('v5e:2x2', 0)


def test_the_installed_libtpu_is_the_one_that_jax_asks_for(libtpu):
    """So that what is planned is what a pod compiles."""
    wanted = libtpu_requirement().removeprefix('libtpu==').removesuffix('*')
    assert importlib.metadata.version('libtpu').startswith(wanted)


def test_libtpu_is_silent_where_there_is_no_tpu(libtpu):
    """It writes lines to the process's stderr as it is loaded."""
    code = "from cpt_jax.plan.topology import devices_of; print(len(devices_of('v5e:2x2', 1)))"
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=environment, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '4\n', '')


def test_a_failure_to_load_is_not_hidden(capfd):
    with pytest.raises(ZeroDivisionError), topology._quiet():
        os.write(2, b'why it failed\n')
        _ = 1 / 0
    assert 'why it failed' in capfd.readouterr().err

"""Compiles tiny programs for TPUs with libtpu, which needs no TPU; each takes about a second."""

import copy
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cpt_jax.plan.hlo.program import Module, parse_program
from cpt_jax.plan.topology import get_topology_devices
from cpt_jax.runs.config_file import load_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='session', params=['tpu', 'cpu'])
def devices(request):
    """Eight devices of a v5e topology, or eight simulated CPU devices."""
    if request.param == 'cpu':
        return jax.devices('cpu')
    request.getfixturevalue('libtpu')
    return get_topology_devices('v5e:2x4', 1)


@pytest.fixture(scope='session')
def tpus(libtpu):
    return get_topology_devices('v5e:2x4', 1)


def compile_on(
    devices,
    function: Callable,
    *arrays: tuple[tuple[int, ...], P],
    dtype=None,
    mesh=(8,),
    axes=('x',),
) -> jax.stages.Compiled:
    """Compiles a function of arrays with these shapes and shardings; bfloat16 on TPU, float32 on
    CPU.
    """
    dtype = dtype or (jnp.bfloat16 if devices[0].platform == 'tpu' else jnp.float32)
    grid = Mesh(np.array(devices[: int(np.prod(mesh))]).reshape(mesh), axes)
    types = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(grid, spec))
        for shape, spec in arrays
    ]
    with jax.set_mesh(grid):
        return jax.jit(function).lower(*types).compile()


@pytest.fixture(scope='session')
def compiled():
    return compile_on


@pytest.fixture(scope='session')
def program():
    """A function with the arguments of `compiled` that returns the parsed program."""

    def compile_and_parse(*args, **keywords) -> Module:
        return parse_program(compile_on(*args, **keywords).as_text())

    return compile_and_parse


@pytest.fixture(scope='session')
def tiny():
    """A function that returns a config whose step compiles in seconds, as plain values;
    `tiny(**{'model.layers': 3})` changes keys.
    """
    base = load_config(ROOT / 'configs/quickstart.py')

    def make(**changes) -> dict:
        config = copy.deepcopy(base)
        small = {
            'tokenizer.vocab_size': 500, 'model.width': 128, 'model.heads': 2, 'model.layers': 3,
            'model.init': 'gpt2', 'model.bias': False,
            'model.norm': 'rmsnorm', 'model.positions': 'rotary', 'train.batch_pairs': 64,
        }  # fmt: skip
        for key, value in (small | changes).items():
            section, name = key.split('.')
            assert name in config[section]
            config[section][name] = value
        return config

    return make

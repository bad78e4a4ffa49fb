import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cpt_jax.errors import UserError
from cpt_jax.mesh import AXES, BATCH, batch_sharding, batch_shards, make_mesh, on_mesh, shardings


@pytest.mark.parametrize(
    ('given', 'shape', 'parts'),
    [
        ({}, (8, 1, 1), 8),
        ({'fsdp': 2}, (4, 2, 1), 8),
        ({'data': 1, 'fsdp': 2, 'tensor': -1}, (1, 2, 4), 2),
        ({'data': 2, 'fsdp': -1, 'tensor': 2}, (2, 2, 2), 4),
        ({'data': 1, 'fsdp': 1, 'tensor': 8}, (1, 1, 8), 1),
        ({'data': -1, 'fsdp': 8}, (1, 8, 1), 8),
    ],
    ids=str,
)
def test_sizes(given, shape, parts):
    mesh = make_mesh(**given)
    assert mesh.axis_names == AXES and tuple(mesh.shape.values()) == shape
    assert set(mesh.axis_types) == {AxisType.Explicit}
    assert set(mesh.devices.flat) == set(jax.devices())
    assert batch_shards(mesh) == parts
    array = jax.device_put(np.zeros((16, 3)), batch_sharding(mesh))
    assert {shard.data.shape for shard in array.addressable_shards} == {(16 // parts, 3)}


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        ({'data': 3}, r'mesh.data=3 x mesh.fsdp=1 x mesh.tensor=1 .* the 8 devices'),
        ({'data': 4}, r'mesh.data=4 .* the 8 devices: set one size to -1'),
        ({'data': 16}, 'mesh.data=16 .* the 8 devices'),
        ({'fsdp': 3}, 'mesh.fsdp=3 .* the 8 devices'),
        ({'data': 0}, 'mesh.data=0 .*: sizes are 1 or more'),
        ({'tensor': -2}, 'mesh.tensor=-2.*: sizes are 1 or more'),
        ({'data': -1, 'fsdp': -1}, 'mesh.fsdp=-1 .* at most one is -1'),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused_by_key(given, expected):
    with pytest.raises(UserError, match=expected):
        make_mesh(**given)


def test_what_eval_shape_gives_finds_its_place():
    mesh = make_mesh(2, 2, 2)

    def make():
        return {
            'matrix': jax.numpy.zeros((4, 6), out_sharding=P('fsdp', 'tensor')),
            'batch': jax.numpy.zeros((8, 2), jax.numpy.int32, out_sharding=P(BATCH)),
            'scalar': jax.numpy.zeros(()),
        }

    with jax.set_mesh(mesh):
        abstract = on_mesh(jax.eval_shape(make), mesh)
        made = jax.jit(make, out_shardings=shardings(abstract))()
    parts = {'matrix': (2, 3), 'batch': (2, 2), 'scalar': ()}
    for name, leaf in abstract.items():
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (made[name].shape, made[name].dtype, made[name].sharding)
        assert leaf.sharding.mesh == mesh
        assert {shard.data.shape for shard in made[name].addressable_shards} == {parts[name]}
        assert len(made[name].addressable_shards) == 8

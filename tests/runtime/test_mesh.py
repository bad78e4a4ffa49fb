import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import (
    AXES,
    BATCH,
    assign_mesh_shardings,
    count_batch_shards,
    get_batch_sharding,
    make_mesh,
    shardings,
)


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
def test_mesh_has_the_given_sizes(given, shape, parts):
    mesh = make_mesh(**given)
    assert mesh.axis_names == AXES and tuple(mesh.shape.values()) == shape
    assert set(mesh.axis_types) == {AxisType.Explicit}
    assert set(mesh.devices.flat) == set(jax.devices())
    assert count_batch_shards(mesh) == parts
    array = jax.device_put(np.zeros((16, 3)), get_batch_sharding(mesh))
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
def test_error_names_the_key_of_a_wrong_size(given, expected):
    with pytest.raises(UserError, match=expected):
        make_mesh(**given)


def test_eval_shape_result_gets_the_shardings_of_the_arrays():
    mesh = make_mesh(2, 2, 2)

    def make():
        return {
            'matrix': jax.numpy.zeros((4, 6), out_sharding=P('fsdp', 'tensor')),
            'batch': jax.numpy.zeros((8, 2), jax.numpy.int32, out_sharding=P(BATCH)),
            'scalar': jax.numpy.zeros(()),
        }

    with jax.set_mesh(mesh):
        abstract = assign_mesh_shardings(jax.eval_shape(make), mesh)
        made = jax.jit(make, out_shardings=shardings(abstract))()
    parts = {'matrix': (2, 3), 'batch': (2, 2), 'scalar': ()}
    for name, leaf in abstract.items():
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (
            made[name].shape,
            made[name].dtype,
            made[name].sharding,
        )
        assert leaf.sharding.mesh == mesh
        assert {shard.data.shape for shard in made[name].addressable_shards} == {parts[name]}
        assert len(made[name].addressable_shards) == 8


@dataclasses.dataclass(frozen=True)
class FakeTpu:
    """The attributes of a TPU device that jax.experimental.mesh_utils reads."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    process_index: int = 0
    core_on_chip: int = 0
    platform: str = 'tpu'
    device_kind: str = 'TPU v5 lite'


def make_two_slices() -> list[FakeTpu]:
    """Returns two slices of 4 x 2 chips."""
    return [
        FakeTpu(8 * s + 4 * y + x, s, (x, y, 0))
        for s in range(2)
        for y in range(2)
        for x in range(4)
    ]


@pytest.mark.parametrize('given', [{}, {'data': 4, 'fsdp': 4}, {'data': 2, 'fsdp': 4, 'tensor': 2}])
def test_only_the_data_axis_is_split_over_slices(given, monkeypatch):
    monkeypatch.setattr(jax.sharding, 'Mesh', lambda devices, *_, **__: devices)
    devices = make_mesh(**given, devices=make_two_slices())
    slices = np.vectorize(lambda device: device.slice_index)(devices)
    half = len(devices) // 2
    assert (slices[:half] == 0).all() and (slices[half:] == 1).all()
    assert sorted(device.id for device in devices.flat) == list(range(16))


def test_data_axis_must_be_a_multiple_of_the_slices():
    with pytest.raises(UserError, match='the 2 slices do not divide mesh.data=1'):
        make_mesh(data=1, fsdp=-1, devices=make_two_slices())

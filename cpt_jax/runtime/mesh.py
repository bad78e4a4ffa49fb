"""The device mesh, its axis names, and the shardings on it."""

import math
from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cpt_jax.runtime.errors import UserError

T = TypeVar('T')
# A mesh, or an AbstractMesh, which has axis names and sizes but no devices.
AnyMesh = jax.sharding.Mesh | jax.sharding.AbstractMesh

# data: copies of the model. fsdp: data parallelism with parameters and optimizer state sharded over
# the axis. tensor: attention heads, feed-forward dimension and vocabulary are sharded over it.
AXES = ('data', 'fsdp', 'tensor')
# The axes over which the rows of a batch are sharded. The loss shards its pairs over all three
# axes, so that the devices of the tensor axis divide its work.
BATCH = ('data', 'fsdp')


def get_mesh(array: jax.Array) -> jax.sharding.Mesh:
    """Returns the mesh of an array's sharding. Raises TypeError if the sharding has no mesh."""
    mesh = getattr(array.sharding, 'mesh', None)
    if not isinstance(mesh, jax.sharding.Mesh):
        raise TypeError(f'expected an array that is sharded over a mesh, not {array.sharding}')
    return mesh


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
    """Returns a mesh with the axes (data, fsdp, tensor).

    Several slices of a TPU pod divide the data axis, so that only one gradient per step is sent
    between slices; the communication of each layer stays within a slice.

    Args:
      data: size of the data axis, or -1 for the number of devices that the other axes leave. At
        most one of the three sizes is -1.
      fsdp: size of the fsdp axis, or -1.
      tensor: size of the tensor axis, or -1.
      devices: devices of the mesh; default all devices of all processes.

    Raises:
      UserError: the product of the sizes is not the number of devices, or the slices do not divide
        the data axis.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {'data': data, 'fsdp': fsdp, 'tensor': tensor}
    given = math.prod(size for size in sizes.values() if size != -1)
    free = [name for name, size in sizes.items() if size == -1]
    text = ' x '.join(f'mesh.{name}={size}' for name, size in sizes.items())
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(
            f'{text}: sizes are 1 or more, and at most one is -1 (all remaining devices)'
        )
    if given > len(devices) or len(devices) % given:
        raise UserError(f'{text} does not divide the {len(devices)} devices')
    if not free and given != len(devices):
        raise UserError(
            f'{text} uses {given} of the {len(devices)} devices: set one size to -1 to use all'
        )
    shape = tuple(len(devices) // given if size == -1 else size for size in sizes.values())
    slices = _count_slices(devices)
    if shape[0] % slices:
        raise UserError(
            f'{text}: the {slices} slices do not divide mesh.data={shape[0]}: set it to a '
            f'multiple, or set it to -1 and lower mesh.fsdp'
        )
    return jax.sharding.Mesh(
        _arrange_devices(shape, slices, devices),
        AXES,
        axis_types=(AxisType.Explicit,) * len(AXES),
    )


def _count_slices(devices: Sequence[jax.Device]) -> int:
    """Returns the number of TPU slices; 1 for devices without slices."""
    indices = {
        device.slice_index
        for device in devices
        if device.platform == 'tpu' and hasattr(device, 'slice_index')
    }
    return len(indices) or 1


def _arrange_devices(
    shape: tuple[int, ...], slices: int, devices: Sequence[jax.Device]
) -> np.ndarray:
    """Returns the devices as an array in which neighbours are physically close."""
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    shape_within_slice = (shape[0] // slices, *shape[1:])
    shape_of_slices = (slices, 1, 1)
    return mesh_utils.create_hybrid_device_mesh(
        shape_within_slice, shape_of_slices, devices, allow_split_physical_axes=True
    )


def count_batch_shards(mesh: jax.sharding.Mesh) -> int:
    """Returns the number of shards of a batch's rows: the size of data times that of fsdp."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH]))


def get_batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns the sharding of a batch: axis 0 over data and fsdp, the other axes replicated."""
    return NamedSharding(mesh, P(BATCH))


def place_on_mesh(mesh: jax.sharding.Mesh, *arrays: np.ndarray) -> list[jax.Array]:
    """Returns the arrays on the mesh's devices, sharded as in `get_batch_sharding`.

    Every process must pass the whole arrays, not only its own rows.
    """
    sharding = get_batch_sharding(mesh)
    return [
        jax.make_array_from_callback(array.shape, sharding, array.__getitem__) for array in arrays
    ]


def assign_mesh_shardings(abstract: T, mesh: jax.sharding.Mesh) -> T:
    """Returns a tree from `jax.eval_shape` with every sharding on the devices of `mesh`.

    Leaves without a sharding become replicated.
    """

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = leaf.sharding.spec if leaf.sharding is not None else P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, abstract)


def shardings(abstract: T) -> T:
    """Returns the sharding of each leaf, as a tree."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)

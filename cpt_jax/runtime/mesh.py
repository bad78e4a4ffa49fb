"""Devices with named axes, and how a batch lies on them."""

from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cpt_jax.runtime.errors import UserError

T = TypeVar('T')
# With devices, or of axes' names and sizes alone.
AnyMesh = jax.sharding.Mesh | jax.sharding.AbstractMesh

# data: copies of the model. fsdp: as data, with parameters and optimizer state split over it.
# tensor: heads, hidden units and vocabulary.
AXES = ('data', 'fsdp', 'tensor')
# The rows of a batch are split over both; the loss splits its pairs over all three, so that tensor
# devices share its work.
BATCH = ('data', 'fsdp')


def mesh_of(array: jax.Array) -> jax.sharding.Mesh:
    """The mesh that an array is laid out on. Raises TypeError where it is on none."""
    mesh = getattr(array.sharding, 'mesh', None)
    if not isinstance(mesh, jax.sharding.Mesh):
        raise TypeError(f'an array on a mesh is expected, not one on {array.sharding}')
    return mesh


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
    """The mesh (data, fsdp, tensor) over all devices of all processes, or over those given; one
    size may be -1: all that is left.

    Several slices of a TPU pod divide the data axis: between them goes one gradient a step; what is
    sent for every layer stays within one.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or the slices do not divide the
        data axis.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {'data': data, 'fsdp': fsdp, 'tensor': tensor}
    given = int(np.prod([size for size in sizes.values() if size != -1]))
    free = [name for name, size in sizes.items() if size == -1]
    text = ' x '.join(f'mesh.{name}={size}' for name, size in sizes.items())
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f'{text}: sizes are 1 or more, and at most one is -1 (all that is left)')
    if len(devices) % given:
        raise UserError(f'{text} does not divide the {len(devices)} devices')
    if not free and given != len(devices):
        raise UserError(
            f'{text} takes {given} of the {len(devices)} devices: set one size to -1, to take '
            f'what is left'
        )
    shape = tuple(len(devices) // given if size == -1 else size for size in sizes.values())
    slices = (
        len(
            {
                device.slice_index
                for device in devices
                if device.platform == 'tpu' and hasattr(device, 'slice_index')
            }
        )
        or 1
    )
    if shape[0] % slices:
        raise UserError(
            f'{text}: the {slices} slices do not divide mesh.data={shape[0]}; set it to a '
            f'multiple, or to -1 and fsdp lower'
        )
    return jax.sharding.Mesh(
        _arrange(shape, slices, devices), AXES, axis_types=(AxisType.Explicit,) * len(AXES)
    )


def _arrange(shape: tuple[int, ...], slices: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices as an array in which neighbours are neighbours in the machine."""
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    within, between = (shape[0] // slices, *shape[1:]), (slices, 1, 1)
    return mesh_utils.create_hybrid_device_mesh(
        within, between, devices, allow_split_physical_axes=True
    )


def batch_shards(mesh: jax.sharding.Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH]))


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """First axis over data and fsdp, the rest whole."""
    return NamedSharding(mesh, P(BATCH))


def placed(mesh: jax.sharding.Mesh, *arrays: np.ndarray) -> list[jax.Array]:
    """On the devices as `batch_sharding` says; every process has all of each."""
    sharding = batch_sharding(mesh)
    return [
        jax.make_array_from_callback(array.shape, sharding, array.__getitem__) for array in arrays
    ]


def on_mesh(abstract: T, mesh: jax.sharding.Mesh) -> T:
    """What jax.eval_shape gives, as ShapeDtypeStructs on the mesh's devices; scalars without a
    sharding are on all of them.
    """

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = leaf.sharding.spec if leaf.sharding is not None else P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, abstract)


def shardings(abstract: T) -> T:
    """The sharding of each leaf."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)

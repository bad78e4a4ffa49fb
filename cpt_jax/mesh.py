"""Devices with named axes, and how a batch lies on them."""

from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cpt_jax.errors import UserError

T = TypeVar('T')

# data: copies of the model. fsdp: as data, with parameters and optimizer state split over it. tensor: heads, hidden units and vocabulary.
AXES = ('data', 'fsdp', 'tensor')
# The rows of a batch are split over both; the loss splits its pairs over all three, so that tensor devices share its work.
BATCH = ('data', 'fsdp')


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> jax.sharding.Mesh:
    """The mesh (data, fsdp, tensor) over all devices of all processes; one size may be -1: all that is left.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    sizes = {'data': data, 'fsdp': fsdp, 'tensor': tensor}
    devices = jax.device_count()
    given = int(np.prod([size for size in sizes.values() if size != -1]))
    free = [name for name, size in sizes.items() if size == -1]
    text = ' x '.join(f'mesh.{name}={size}' for name, size in sizes.items())
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f'{text}: sizes are 1 or more, and at most one is -1 (all that is left)')
    if devices % given:
        raise UserError(f'{text} does not divide the {devices} devices')
    if not free and given != devices:
        raise UserError(f'{text} takes {given} of the {devices} devices: set one size to -1, to take what is left')
    shape = tuple(devices // given if size == -1 else size for size in sizes.values())
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def batch_shards(mesh: jax.sharding.Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH]))


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """First axis over data and fsdp, the rest whole."""
    return NamedSharding(mesh, P(BATCH))


def on_mesh(abstract: T, mesh: jax.sharding.Mesh) -> T:
    """What jax.eval_shape gives, as ShapeDtypeStructs on the mesh's devices; scalars without a sharding are on all of them."""

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = leaf.sharding.spec if leaf.sharding is not None else P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, abstract)


def shardings(abstract: T) -> T:
    """The sharding of each leaf."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def join_processes(coordinator: str = '', processes: int = 1, process: int = 0) -> None:
    """Joins the other processes of a run.

    Args:
      coordinator: host:port of process 0. Without it, a cluster that JAX knows (a TPU pod, Slurm, Open MPI) tells all three; where there
        is none, this process runs alone.
      processes, process: how many there are, and which this one is.

    Raises:
      UserError: several processes and no coordinator.
    """
    if coordinator:
        jax.distributed.initialize(coordinator, processes, process)
        return
    if processes > 1 or process:
        raise UserError(f'--processes={processes} --process={process} need --coordinator, the host:port of process 0')
    try:
        jax.distributed.initialize()
    except ValueError as error:
        if 'coordinator_address' not in str(error):  # anything but: there is no cluster
            raise

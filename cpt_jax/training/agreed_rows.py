"""The number of rows of a batch on several processes, each of which knows only its own pairs.

All processes must start the same compiled program. Each finds how many rows its own part needs, and
the devices compute the maximum of all processes two steps ahead, when no process has to wait for
it. The batches are those of one process, and depend on nothing but the step.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cpt_jax.data.batch import Batch

# Batches whose maximum is being computed. With two, the devices compute it before the step that
# precedes the one that is in progress when the host reads it.
_BATCHES_AHEAD = 2

LocalBatch = Mapping[int, Batch[np.ndarray]]


def agree_on_rows(batches: Iterable[LocalBatch], mesh: jax.sharding.Mesh) -> Iterator[LocalBatch]:
    """Yields the batches, with as many rows on each process as the one that needs most.

    All processes must iterate over it together, in the same order as over other computations.

    Args:
      batches: the parts of this process, each with the number of rows that fits them.
      mesh: devices of the run.
    """
    waiting: deque[tuple[LocalBatch, jax.Array]] = deque()
    for batch in batches:
        waiting.append((batch, _start_maximum(_count_rows(batch), mesh)))
        if len(waiting) > _BATCHES_AHEAD:
            yield add_rows(*waiting.popleft())
    for pair in waiting:
        yield add_rows(*pair)


def _count_rows(batch: LocalBatch) -> int:
    return next(iter(batch.values())).tokens_JxRxS.shape[1]


def _start_maximum(rows: int, mesh: jax.sharding.Mesh) -> jax.Array:
    """Starts to compute the maximum of a number over all processes."""
    of_device = jax.make_array_from_callback(
        (mesh.size,),
        NamedSharding(mesh, P(mesh.axis_names)),
        lambda index: np.full(1, rows, np.int32),
    )
    maximum = _compute_maximum(of_device)
    maximum.copy_to_host_async()
    return maximum


@jax.jit
def _compute_maximum(rows_D: jax.Array) -> jax.Array:
    return jnp.max(rows_D)


def add_rows(batch: LocalBatch, maximum: jax.Array | np.integer) -> LocalBatch:
    """Returns the batch with empty rows at the end, so that it has `maximum` rows."""
    missing = int(maximum) - _count_rows(batch)
    if not missing:
        return batch

    def pad(array_JxRxS: np.ndarray) -> np.ndarray:
        return np.pad(array_JxRxS, ((0, 0), (0, missing), (0, 0)))

    return {
        part: local._replace(
            tokens_JxRxS=pad(local.tokens_JxRxS),
            segments_JxRxS=pad(local.segments_JxRxS),
            positions_JxRxS=pad(local.positions_JxRxS),
        )
        for part, local in batch.items()
    }

"""InfoNCE over the global batch: one gather, one matrix product, both directions."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cpt_jax.errors import UserError
from cpt_jax.mesh import AXES, BATCH

# The step keeps exp(log_scale) <= 100 (CLIP, arXiv 2103.00020 section 2.5; the cpt paper is silent).
MAX_LOG_SCALE = 4.605170185988092
_NEVER = -1e30

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class InfoNCE:
    """The `loss` section of a config.

    Attributes:
      form: 'dense' holds its device's share of the similarities, b x B, at once.
      initial_temperature: similarities are divided by it at the start; it is trained as log_scale = -log(temperature).
      symmetric: the mean of both directions (the cpt paper's pseudo-code); False: x finds y alone.
    """

    form: str = 'dense'
    initial_temperature: float = 0.07
    symmetric: bool = True

    def __post_init__(self):
        if self.form not in FORMS:
            raise UserError(f'loss.form={self.form!r}: choose one of {", ".join(FORMS)}')
        if not 0.01 <= self.initial_temperature <= 100:
            raise UserError(f'loss.initial_temperature={self.initial_temperature}: choose 0.01 (a scale of 100, the cap) to 100')

    def __call__(self, e_BxTxD: jax.Array, ids_BxT: jax.Array, log_scale: jax.Array) -> tuple[jax.Array, Metrics]:
        """Loss and metrics of a global batch.

        Args:
          e_BxTxD: float32 unit vectors: x, y, then hard negatives.
          ids_BxT: int32 content ids of the same texts; 0 where there is none. A pair whose x is 0 is left out of everything.
          log_scale: float32 scalar.

        Returns:
          The mean loss in nats over the pairs that are there, and scalars: `accuracy_xy` and `accuracy_yx` (is the partner nearer
          than every other candidate), `positive_cosine`, `negative_cosine`, `log_batch` (the loss of a model that knows nothing), `pairs`.
        """
        # Flat over the whole mesh, so that tensor devices compute rows of their own; where the batch does not divide so far, they repeat.
        axes = AXES if ids_BxT.shape[0] % jax.sharding.get_abstract_mesh().size == 0 else BATCH
        e_BxTxD, ids_BxT = (jax.reshard(array, P(axes)) for array in (e_BxTxD, ids_BxT))
        return FORMS[self.form](e_BxTxD, ids_BxT, jnp.exp(log_scale), self.symmetric, axes)


def dense(e_BxTxD: jax.Array, ids_BxT: jax.Array, scale: jax.Array, symmetric: bool, axes: tuple[str, ...]) -> tuple[jax.Array, Metrics]:
    """Each device multiplies its b anchors x with all columns: B y's, then all hard negatives.

    The rows of that matrix are one direction. Its first B columns are the other one, and are finished by a maximum and a sum over the
    devices: half the products of the usual two-matmul form, and one gather instead of two.
    """
    local = jax.shard_map(partial(_dense_local, axes=axes), in_specs=(P(axes), P(axes), P()), out_specs=P())
    sums = local(e_BxTxD, ids_BxT, scale)
    mean = {name: total / jnp.maximum(sums['pairs'], 1) for name, total in sums.items()}
    loss = (mean['loss_xy'] + mean['loss_yx']) / 2 if symmetric else mean['loss_xy']
    return loss, {
        'accuracy_xy': mean['accuracy_xy'],
        'accuracy_yx': mean['accuracy_yx'],
        'positive_cosine': mean['positive_cosine'],
        'negative_cosine': sums['negative_cosine'] / jnp.maximum(sums['negatives'], 1),
        'log_batch': jnp.log(jnp.maximum(sums['pairs'], 1)),
        'pairs': sums['pairs'],
    }


def _dense_local(e_bxTxD: jax.Array, ids_bxT: jax.Array, scale: jax.Array, axes: tuple[str, ...]) -> Metrics:
    b = e_bxTxD.shape[0]
    me = jax.lax.axis_index(axes)
    all_e_BxTxD, all_ids_BxT = (jax.lax.all_gather(array, axes, tiled=True) for array in (e_bxTxD, ids_bxT))
    columns_CxD = jnp.concatenate([all_e_BxTxD[:, 1], all_e_BxTxD[:, 2:].reshape(-1, e_bxTxD.shape[-1])])
    allowed_bxC, negative_bxC = _candidates(ids_bxT, all_ids_BxT, me * b)
    there_b = (ids_bxT[:, 0] > 0).astype(jnp.float32)

    # HIGHEST: a TPU would otherwise round float32 inputs to bfloat16, to 2**-9 of their size, and the scale multiplies that by up to 100.
    cosine_bxC = jnp.einsum(
        'bd,cd->bc', e_bxTxD[:, 0], columns_CxD, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    logits_bxC = jnp.where(allowed_bxC, scale * cosine_bxC, _NEVER)
    own_b = _own(logits_bxC, me * b)
    batch = all_ids_BxT.shape[0]
    others_bxC = jnp.where(negative_bxC, jax.lax.stop_gradient(logits_bxC), _NEVER)
    column_lse_b, other_best_b = _columns(logits_bxC[:, :batch], others_bxC[:, :batch], me * b, axes)

    sums = {
        'loss_xy': there_b * (jax.nn.logsumexp(logits_bxC, axis=1) - own_b),
        'loss_yx': there_b * (column_lse_b - own_b),
        'accuracy_xy': there_b * (own_b > others_bxC.max(1)),  # a tie is no hit: vectors that are all alike find nothing
        'accuracy_yx': there_b * (own_b > other_best_b),
        'positive_cosine': there_b * _own(cosine_bxC, me * b),
        'pairs': there_b,
        'negative_cosine': jnp.where(negative_bxC, cosine_bxC, 0.0),
        'negatives': negative_bxC.astype(jnp.float32),
    }
    return jax.lax.psum({name: value.sum() for name, value in sums.items()}, axes)


def _own(logits_bxC: jax.Array, first: jax.Array) -> jax.Array:
    """The logit of each row's own partner, which stands at column `first` + row."""
    b = logits_bxC.shape[0]
    return jnp.take_along_axis(logits_bxC, (first + jnp.arange(b))[:, None], axis=1)[:, 0]


def _columns(logits_bxB: jax.Array, others_bxB: jax.Array, first: jax.Array, axes: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """Of this device's b columns, over the rows of all devices: the log-sum-exp, and the maximum of the negatives."""
    b = logits_bxB.shape[0]
    best_2xB = jax.lax.pmax(jnp.stack([jax.lax.stop_gradient(logits_bxB).max(0), others_bxB.max(0)]), axes)
    sums_b = jax.lax.psum_scatter(jnp.exp(logits_bxB - best_2xB[0]).sum(0), axes, tiled=True)
    best_2xb = jax.lax.dynamic_slice_in_dim(best_2xB, first, b, axis=1)
    return jnp.log(jnp.maximum(sums_b, 1e-30)) + best_2xb[0], best_2xb[1]


def _candidates(ids_bxT: jax.Array, all_ids_BxT: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """bool[b, C]: which columns take part in a row's softmax, and which of those are negatives.

    Left out: texts that are not there, and texts that are no negatives: the same x or the same y as the anchor's own pair has, and a
    hard negative that equals the anchor's y. Duplicates are certain in batches of tens of thousands. The anchor's partner always stays.
    """
    b, batch = ids_bxT.shape[0], all_ids_BxT.shape[0]
    x_bx1, y_bx1 = ids_bxT[:, :1], ids_bxT[:, 1:2]
    x_1xB, y_1xB, hard_1xN = all_ids_BxT[None, :, 0], all_ids_BxT[None, :, 1], all_ids_BxT[None, :, 2:].reshape(1, -1)
    partner_bxB = jnp.arange(batch)[None] == (first + jnp.arange(b))[:, None]
    in_batch_bxB = (x_1xB > 0) & (x_bx1 > 0) & (x_1xB != x_bx1) & (y_1xB != y_bx1)
    hard_bxN = (hard_1xN > 0) & (x_bx1 > 0) & (hard_1xN != y_bx1)
    negative_bxC = jnp.concatenate([in_batch_bxB & ~partner_bxB, hard_bxN], axis=1)
    return negative_bxC | jnp.pad(partner_bxB, ((0, 0), (0, hard_bxN.shape[1]))), negative_bxC


FORMS: dict[str, Callable[..., tuple[jax.Array, Metrics]]] = {'dense': dense}

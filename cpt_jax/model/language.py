"""An encoder as a language model: the loss of each token given the tokens before it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder, with_matmul_precision
from cpt_jax.model.parameter import gather_weight
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import BATCH

# Maximum tokens per device whose logits are held at a time: 400 MB with GPT-2's vocabulary.
_MAX_LOGIT_TOKENS = 2048


class TokenPredictions(NamedTuple):
    """Losses and hits of a model that predicts each token from the tokens before it in its text.

    Attributes:
      losses_RxS: float32, negative log probability of the token in nats; 0 at the first token of
        each text and at padding.
      right_RxS: bool, whether no other id has a higher probability; False at the first token of
        each text and at padding.
    """

    losses_RxS: jax.Array
    right_RxS: jax.Array


def check_language_model(config: EncoderConfig) -> None:
    """Raises UserError if a model cannot predict next tokens: it is not causal, or its output head
    is not the token table.
    """
    if not config.causal:
        raise UserError(
            'next-token losses need a causal model: in this one, every token attends to the whole '
            'text'
        )
    if not config.tied:
        raise UserError(
            'next-token losses need tie_word_embeddings=true: this model has a separate output '
            'head, which is not loaded'
        )


@with_matmul_precision
def predict_tokens(
    encoder: Encoder,
    tokens_RxS: jax.Array,
    segments_RxS: jax.Array,
    positions_RxS: jax.Array,
    keys_RxS: jax.Array | None = None,
    ids: int = 0,
) -> TokenPredictions:
    """Predicts each token from the tokens before it.

    The logits of the next token are the products of the state, after the final norm, with the token
    table, which is also the output head.

    Args:
      tokens_RxS, segments_RxS, positions_RxS, keys_RxS: packed rows as in `Encoder.compute_states`.
      ids: number of ids that can be predicted: ids 0 to `ids` - 1; 0: the whole vocabulary.

    Raises:
      UserError: see `check_language_model`.
    """
    check_language_model(encoder.config)
    h_RxSxD = encoder.compute_token_states(tokens_RxS, segments_RxS, positions_RxS, keys_RxS)
    next_RxS = _shift_columns(tokens_RxS, -1)
    ids = ids or encoder.config.vocab_size
    losses_RxS, right_RxS = _compute_losses_and_hits(encoder, h_RxSxD, next_RxS, ids)
    predicted_RxS = make_prediction_mask(segments_RxS, positions_RxS)
    return TokenPredictions(
        jnp.where(predicted_RxS, _shift_columns(losses_RxS, 1), 0.0),
        predicted_RxS & _shift_columns(right_RxS, 1),
    )


def _shift_columns(values_RxS: jax.Array, columns: int) -> jax.Array:
    """Returns the values moved to the right by a number of columns; zeros take the empty places.

    `jnp.roll` cuts off one column. In JAX 0.12, the sharding of a cut with a single element is not
    that of the rows any more, so it fails for a batch of one row.
    """
    zero = jnp.zeros((), values_RxS.dtype)
    return jax.lax.pad(values_RxS, zero, [(0, 0, 0), (columns, -columns, 0)])


def make_prediction_mask(segments_RxS: jax.Array, positions_RxS: jax.Array) -> jax.Array:
    """Returns bool[R, S]: whether a token is predicted.

    All tokens are, except padding and the first token of each text.
    """
    return (segments_RxS > 0) & (positions_RxS > 0)


def _compute_losses_and_hits(
    encoder: Encoder, h_RxSxD: jax.Array, targets_RxS: jax.Array, ids: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the negative log probability of the target at each position, float32[R, S], and
    whether the target is the most probable id, bool[R, S].

    The full [R, S, V] logits are never materialized: they are computed for some columns at a time,
    and recomputed in the backward pass. The table is split over the tensor axis. It is float32
    outside of the loop, so that its gradient accumulates in float32.

    Args:
      h_RxSxD: states after the final norm.
      targets_RxS: int32 ids to predict.
      ids: number of ids that can be predicted, from 0 on.
    """
    table_VxD = gather_weight(encoder.token_embedding, jnp.dtype('float32'), 'tensor', None)
    ids_V = jnp.arange(len(table_VxD), out_sharding=P('tensor'))

    @jax.checkpoint
    def compute_chunk(columns: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        h_RxWxD, targets_RxW = columns
        shard = P(BATCH, None, 'tensor')
        table = table_VxD.astype(h_RxWxD.dtype)
        logits_RxWxV = jnp.einsum(
            'rwd,vd->rwv', h_RxWxD, table, preferred_element_type=jnp.float32, out_sharding=shard
        )
        # This also excludes the padding rows of the table.
        logits_RxWxV = jnp.where(ids_V < ids, logits_RxWxV, -jnp.inf)
        target_RxW = jnp.sum(jnp.where(targets_RxW[..., None] == ids_V, logits_RxWxV, 0.0), axis=-1)
        losses_RxW = jax.nn.logsumexp(logits_RxWxV, axis=-1) - target_RxW
        right_RxW = target_RxW >= jnp.max(logits_RxWxV, axis=-1)
        return losses_RxW, right_RxW

    rows, length = targets_RxS.shape
    size = _choose_chunk_length(rows // _count_row_shards(), length)
    columns = [
        jnp.moveaxis(x.reshape(rows, length // size, size, *x.shape[2:]), 1, 0)
        for x in (h_RxSxD, targets_RxS)
    ]
    losses, right = jax.lax.map(compute_chunk, tuple(columns))
    losses, right = (jnp.moveaxis(x, 0, 1).reshape(rows, length) for x in (losses, right))
    return losses, right


def _choose_chunk_length(rows: int, length: int) -> int:
    """Returns the number of columns whose logits are computed at a time.

    It is the largest divisor of the row length for which `rows` rows of a device have at most
    _MAX_LOGIT_TOKENS tokens; at least 1.
    """
    largest = max(1, min(length, _MAX_LOGIT_TOKENS // rows))
    return next(size for size in range(largest, 0, -1) if length % size == 0)


def _count_row_shards() -> int:
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[BATCH[0]] * mesh.shape[BATCH[1]]

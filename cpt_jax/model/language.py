"""An encoder as a language model: how well it foretells each token from those before it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder, with_matmul_precision
from cpt_jax.model.parameter import gathered
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import BATCH

# Scores of all ids are held for so many tokens of a device at once, or a few more: 400 MB with
# GPT-2's vocabulary.
_TOKENS = 2048


class Foretold(NamedTuple):
    """What a model makes of each token, from those before it in its text.

    Attributes:
      losses_RxS: float32, minus the log probability of the token, in nats; 0 at the first token of
        each text, and at padding.
      right_RxS: bool, whether no id is more probable than the token; False where there is no loss.
    """

    losses_RxS: jax.Array
    right_RxS: jax.Array


def check_language(config: EncoderConfig) -> None:
    """Raises UserError where a model sees the tokens behind one too, or has an output head of its
    own.
    """
    if not config.causal:
        raise UserError('losses of next tokens need a causal model: this one sees the whole text')
    if not config.tied:
        raise UserError(
            'losses of next tokens need tie_word_embeddings: the output head of this model is a '
            'matrix of its own, not loaded'
        )


@with_matmul_precision
def foretell(
    encoder: Encoder,
    tokens_RxS: jax.Array,
    segments_RxS: jax.Array,
    positions_RxS: jax.Array,
    keys_RxS: jax.Array | None = None,
    ids: int = 0,
) -> Foretold:
    """Compares the state before each token with all that could have come.

    The scores of the next token are the products of the state, after the final norm, with the token
    table: of a model whose output head is that table.

    Args:
      tokens_RxS, segments_RxS, positions_RxS, keys_RxS: packed rows as for `Encoder.states`.
      ids: so many, the first ones, could have come; 0: all of the vocabulary.

    Raises:
      UserError: see `check_language`.
    """
    check_language(encoder.config)
    h_RxSxD = encoder.all_states(tokens_RxS, segments_RxS, positions_RxS, keys_RxS)
    next_RxS = jnp.roll(tokens_RxS, -1, axis=1)
    losses_RxS, right_RxS = _compared(encoder, h_RxSxD, next_RxS, ids or encoder.config.vocab_size)
    foretold_RxS = foretold(segments_RxS, positions_RxS)
    return Foretold(
        jnp.where(foretold_RxS, jnp.roll(losses_RxS, 1, axis=1), 0.0),
        foretold_RxS & jnp.roll(right_RxS, 1, axis=1),
    )


def foretold(segments_RxS: jax.Array, positions_RxS: jax.Array) -> jax.Array:
    """bool of the same shape: is there a token, and another one before it in its text?"""
    return (segments_RxS > 0) & (positions_RxS > 0)


def _compared(
    encoder: Encoder, h_RxSxD: jax.Array, targets_RxS: jax.Array, ids: int
) -> tuple[jax.Array, jax.Array]:
    """float32[R, S] and bool[R, S]: minus the log probability of a target at each place, and
    whether it is the most probable.

    Scores are made some columns at a time, and again in the backward pass. The table is cut along
    the tensor axis, and float32 outside of the loop, so that the parts of its gradient are added up
    in that.
    """
    table_VxD = gathered(encoder.token_embedding, jnp.dtype('float32'), 'tensor', None)
    ids_V = jnp.arange(len(table_VxD), out_sharding=P('tensor'))

    @jax.checkpoint
    def some(columns: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        h_RxCxD, targets_RxC = columns
        shard = P(BATCH, None, 'tensor')
        table = table_VxD.astype(h_RxCxD.dtype)
        scores_RxCxV = jnp.einsum(
            'rcd,vd->rcv', h_RxCxD, table, preferred_element_type=jnp.float32, out_sharding=shard
        )
        # Nor are rows that pad the table ids.
        scores_RxCxV = jnp.where(ids_V < ids, scores_RxCxV, -jnp.inf)
        target_RxC = jnp.sum(jnp.where(targets_RxC[..., None] == ids_V, scores_RxCxV, 0.0), axis=-1)
        return jax.nn.logsumexp(scores_RxCxV, axis=-1) - target_RxC, target_RxC >= jnp.max(
            scores_RxCxV, axis=-1
        )

    rows, length = targets_RxS.shape
    size = _columns(rows // _parts(), length)
    columns = [
        jnp.moveaxis(x.reshape(rows, length // size, size, *x.shape[2:]), 1, 0)
        for x in (h_RxSxD, targets_RxS)
    ]
    losses, right = jax.lax.map(some, tuple(columns))
    losses, right = (jnp.moveaxis(x, 0, 1).reshape(rows, length) for x in (losses, right))
    return losses, right


def _columns(rows: int, length: int) -> int:
    """Of the divisors of a row's length the largest with which a device's rows are no more than
    _TOKENS tokens, or else 1.
    """
    return next(
        size for size in range(max(1, min(length, _TOKENS // rows)), 0, -1) if length % size == 0
    )


def _parts() -> int:
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[BATCH[0]] * mesh.shape[BATCH[1]]

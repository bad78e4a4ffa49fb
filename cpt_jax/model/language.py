"""An encoder as a language model: how well it foretells each token from those before it."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cpt_jax.errors import UserError
from cpt_jax.mesh import BATCH
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.parameter import gathered

# Scores of all ids are held for so many columns of the rows at once, or the most below that divide a row.
_COLUMNS = 128


def token_losses(encoder: Encoder, tokens_RxS: jax.Array, segments_RxS: jax.Array, positions_RxS: jax.Array) -> jax.Array:
    """Minus the log probability of each token after those before it in its text, in nats.

    The scores of the next token are the products of the state, after the final norm, with the token table: of a model whose output head is
    that table.

    Args:
      tokens_RxS, segments_RxS, positions_RxS: int32, packed rows as for `Encoder.states`.

    Returns:
      float32[R, S]: 0 at the first token of each text, which has none before it, and at padding.

    Raises:
      UserError: the model sees the tokens behind one too, or has an output head of its own.
    """
    shape = encoder.shape
    if not shape.causal:
        raise UserError('losses of next tokens need a causal model: this one sees the whole text')
    if not shape.tied:
        raise UserError('losses of next tokens need tie_word_embeddings: the output head of this model is a matrix of its own, not loaded')
    h_RxSxD = encoder.all_states(tokens_RxS, segments_RxS, positions_RxS)
    next_RxS = jnp.roll(tokens_RxS, -1, axis=1)
    losses_RxS = _losses(encoder, h_RxSxD, next_RxS)
    same_text_RxS = (segments_RxS > 0) & (positions_RxS > 0)
    return jnp.where(same_text_RxS, jnp.roll(losses_RxS, 1, axis=1), 0.0)


def _losses(encoder: Encoder, h_RxSxD: jax.Array, targets_RxS: jax.Array) -> jax.Array:
    """float32[R, S]: minus the log probability of a target at each place, some columns at a time."""
    table_VxD = gathered(encoder.token_embedding, h_RxSxD.dtype, None, None)
    ids_V = jnp.arange(len(table_VxD))

    @jax.checkpoint
    def some(columns: tuple[jax.Array, jax.Array]) -> jax.Array:
        h_RxCxD, targets_RxC = columns
        scores_RxCxV = jnp.einsum('rcd,vd->rcv', h_RxCxD, table_VxD, preferred_element_type=jnp.float32, out_sharding=P(BATCH))
        scores_RxCxV = jnp.where(ids_V < encoder.shape.vocab_size, scores_RxCxV, -jnp.inf)  # rows that pad the table are no ids
        chosen_RxCxV = targets_RxC[..., None] == ids_V
        return jax.nn.logsumexp(scores_RxCxV, axis=-1) - jnp.sum(jnp.where(chosen_RxCxV, scores_RxCxV, 0.0), axis=-1)

    rows, length = targets_RxS.shape
    size = next(size for size in range(min(length, _COLUMNS), 0, -1) if length % size == 0)
    columns = [jnp.moveaxis(x.reshape(rows, length // size, size, *x.shape[2:]), 1, 0) for x in (h_RxSxD, targets_RxS)]
    return jnp.moveaxis(jax.lax.map(some, tuple(columns)), 0, 1).reshape(rows, length)

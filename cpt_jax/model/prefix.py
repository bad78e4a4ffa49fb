"""What texts have in common at their beginning, computed once: keys and values of every layer for
the ids that all of them begin with.

In a causal model a token's keys and values depend on what stands before it alone, so they are the
same in all texts that begin alike: the cache that decoders generate text with, here for one
beginning and many ends. PromptEOL's demonstrations are such a beginning.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from cpt_jax.model.attention import Attend, attention_within
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.dropout import Noise
from cpt_jax.model.encoder import Encoder, with_matmul_precision
from cpt_jax.model.pooling import pick
from cpt_jax.runtime.mesh import BATCH, batch_shards, placed

# Keys and values, [.., R, P, G, K] each: a row for each part of the mesh that holds rows of its
# own, all alike, so that nothing is sent.
KeysValues = tuple[jax.Array, jax.Array]


class Prefix(NamedTuple):
    """A beginning as later tokens see it.

    Attributes:
      inner: of all layers but the last, [N - 1, R, P, G, K]; None where there is one layer.
      last: of that, [R, P, G, K].
      length: int32[], how many of the P columns count.
    """

    inner: KeysValues | None
    last: KeysValues
    length: jax.Array


def can_share(config: EncoderConfig) -> bool:
    """Whether vectors can be computed behind a prefix: nothing in it depends on what follows, and
    no state of it is part of a vector.
    """
    return config.causal and config.pooling == 'eos'


def common_beginning(texts: Sequence[np.ndarray]) -> int:
    """How many ids all texts begin with; each keeps one at least."""
    columns = max(0, min(map(len, texts)) - 1)
    same_C = (np.stack([text[:columns] for text in texts]) == texts[0][:columns]).all(axis=0)
    return int(np.argmin(same_C)) if not same_C.all() else columns


def padded_length(length: int, config: EncoderConfig) -> int:
    """Columns for a prefix: multiples of 64, and from 512 on four lengths an octave, so that many
    prefixes share a program.
    """
    step = max(64, 1 << (length - 1).bit_length() >> 3)
    return min(-(-length // step) * step, config.max_length)


@with_matmul_precision
def remember(encoder: Encoder, tokens_RxP: jax.Array, length: jax.Array) -> Prefix:
    """Computes a prefix.

    Args:
      tokens_RxP: int32 ids, the same in each row: one for each part of the mesh that holds rows of
        its own. Padding is at the end.
      length: int32[], ids before it.
    """
    positions_RxP = _positions(encoder.config, tokens_RxP, 0)
    # What stands behind the prefix is padding, which it does not see.
    segments_RxP = jnp.ones_like(tokens_RxP)

    def attend_in(local: bool | jax.Array, _: None) -> tuple[Attend, list[jax.Array]]:
        kept: list[jax.Array] = []

        def attend(q_RxPxHxK: jax.Array, k_RxPxGxK: jax.Array, v_RxPxGxK: jax.Array) -> jax.Array:
            kept.extend((k_RxPxGxK, v_RxPxGxK))
            return attention_within(segments_RxP, True, 'masked', encoder.config.reach, local)(
                q_RxPxHxK, k_RxPxGxK, v_RxPxGxK
            )

        return attend, kept

    x_RxPxD, inner = encoder.run_layers(
        encoder.embed(tokens_RxP, positions_RxP), positions_RxP, None, attend_in
    )
    number = encoder.config.layers - 1
    local = encoder.config.local(number)
    attend, kept = attend_in(local, None)
    encoder.last.mix(x_RxPxD, attend, positions_RxP, local, Noise(None, number))
    keys, values = kept
    return Prefix(inner, (keys, values), length)


_remember = jax.jit(remember)


class Prefixes:
    """Computes prefixes for an encoder; the last one is kept, as batch after batch begins alike."""

    def __init__(self, encoder: Encoder, mesh: jax.sharding.Mesh):
        self._encoder, self._mesh = encoder, mesh
        self._last: tuple[list[int], Prefix] | None = None

    def __call__(self, tokens: np.ndarray) -> Prefix:
        """`tokens`: one id or more."""
        if self._last is None or self._last[0] != tokens.tolist():
            tokens_RxP = np.zeros(
                (batch_shards(self._mesh), padded_length(len(tokens), self._encoder.config)),
                np.int32,
            )
            tokens_RxP[:, : len(tokens)] = tokens
            with jax.set_mesh(self._mesh):
                prefix = _remember(
                    self._encoder, *placed(self._mesh, tokens_RxP), np.int32(len(tokens))
                )
            self._last = tokens.tolist(), prefix
        return self._last[1]


@with_matmul_precision
def states_behind(
    encoder: Encoder, prefix: Prefix, tokens_RxS: jax.Array, eos_Rx1: jax.Array
) -> jax.Array:
    """float32[R, 1, D]: the states that `Encoder.states` gives for texts that are the prefix and
    then a row's tokens.

    Args:
      tokens_RxS: int32 ids, one text a row from its first column on.
      eos_Rx1: int32, where each ends, as row * S + column counted within the rows of its device.
    """
    config, (_, length) = encoder.config, tokens_RxS.shape
    positions_RxS = _positions(config, tokens_RxS, prefix.length)
    columns_RxS, ends_Rx1 = jnp.zeros_like(tokens_RxS) + jnp.arange(length), eos_Rx1 % length

    def attend_in(local: bool | jax.Array, seen: KeysValues) -> tuple[Attend, tuple]:
        return partial(_attend_behind, seen, prefix.length, _reach(config, local), columns_RxS), ()

    x_RxSxD, _ = encoder.run_layers(
        encoder.embed(tokens_RxS, positions_RxS), positions_RxS, None, attend_in, prefix.inner
    )
    number = config.layers - 1
    local = config.local(number)

    def attend_at_ends(
        q_RxSxHxK: jax.Array, k_RxSxGxK: jax.Array, v_RxSxGxK: jax.Array
    ) -> jax.Array:
        q_Rx1xHxK = pick(q_RxSxHxK, eos_Rx1)
        return _attend_behind(
            prefix.last,
            prefix.length,
            _reach(config, local),
            ends_Rx1,
            q_Rx1xHxK,
            k_RxSxGxK,
            v_RxSxGxK,
        )

    noise = Noise(None, number)
    a_Rx1xHxK = encoder.last.mix(x_RxSxD, attend_at_ends, positions_RxS, local, noise)
    return encoder.final_projection(
        encoder.last.residual_and_feed_forward(pick(x_RxSxD, eos_Rx1), a_Rx1xHxK, noise)
    ).astype(jnp.float32)


def _positions(config: EncoderConfig, tokens_RxS: jax.Array, first: int | jax.Array) -> jax.Array:
    """Of each column; those of padding stay within the table of positions."""
    return jnp.minimum(
        jnp.zeros_like(tokens_RxS) + jnp.arange(tokens_RxS.shape[1]) + first, config.max_length - 1
    )


def _reach(config: EncoderConfig, local: bool | jax.Array) -> jax.Array | None:
    """How many columns back a layer sees; None: all, in every layer."""
    return (
        jnp.where(local, config.reach, 2 * config.max_length) if any(config.local_layers) else None
    )


def _attend_behind(
    seen: KeysValues,
    length: jax.Array,
    reach: jax.Array | None,
    columns_RxQ: jax.Array,
    q_RxQxHxK: jax.Array,
    k_RxSxGxK: jax.Array,
    v_RxSxGxK: jax.Array,
) -> jax.Array:
    """Causal softmax attention, in float32, of some columns of each row to the prefix and to their
    own row: [R, Q, H, K].

    Rows are short, so all scores are held. Those with the prefix are one product for all rows of a
    device.

    Args:
      seen: keys and values of the prefix in this layer.
      length: int32[], how many of them count.
      reach: int32[], how many columns back a query sees; None: all.
      columns_RxQ: those of the queries, from 0 behind the prefix.
    """
    heads = P(BATCH, None, 'tensor', None)

    @partial(jax.shard_map, in_specs=(P(), P(), P(BATCH), *[heads] * 5), out_specs=heads)
    def local(
        length, reach, columns_RxQ, q_RxQxHxK, k_RxSxGxK, v_RxSxGxK, k_1xPxGxK, v_1xPxGxK
    ) -> jax.Array:
        (rows, queries, heads, width), groups = q_RxQxHxK.shape, k_RxSxGxK.shape[2]
        product = partial(jnp.einsum, preferred_element_type=jnp.float32)
        # Scores stay as the products leave them, [G, N, P] with N queries of all rows, and [R, G,
        # M, S] with M of each row: a transposed copy costs more than the products (on a CPU 1.7
        # times the time of a model of width 64).
        q_GxNxK = (
            (q_RxQxHxK * width**-0.5)
            .reshape(rows * queries, groups, -1, width)
            .swapaxes(0, 1)
            .reshape(groups, -1, width)
        )

        def by_row(x_GxNx):
            return x_GxNx.reshape(groups, rows, -1, x_GxNx.shape[-1]).swapaxes(0, 1)

        def by_group(x_RxGxMx):
            return x_RxGxMx.swapaxes(0, 1).reshape(groups, -1, x_RxGxMx.shape[-1])

        before_GxNxP = product('gnk,pgk->gnp', q_GxNxK, k_1xPxGxK[0])
        own_RxGxMxS = product('rgmk,rsgk->rgms', by_row(q_GxNxK), k_RxSxGxK)

        at_RxMx1 = jnp.repeat(columns_RxQ, heads // groups, axis=1)[..., None]
        before_P, own_S = jnp.arange(k_1xPxGxK.shape[1]), jnp.arange(k_RxSxGxK.shape[1])
        sees_before_NxP, sees_own_RxMxS = (before_P < length)[None], own_S <= at_RxMx1
        if reach is not None:
            sees_before_NxP &= at_RxMx1.reshape(-1, 1) + length - before_P <= reach
            sees_own_RxMxS &= at_RxMx1 - own_S <= reach
        before_GxNxP = jnp.where(sees_before_NxP, before_GxNxP, -1e30)
        own_RxGxMxS = jnp.where(sees_own_RxMxS[:, None], own_RxGxMxS, -1e30)

        most_RxGxMx1 = jnp.maximum(
            by_row(before_GxNxP.max(-1, keepdims=True)), own_RxGxMxS.max(-1, keepdims=True)
        )
        before_GxNxP = jnp.exp(before_GxNxP - by_group(most_RxGxMx1))
        own_RxGxMxS = jnp.exp(own_RxGxMxS - most_RxGxMx1)
        mixed_RxGxMxK = by_row(
            product('gnp,pgk->gnk', before_GxNxP.astype(v_1xPxGxK.dtype), v_1xPxGxK[0])
        )
        mixed_RxGxMxK += product('rgms,rsgk->rgmk', own_RxGxMxS.astype(v_RxSxGxK.dtype), v_RxSxGxK)
        total_RxGxMx1 = by_row(before_GxNxP.sum(-1, keepdims=True)) + own_RxGxMxS.sum(
            -1, keepdims=True
        )
        mixed_RxMxGxK = (mixed_RxGxMxK / total_RxGxMx1).astype(v_RxSxGxK.dtype).swapaxes(1, 2)
        return (
            mixed_RxMxGxK.reshape(rows, queries, heads // groups, groups, width)
            .swapaxes(2, 3)
            .reshape(q_RxQxHxK.shape)
        )

    return local(length, reach, columns_RxQ, q_RxQxHxK, k_RxSxGxK, v_RxSxGxK, *seen)

"""Common prefixes of texts: their keys and values in every layer are computed once.

In a causal model, the keys and values of a token depend only on the tokens before it, so they are
equal in all texts with the same prefix. This is the key-value cache of decoders, with one prefix
and many continuations. PromptEOL's demonstrations are such a prefix.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from cpt_jax.model.attention import Attend, make_attend
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.dropout import Noise
from cpt_jax.model.encoder import Encoder, with_matmul_precision
from cpt_jax.model.pooling import pick
from cpt_jax.runtime.mesh import BATCH, count_batch_shards, place_on_mesh

# Keys and values of a prefix, [.., R, P, G, K] each. All R rows are equal: each shard of the batch
# axes holds one, so that no device has to receive it.
KeysValues = tuple[jax.Array, jax.Array]


class Prefix(NamedTuple):
    """Keys and values of a prefix, to which later tokens attend.

    Attributes:
      inner: keys and values of all layers except the last, [N - 1, R, P, G, K] each; None for a
        model of one layer.
      last: keys and values of the last layer, [R, P, G, K] each.
      length: int32[], number of ids of the prefix; the remaining columns of the P are padding.
    """

    inner: KeysValues | None
    last: KeysValues
    length: jax.Array


def can_share_prefix(config: EncoderConfig) -> bool:
    """Returns whether texts can be encoded after a shared prefix.

    This needs a causal model, whose prefix does not depend on what follows, and a pooling that
    does not use the states of the prefix. Models whose positions depend on the ids of the prefix
    are encoded as a whole.
    """
    return config.causal and config.pooling == 'eos' and config.padding_id < 0


def count_common_ids(texts: Sequence[np.ndarray]) -> int:
    """Returns the length of the longest common prefix that leaves each text at least one id."""
    columns = max(0, min(map(len, texts)) - 1)
    same_C = (np.stack([text[:columns] for text in texts]) == texts[0][:columns]).all(axis=0)
    return int(np.argmin(same_C)) if not same_C.all() else columns


def choose_padded_length(length: int, config: EncoderConfig) -> int:
    """Returns the number of columns for a prefix of `length` ids.

    It is a multiple of 64, and above 512 one of four lengths per octave, so that prefixes of many
    lengths use the same compiled program.
    """
    step = max(64, 1 << (length - 1).bit_length() >> 3)
    return min(-(-length // step) * step, config.max_length)


@with_matmul_precision
def compute_prefix(encoder: Encoder, tokens_RxP: jax.Array, length: jax.Array) -> Prefix:
    """Computes the keys and values of a prefix.

    Args:
      encoder: a causal model.
      tokens_RxP: int32 ids, padded at the end; one row, all equal, for each shard of the batch
        axes.
      length: int32[], number of ids before the padding.
    """
    positions_RxP = _make_positions(encoder.config, tokens_RxP, 0)
    # Padding can have the same segment: it comes after the prefix, which does not attend to it.
    segments_RxP = jnp.ones_like(tokens_RxP)

    def make_layer_attend(is_local: bool | jax.Array, _: None) -> tuple[Attend, list[jax.Array]]:
        saved: list[jax.Array] = []

        def attend(q_RxPxHxK: jax.Array, k_RxPxGxK: jax.Array, v_RxPxGxK: jax.Array) -> jax.Array:
            saved.extend((k_RxPxGxK, v_RxPxGxK))
            return make_attend(segments_RxP, True, 'masked', encoder.config.reach, is_local)(
                q_RxPxHxK, k_RxPxGxK, v_RxPxGxK
            )

        return attend, saved

    x_RxPxD, inner = encoder.run_layers(
        encoder.embed(tokens_RxP, positions_RxP), positions_RxP, None, make_layer_attend
    )
    number = encoder.config.layers - 1
    is_local = encoder.config.is_local(number)
    attend, saved = make_layer_attend(is_local, None)
    encoder.last.mix_values(x_RxPxD, attend, positions_RxP, is_local, Noise(None, number))
    keys, values = saved
    return Prefix(inner, (keys, values), length)


_compute_prefix_jitted = jax.jit(compute_prefix)


class PrefixCache:
    """Computes prefixes for an encoder, and caches the last one.

    Consecutive batches usually have the same prefix.
    """

    def __init__(self, encoder: Encoder, mesh: jax.sharding.Mesh):
        self._encoder = encoder
        self._mesh = mesh
        self._last: tuple[list[int], Prefix] | None = None

    def __call__(self, tokens: np.ndarray) -> Prefix:
        """Returns the prefix of one or more ids, from the cache if it is the last one."""
        if self._last is None or self._last[0] != tokens.tolist():
            columns = choose_padded_length(len(tokens), self._encoder.config)
            tokens_RxP = np.zeros((count_batch_shards(self._mesh), columns), np.int32)
            tokens_RxP[:, : len(tokens)] = tokens
            with jax.set_mesh(self._mesh):
                prefix = _compute_prefix_jitted(
                    self._encoder, *place_on_mesh(self._mesh, tokens_RxP), np.int32(len(tokens))
                )
            self._last = tokens.tolist(), prefix
        return self._last[1]


@with_matmul_precision
def encode_after_prefix(
    encoder: Encoder, prefix: Prefix, tokens_RxS: jax.Array, eos_Rx1: jax.Array
) -> jax.Array:
    """Encodes texts that consist of the prefix and the tokens of a row.

    Args:
      encoder: the model that computed the prefix.
      prefix: the common prefix.
      tokens_RxS: int32 ids after the prefix, one text per row, from the first column on.
      eos_Rx1: int32, position of the end of each text, as row * S + column within the rows of its
        device.

    Returns:
      float32[R, 1, D], the same states as `Encoder.compute_states` of the whole texts.
    """
    config = encoder.config
    length = tokens_RxS.shape[1]
    positions_RxS = _make_positions(config, tokens_RxS, prefix.length)
    columns_RxS = jnp.zeros_like(tokens_RxS) + jnp.arange(length)
    ends_Rx1 = eos_Rx1 % length

    def make_layer_attend(
        is_local: bool | jax.Array, prefix_kv: KeysValues
    ) -> tuple[Attend, tuple]:
        reach = _choose_reach(config, is_local)
        return partial(_attend_after_prefix, prefix_kv, prefix.length, reach, columns_RxS), ()

    x_RxSxD, _ = encoder.run_layers(
        encoder.embed(tokens_RxS, positions_RxS),
        positions_RxS,
        None,
        make_layer_attend,
        prefix.inner,
    )
    number = config.layers - 1
    is_local = config.is_local(number)

    def attend_at_ends(
        q_RxSxHxK: jax.Array, k_RxSxGxK: jax.Array, v_RxSxGxK: jax.Array
    ) -> jax.Array:
        q_Rx1xHxK = pick(q_RxSxHxK, eos_Rx1)
        return _attend_after_prefix(
            prefix.last,
            prefix.length,
            _choose_reach(config, is_local),
            ends_Rx1,
            q_Rx1xHxK,
            k_RxSxGxK,
            v_RxSxGxK,
        )

    noise = Noise(None, number)
    a_Rx1xHxK = encoder.last.mix_values(x_RxSxD, attend_at_ends, positions_RxS, is_local, noise)
    x_Rx1xD = encoder.last.add_residual_and_feed_forward(pick(x_RxSxD, eos_Rx1), a_Rx1xHxK, noise)
    return encoder.apply_final_projection(x_Rx1xD).astype(jnp.float32)


def _make_positions(
    config: EncoderConfig, tokens_RxS: jax.Array, first: int | jax.Array
) -> jax.Array:
    """Returns the position of each column, from `first` on.

    Positions of padding are clipped to the position table.
    """
    return jnp.minimum(
        jnp.zeros_like(tokens_RxS) + jnp.arange(tokens_RxS.shape[1]) + first, config.max_length - 1
    )


def _choose_reach(config: EncoderConfig, is_local: bool | jax.Array) -> jax.Array | None:
    """Returns how many columns back a layer attends; None if no layer of the model is local."""
    return (
        jnp.where(is_local, config.reach, 2 * config.max_length)
        if any(config.local_layers)
        else None
    )


def _attend_after_prefix(
    prefix_kv: KeysValues,
    length: jax.Array,
    reach: jax.Array | None,
    columns_RxQ: jax.Array,
    q_RxQxHxK: jax.Array,
    k_RxSxGxK: jax.Array,
    v_RxSxGxK: jax.Array,
) -> jax.Array:
    """Computes causal float32 softmax attention to the prefix and to the row itself.

    Rows are short, so all logits are held at once. The logits with the prefix are one product for
    all rows of a device.

    Args:
      prefix_kv: keys and values of the prefix in this layer.
      length: int32[], number of ids of the prefix.
      reach: int32[], how many columns back a query attends; None: no limit.
      columns_RxQ: int32, columns of the queries, counted from 0 after the prefix.
      q_RxQxHxK: queries at these columns.
      k_RxSxGxK, v_RxSxGxK: keys and values of the rows.

    Returns:
      float[R, Q, H, K].
    """
    heads = P(BATCH, None, 'tensor', None)

    @partial(jax.shard_map, in_specs=(P(), P(), P(BATCH), *[heads] * 5), out_specs=heads)
    def attend_on_shard(
        length, reach, columns_RxQ, q_RxQxHxK, k_RxSxGxK, v_RxSxGxK, k_1xPxGxK, v_1xPxGxK
    ) -> jax.Array:
        rows, queries, heads, width = q_RxQxHxK.shape
        groups = k_RxSxGxK.shape[2]
        product = partial(jnp.einsum, preferred_element_type=jnp.float32)
        # Logits keep the layouts of the products: [G, U, P], where U is (row, query, head of the
        # group), and [R, G, M, S], where M is (query, head of the group). Transposing them costs
        # more than the products (on a CPU, a model of dimension 64 took 1.7 times as long).
        q_GxUxK = (
            (q_RxQxHxK * width**-0.5)
            .reshape(rows * queries, groups, -1, width)
            .swapaxes(0, 1)
            .reshape(groups, -1, width)
        )

        def split_rows(x_GxUx):
            return x_GxUx.reshape(groups, rows, -1, x_GxUx.shape[-1]).swapaxes(0, 1)

        def flatten_rows(x_RxGxMx):
            return x_RxGxMx.swapaxes(0, 1).reshape(groups, -1, x_RxGxMx.shape[-1])

        before_GxUxP = product('guk,pgk->gup', q_GxUxK, k_1xPxGxK[0])
        own_RxGxMxS = product('rgmk,rsgk->rgms', split_rows(q_GxUxK), k_RxSxGxK)

        column_RxMx1 = jnp.repeat(columns_RxQ, heads // groups, axis=1)[..., None]
        before_P = jnp.arange(k_1xPxGxK.shape[1])
        own_S = jnp.arange(k_RxSxGxK.shape[1])
        before_mask_UxP = (before_P < length)[None]
        own_mask_RxMxS = own_S <= column_RxMx1
        if reach is not None:
            before_mask_UxP &= column_RxMx1.reshape(-1, 1) + length - before_P <= reach
            own_mask_RxMxS &= column_RxMx1 - own_S <= reach
        before_GxUxP = jnp.where(before_mask_UxP, before_GxUxP, -1e30)
        own_RxGxMxS = jnp.where(own_mask_RxMxS[:, None], own_RxGxMxS, -1e30)

        best_RxGxMx1 = jnp.maximum(
            split_rows(before_GxUxP.max(-1, keepdims=True)), own_RxGxMxS.max(-1, keepdims=True)
        )
        before_GxUxP = jnp.exp(before_GxUxP - flatten_rows(best_RxGxMx1))
        own_RxGxMxS = jnp.exp(own_RxGxMxS - best_RxGxMx1)
        mixed_RxGxMxK = split_rows(
            product('gup,pgk->guk', before_GxUxP.astype(v_1xPxGxK.dtype), v_1xPxGxK[0])
        )
        mixed_RxGxMxK += product('rgms,rsgk->rgmk', own_RxGxMxS.astype(v_RxSxGxK.dtype), v_RxSxGxK)
        total_RxGxMx1 = split_rows(before_GxUxP.sum(-1, keepdims=True)) + own_RxGxMxS.sum(
            -1, keepdims=True
        )
        mixed_RxMxGxK = (mixed_RxGxMxK / total_RxGxMx1).astype(v_RxSxGxK.dtype).swapaxes(1, 2)
        return (
            mixed_RxMxGxK.reshape(rows, queries, heads // groups, groups, width)
            .swapaxes(2, 3)
            .reshape(q_RxQxHxK.shape)
        )

    return attend_on_shard(length, reach, columns_RxQ, q_RxQxHxK, k_RxSxGxK, v_RxSxGxK, *prefix_kv)

"""One layer of the encoder and its parts: norms, attention and the feed-forward half."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from cpt_jax.model.adapters.lora import adapted_product, has_adapter
from cpt_jax.model.attention import Attend, at_ends, merge_heads, split_heads
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.dropout import Noise, dropout
from cpt_jax.model.initializers import constant, normal, residual_std, value_and_out
from cpt_jax.model.parameter import gathered, parameter, spread
from cpt_jax.model.pooling import pick
from cpt_jax.model.rotary import rotate
from cpt_jax.runtime.mesh import BATCH


class Norm(nnx.Module):
    """LayerNorm, or RMSNorm without a mean and a bias, in float32."""

    def __init__(
        self,
        kind: str,
        config: EncoderConfig,
        width: int,
        rngs: nnx.Rngs,
        *layer_axis: tuple[int, None],
    ):
        self.kind, self.epsilon, self.from_one = kind, config.norm_epsilon, config.norm_from_one
        self.biased = kind == 'layernorm' and config.norm_bias
        self.scale = parameter(
            rngs, constant(0.0 if self.from_one else 1.0), *layer_axis, (width, None)
        )
        if self.biased:
            self.bias = parameter(rngs, constant(0.0), *layer_axis, (width, None))

    def __call__(self, x: jax.Array) -> jax.Array:
        """float[..., D] -> the same, normalised over D."""
        h = x.astype(jnp.float32)
        if self.kind == 'layernorm':
            h = h - h.mean(-1, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + self.epsilon)
        scale = spread(self.scale, h)
        h = h * (1 + scale.astype(jnp.float32) if self.from_one else scale)
        return (h + spread(self.bias, h) if self.biased else h).astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head attention in two halves, so that the last layer can go on with the EOS states
    alone.
    """

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs, *layer_axis: tuple[int, None]):
        self.config = config
        width = (config.width, 'fsdp')
        heads = (config.heads, 'tensor')
        groups = (config.kv_heads, 'tensor')
        head_width = (config.head_width, None)
        value, out = value_and_out(config)
        self.query = parameter(rngs, normal(0.02), *layer_axis, width, heads, head_width)
        self.key = parameter(rngs, normal(0.02), *layer_axis, width, groups, head_width)
        self.value = parameter(rngs, value, *layer_axis, width, groups, head_width)
        self.out = parameter(rngs, out, *layer_axis, heads, head_width, width)
        if config.qkv_bias:
            self.query_bias = parameter(rngs, constant(0.0), *layer_axis, heads, head_width)
            self.key_bias = parameter(rngs, constant(0.0), *layer_axis, groups, head_width)
            self.value_bias = parameter(rngs, constant(0.0), *layer_axis, groups, head_width)
        if config.out_bias:
            self.out_bias = parameter(rngs, constant(0.0), *layer_axis, (config.width, None))
        if config.query_key_norm:
            self.query_norm = Norm('rmsnorm', config, config.head_width, rngs, *layer_axis)
            self.key_norm = Norm('rmsnorm', config, config.head_width, rngs, *layer_axis)

    def mix(
        self,
        h_RxSxD: jax.Array,
        attend: Attend,
        positions_RxS: jax.Array,
        local: bool | jax.Array,
        noise: Noise,
    ) -> jax.Array:
        """Each head's mixture of values: [R, S, H, K]."""
        q_RxSxHxK, k_RxSxGxK = (
            self._project_query_or_key(h_RxSxD, name, positions_RxS, local, noise)
            for name in ('query', 'key')
        )
        return attend(q_RxSxHxK, k_RxSxGxK, self._project(h_RxSxD, 'value', noise))

    def attend_at_text_ends(
        self,
        h_RxSxD: jax.Array,
        segments_RxS: jax.Array,
        positions_RxS: jax.Array,
        eos_BxT: jax.Array,
        local: bool,
        noise: Noise,
    ) -> jax.Array:
        """The same for the texts' ends alone: [B, T, H, K].

        q (h Wk) = (q Wk) h and sum(w h Wv) = sum(w h) Wv: where nothing stands between, such as
        rotary positions or an adapter's dropout, keys and values of all positions need not be made.
        A bias of all keys adds the same to all scores, and is left out.
        """
        ends = noise._replace(keys=None if noise.keys is None else pick(noise.keys, eos_BxT))
        q_BxTxHxK = (
            self._project_query_or_key(
                pick(h_RxSxD, eos_BxT), 'query', pick(positions_RxS, eos_BxT), local, ends
            )
            * self.config.head_width**-0.5
        )
        attend = partial(
            at_ends, segments_RxS, self.config.causal, self.config.reach if local else None, eos_BxT
        )
        adapted = has_adapter(self, 'key') or has_adapter(self, 'value')
        if adapted or not self.config.folds_keys:
            return attend(
                q_BxTxHxK,
                self._project_query_or_key(h_RxSxD, 'key', positions_RxS, local, noise),
                self._project(h_RxSxD, 'value', noise),
            )
        groups = self.config.kv_heads
        key_DxGxK, value_DxGxK = (
            gathered(weight, h_RxSxD.dtype, None, 'tensor', None)
            for weight in (self.key, self.value)
        )
        q_BxTxGxQxD = self._by_group('btgqk,dgk->btgqd', split_heads(q_BxTxHxK, groups), key_DxGxK)
        mixed_BxTxHxD = attend(merge_heads(q_BxTxGxQxD), h_RxSxD[:, :, None])
        a_BxTxGxQxK = self._by_group(
            'btgqd,dgk->btgqk', split_heads(mixed_BxTxHxD, groups), value_DxGxK
        )
        if self.config.qkv_bias:
            a_BxTxGxQxK = (
                a_BxTxGxQxK
                + spread(self.value_bias, a_BxTxGxQxK[:, :, :, 0]).astype(a_BxTxGxQxK.dtype)[
                    :, :, :, None
                ]
            )
        return merge_heads(a_BxTxGxQxK)

    def _by_group(self, form: str, h_BxTxGxQx: jax.Array, weight_DxGxK: jax.Array) -> jax.Array:
        return jnp.einsum(
            form, h_BxTxGxQx, weight_DxGxK, out_sharding=P(BATCH, None, 'tensor', None, None)
        )

    def _project_query_or_key(
        self,
        h_RxSxD: jax.Array,
        name: str,
        positions_RxS: jax.Array,
        local: bool | jax.Array,
        noise: Noise,
    ) -> jax.Array:
        """Queries or keys as they are compared: their product is then divided by the square root of
        the head's width.
        """
        config, projected_RxSxHxK = self.config, self._project(h_RxSxD, name, noise)
        if config.query_key_norm:
            projected_RxSxHxK = getattr(self, f'{name}_norm')(projected_RxSxHxK)
        if name == 'query' and config.attention_width not in (0, config.head_width):
            projected_RxSxHxK = (
                projected_RxSxHxK * (config.head_width / config.attention_width) ** 0.5
            )
        return (
            rotate(projected_RxSxHxK, positions_RxS, config, local)
            if config.positions == 'rotary'
            else projected_RxSxHxK
        )

    def _project(self, h_RxSxD: jax.Array, name: str, noise: Noise) -> jax.Array:
        out = adapted_product(
            self,
            name,
            'rsd,dhk->rshk',
            h_RxSxD,
            (None, 'tensor', None),
            P(BATCH, None, 'tensor', None),
            noise,
        )
        return (
            out + spread(getattr(self, name + '_bias'), out).astype(out.dtype)
            if self.config.qkv_bias
            else out
        )

    def combine(self, a: jax.Array, noise: Noise) -> jax.Array:
        """The heads' mixtures [..., H, K] back to the width: [..., D]."""
        out = adapted_product(
            self, 'out', '...hk,hkd->...d', a, ('tensor', None, None), P(BATCH), noise
        )
        return out + spread(self.out_bias, out).astype(out.dtype) if self.config.out_bias else out


# 'gelu' is GPT-2's form, the tanh approximation. That of a gated form is the gate's.
_GELU_EXACT = partial(jax.nn.gelu, approximate=False)
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'gelu': jax.nn.gelu,
    'gelu_exact': _GELU_EXACT,
    'relu': jax.nn.relu,
    'swiglu': jax.nn.silu,
    'geglu': jax.nn.gelu,
    'geglu_exact': _GELU_EXACT,
}


class FeedForward(nnx.Module):
    """Two matrices around an activation, or three of a gated form, such as SwiGLU (arXiv
    2002.05202).
    """

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs, *layer_axis: tuple[int, None]):
        self.config = config
        width, hidden = (config.width, 'fsdp'), (config.hidden, 'tensor')
        self.up = parameter(rngs, normal(0.02), *layer_axis, width, hidden)
        self.down = parameter(rngs, normal(residual_std(config)), *layer_axis, hidden, width)
        if config.gated:
            self.gate = parameter(rngs, normal(0.02), *layer_axis, width, hidden)
        if config.bias:
            self.up_bias = parameter(rngs, constant(0.0), *layer_axis, hidden)
            self.down_bias = parameter(rngs, constant(0.0), *layer_axis, (config.width, None))

    def __call__(self, h: jax.Array, noise: Noise) -> jax.Array:
        """float[..., D] -> the same."""
        up = self._widen(h, 'up', noise)
        if self.config.bias:
            up = up + spread(self.up_bias, up).astype(up.dtype)
        activation = ACTIVATIONS[self.config.activation]
        up = activation(self._widen(h, 'gate', noise)) * up if self.config.gated else activation(up)
        down = adapted_product(self, 'down', '...f,fd->...d', up, ('tensor', None), P(BATCH), noise)
        return down + spread(self.down_bias, down).astype(down.dtype) if self.config.bias else down

    def _widen(self, h: jax.Array, name: str, noise: Noise) -> jax.Array:
        return adapted_product(
            self,
            name,
            '...d,df->...f',
            h,
            (None, 'tensor'),
            P(BATCH, *[None] * (h.ndim - 2), 'tensor'),
            noise,
        )


class Block(nnx.Module):
    """One layer; with a leading axis of N layers, built as a stack and called on one slice of
    it.
    """

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs, *layer_axis: tuple[int, None]):
        self.config = config

        def norm() -> Norm:
            return Norm(config.norm, config, config.width, rngs, *layer_axis)

        self.attention_norm = norm()
        self.attention = Attention(config, rngs, *layer_axis)
        if config.parallel != 'one norm':
            self.feed_forward_norm = norm()
        self.feed_forward = FeedForward(config, rngs, *layer_axis)
        if config.norm_place == 'both':
            self.attended_norm, self.fed_norm = norm(), norm()

    def mix(
        self,
        x_RxSxD: jax.Array,
        attend: Attend,
        positions_RxS: jax.Array,
        local: bool | jax.Array,
        noise: Noise,
    ) -> jax.Array:
        """The half that looks at other positions."""
        return self.attention.mix(
            self.attention_input(x_RxSxD, noise.layer), attend, positions_RxS, local, noise
        )

    def attention_input(self, x: jax.Array, layer: int | jax.Array) -> jax.Array:
        """What attention reads in layer number `layer`."""
        if self.config.norm_place == 'after':
            return x
        # A stack has as many norms as layers, and the first of this one is passed by.
        return (
            self.attention_norm(x)
            if self.config.first_norm
            else jnp.where(layer == 0, x, self.attention_norm(x))
        )

    def residual_and_feed_forward(self, x: jax.Array, a: jax.Array, noise: Noise) -> jax.Array:
        """The half that works on each position alone.

        Args:
          x: float[.., .., D], the residual stream.
          a: float[.., .., H, K], what `mix` made of it.
          noise: of the same tokens, for dropout.
        """
        keys, layer = noise
        a = self.attention.combine(a, noise)
        if self.config.norm_place == 'both':
            a = self.attended_norm(a)
        attended = x + dropout(a, keys, self.config.dropout, 2 * layer + 1)
        if self.config.norm_place == 'after':
            attended = self.attention_norm(attended)
            return self.feed_forward_norm(
                attended
                + dropout(
                    self.feed_forward(attended, noise), keys, self.config.dropout, 2 * layer + 2
                )
            )
        norm = self.attention_norm if self.config.parallel == 'one norm' else self.feed_forward_norm
        h = self.feed_forward(norm(attended if self.config.parallel == 'no' else x), noise)
        if self.config.norm_place == 'both':
            h = self.fed_norm(h)
        return attended + dropout(h, keys, self.config.dropout, 2 * layer + 2)

"""One layer of the encoder and its parts: norms, attention and the feed-forward part."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from cpt_jax.model.adapters.lora import has_adapter, multiply_with_adapter
from cpt_jax.model.attention import Attend, attend_at_ends, group_query_heads, ungroup_query_heads
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.dropout import Noise, dropout
from cpt_jax.model.initializers import (
    choose_value_and_out_initializers,
    compute_residual_std,
    constant,
    normal,
)
from cpt_jax.model.parameter import add_bias, broadcast_vector, gather_weight, make_parameter
from cpt_jax.model.pooling import pick
from cpt_jax.model.rotary import rotate
from cpt_jax.runtime.mesh import BATCH


class Norm(nnx.Module):
    """LayerNorm, or RMSNorm (no mean, no bias), computed in float32."""

    def __init__(
        self,
        kind: str,
        config: EncoderConfig,
        width: int,
        rngs: nnx.Rngs,
        *layer_axis: tuple[int, None],
    ):
        self.kind = kind
        self.epsilon = config.norm_epsilon
        self.from_one = config.norm_from_one
        self.has_bias = kind == 'layernorm' and config.norm_bias
        self.scale = make_parameter(
            rngs, constant(0.0 if self.from_one else 1.0), *layer_axis, (width, None)
        )
        if self.has_bias:
            self.bias = make_parameter(rngs, constant(0.0), *layer_axis, (width, None))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes float[..., D] over D."""
        h = x.astype(jnp.float32)
        if self.kind == 'layernorm':
            h = h - h.mean(-1, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + self.epsilon)
        scale = broadcast_vector(self.scale, h)
        h = h * (1 + scale.astype(jnp.float32) if self.from_one else scale)
        if self.has_bias:
            h = h + broadcast_vector(self.bias, h)
        return h.astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head attention in two parts, `mix_values` and `project_heads`.

    The last layer runs `project_heads` and everything after it only at the ends of texts.
    """

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs, *layer_axis: tuple[int, None]):
        self.config = config
        width = (config.width, 'fsdp')
        heads = (config.heads, 'tensor')
        groups = (config.kv_heads, 'tensor')
        head_width = (config.head_width, None)
        value, out = choose_value_and_out_initializers(config)
        self.query = make_parameter(rngs, normal(0.02), *layer_axis, width, heads, head_width)
        self.key = make_parameter(rngs, normal(0.02), *layer_axis, width, groups, head_width)
        self.value = make_parameter(rngs, value, *layer_axis, width, groups, head_width)
        self.out = make_parameter(rngs, out, *layer_axis, heads, head_width, width)
        if config.qkv_bias:
            self.query_bias = make_parameter(rngs, constant(0.0), *layer_axis, heads, head_width)
            self.key_bias = make_parameter(rngs, constant(0.0), *layer_axis, groups, head_width)
            self.value_bias = make_parameter(rngs, constant(0.0), *layer_axis, groups, head_width)
        if config.out_bias:
            self.out_bias = make_parameter(rngs, constant(0.0), *layer_axis, (config.width, None))
        if config.query_key_norm:
            self.query_norm = Norm('rmsnorm', config, config.head_width, rngs, *layer_axis)
            self.key_norm = Norm('rmsnorm', config, config.head_width, rngs, *layer_axis)

    def mix_values(
        self,
        h_RxSxD: jax.Array,
        attend: Attend,
        positions_RxS: jax.Array,
        is_local: bool | jax.Array,
        noise: Noise,
    ) -> jax.Array:
        """Returns each head's weighted sum of values, [R, S, H, K]."""
        q_RxSxHxK, k_RxSxGxK = (
            self._project_query_or_key(h_RxSxD, name, positions_RxS, is_local, noise)
            for name in ('query', 'key')
        )
        return attend(q_RxSxHxK, k_RxSxGxK, self._project(h_RxSxD, 'value', noise))

    def attend_at_text_ends(
        self,
        h_RxSxD: jax.Array,
        segments_RxS: jax.Array,
        positions_RxS: jax.Array,
        eos_BxT: jax.Array,
        is_local: bool,
        noise: Noise,
    ) -> jax.Array:
        """Returns each head's weighted sum of values at the ends of texts only, [B, T, H, K].

        Keys and values of all positions need not be computed, because q (h Wk) = (q Wk) h and
        sum(w h Wv) = sum(w h) Wv. This holds only if no other operation (rotary positions, a
        query-key norm, an adapter) comes between h and the product; otherwise keys and values are
        computed as in `mix_values`. The key bias adds the same number to all attention logits of a
        query, so the softmax does not depend on it, and it is left out.

        Args:
          h_RxSxD: input of attention.
          segments_RxS, positions_RxS: as in `Encoder.compute_states`.
          eos_BxT: int32, position of the end of each text, as row * S + column within a device's
            rows.
          is_local: whether the layer is local.
          noise: source of dropout.
        """
        end_keys = None if noise.keys is None else pick(noise.keys, eos_BxT)
        end_noise = noise._replace(keys=end_keys)
        q_BxTxHxK = (
            self._project_query_or_key(
                pick(h_RxSxD, eos_BxT), 'query', pick(positions_RxS, eos_BxT), is_local, end_noise
            )
            * self.config.head_width**-0.5
        )
        attend = partial(
            attend_at_ends,
            segments_RxS,
            self.config.causal,
            self.config.reach if is_local else None,
            eos_BxT,
        )
        is_adapted = has_adapter(self, 'key') or has_adapter(self, 'value')
        if is_adapted or not self.config.can_fold_keys:
            return attend(
                q_BxTxHxK,
                self._project_query_or_key(h_RxSxD, 'key', positions_RxS, is_local, noise),
                self._project(h_RxSxD, 'value', noise),
            )
        groups = self.config.kv_heads
        key_DxGxK, value_DxGxK = (
            gather_weight(
                weight,
                h_RxSxD.dtype,
                None,
                'tensor',
                None,
                sums_in_float32=self.config.sums_in_float32,
            )
            for weight in (self.key, self.value)
        )
        q_BxTxGxMxD = self._einsum_by_group(
            'btgmk,dgk->btgmd', group_query_heads(q_BxTxHxK, groups), key_DxGxK
        )
        mixed_BxTxHxD = attend(ungroup_query_heads(q_BxTxGxMxD), h_RxSxD[:, :, None])
        a_BxTxGxMxK = self._einsum_by_group(
            'btgmd,dgk->btgmk', group_query_heads(mixed_BxTxHxD, groups), value_DxGxK
        )
        if self.config.qkv_bias:
            bias_Bx1xGxK = broadcast_vector(self.value_bias, a_BxTxGxMxK[:, :, :, 0])
            a_BxTxGxMxK = add_bias(a_BxTxGxMxK, bias_Bx1xGxK[:, :, :, None])
        return ungroup_query_heads(a_BxTxGxMxK)

    def _einsum_by_group(
        self, form: str, h_BxTxGxMx: jax.Array, weight_DxGxK: jax.Array
    ) -> jax.Array:
        return jnp.einsum(
            form, h_BxTxGxMx, weight_DxGxK, out_sharding=P(BATCH, None, 'tensor', None, None)
        )

    def _project_query_or_key(
        self,
        h_RxSxD: jax.Array,
        name: str,
        positions_RxS: jax.Array,
        is_local: bool | jax.Array,
        noise: Noise,
    ) -> jax.Array:
        """Returns queries or keys ready for their product, which the caller divides by
        sqrt(head_width).
        """
        config = self.config
        projected_RxSxHxK = self._project(h_RxSxD, name, noise)
        if config.query_key_norm:
            projected_RxSxHxK = getattr(self, f'{name}_norm')(projected_RxSxHxK)
        # This model divides the logits by sqrt(attention_width) instead.
        if name == 'query' and config.attention_width not in (0, config.head_width):
            projected_RxSxHxK = (
                projected_RxSxHxK * (config.head_width / config.attention_width) ** 0.5
            )
        if config.positions == 'rotary':
            return rotate(projected_RxSxHxK, positions_RxS, config, is_local)
        return projected_RxSxHxK

    def _project(self, h_RxSxD: jax.Array, name: str, noise: Noise) -> jax.Array:
        out = multiply_with_adapter(
            self,
            name,
            'rsd,dhk->rshk',
            h_RxSxD,
            (None, 'tensor', None),
            P(BATCH, None, 'tensor', None),
            noise,
        )
        if not self.config.qkv_bias:
            return out
        return add_bias(out, broadcast_vector(getattr(self, f'{name}_bias'), out))

    def project_heads(self, a: jax.Array, noise: Noise) -> jax.Array:
        """Projects the outputs of all heads, [..., H, K], back to the residual stream, [..., D]."""
        out = multiply_with_adapter(
            self, 'out', '...hk,hkd->...d', a, ('tensor', None, None), P(BATCH), noise
        )
        if not self.config.out_bias:
            return out
        return add_bias(out, broadcast_vector(self.out_bias, out))


# 'gelu' is the tanh approximation, as in GPT-2. For gated forms, this is the gate's activation.
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
    """Two matrices around an activation, or three in a gated form.

    SwiGLU (arXiv 2002.05202) is a gated form.
    """

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs, *layer_axis: tuple[int, None]):
        self.config = config
        width, hidden = (config.width, 'fsdp'), (config.hidden, 'tensor')
        self.up = make_parameter(rngs, normal(0.02), *layer_axis, width, hidden)
        self.down = make_parameter(
            rngs, normal(compute_residual_std(config)), *layer_axis, hidden, width
        )
        if config.is_gated:
            self.gate = make_parameter(rngs, normal(0.02), *layer_axis, width, hidden)
        if config.bias:
            self.up_bias = make_parameter(rngs, constant(0.0), *layer_axis, hidden)
        if config.down_bias:
            self.down_bias = make_parameter(rngs, constant(0.0), *layer_axis, (config.width, None))

    def __call__(self, h: jax.Array, noise: Noise) -> jax.Array:
        """Applies the feed-forward part to float[..., D]; returns the same shape."""
        up = self._project_up(h, 'up', noise)
        if self.config.bias:
            up = add_bias(up, broadcast_vector(self.up_bias, up))
        activation = ACTIVATIONS[self.config.activation]
        if self.config.is_gated:
            up = activation(self._project_up(h, 'gate', noise)) * up
        else:
            up = activation(up)
        down = multiply_with_adapter(
            self, 'down', '...f,fd->...d', up, ('tensor', None), P(BATCH), noise
        )
        if not self.config.down_bias:
            return down
        return add_bias(down, broadcast_vector(self.down_bias, down))

    def _project_up(self, h: jax.Array, name: str, noise: Noise) -> jax.Array:
        return multiply_with_adapter(
            self,
            name,
            '...d,df->...f',
            h,
            (None, 'tensor'),
            P(BATCH, *[None] * (h.ndim - 2), 'tensor'),
            noise,
        )


class Block(nnx.Module):
    """One layer, or a stack of N layers.

    A stack has a leading axis of N on all parameters, and is called on one slice at a time.
    """

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs, *layer_axis: tuple[int, None]):
        self.config = config

        def make_norm() -> Norm:
            return Norm(config.norm, config, config.width, rngs, *layer_axis)

        self.attention_norm = make_norm()
        self.attention = Attention(config, rngs, *layer_axis)
        if config.parallel != 'one norm':
            self.feed_forward_norm = make_norm()
        self.feed_forward = FeedForward(config, rngs, *layer_axis)
        if config.norm_place == 'both':
            self.attended_norm = make_norm()
            self.fed_norm = make_norm()

    def mix_values(
        self,
        x_RxSxD: jax.Array,
        attend: Attend,
        positions_RxS: jax.Array,
        is_local: bool | jax.Array,
        noise: Noise,
    ) -> jax.Array:
        """Runs attention up to the weighted sum of values, [R, S, H, K].

        See `Attention.mix_values`.
        """
        return self.attention.mix_values(
            self.compute_attention_input(x_RxSxD, noise.layer),
            attend,
            positions_RxS,
            is_local,
            noise,
        )

    def compute_attention_input(self, x: jax.Array, layer: int | jax.Array) -> jax.Array:
        """Returns the input of attention in the layer with index `layer`."""
        if self.config.norm_place == 'after':
            return x
        if self.config.first_norm:
            return self.attention_norm(x)
        # Every layer of a stack has a norm, but the model has none in the first layer.
        return jnp.where(layer == 0, x, self.attention_norm(x))

    def add_residual_and_feed_forward(self, x: jax.Array, a: jax.Array, noise: Noise) -> jax.Array:
        """Runs the part of a layer that treats each position separately, after `mix_values`.

        Args:
          x: float[.., .., D], residual stream at the input of the layer.
          a: float[.., .., H, K], result of `mix_values`.
          noise: source of dropout for the same tokens.

        Returns:
          float[.., .., D], residual stream at the output of the layer.
        """
        keys, layer = noise
        a = self.attention.project_heads(a, noise)
        if self.config.norm_place == 'both':
            a = self.attended_norm(a)
        attended = x + dropout(a, keys, self.config.dropout, 2 * layer + 1)
        if self.config.norm_place == 'after':
            attended = self.attention_norm(attended)
            h = self.feed_forward(attended, noise)
            h = dropout(h, keys, self.config.dropout, 2 * layer + 2)
            return self.feed_forward_norm(attended + h)
        norm = self.attention_norm if self.config.parallel == 'one norm' else self.feed_forward_norm
        source = attended if self.config.parallel == 'no' else x
        h = self.feed_forward(norm(source), noise)
        if self.config.norm_place == 'both':
            h = self.fed_norm(h)
        return attended + dropout(h, keys, self.config.dropout, 2 * layer + 2)

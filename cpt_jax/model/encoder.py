"""The GPT-style pre-norm transformer of cpt: packed rows of tokens -> one unit vector a text."""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from cpt_jax.mesh import BATCH
from cpt_jax.model.attention import Attend, at_ends, attention_within, merge_heads, split_heads
from cpt_jax.model.dropout import Noise, dropout
from cpt_jax.model.initializers import constant, normal, residual_std, value_and_out
from cpt_jax.model.lora import product
from cpt_jax.model.parameter import gathered, looked_up, parameter, spread
from cpt_jax.model.pooling import mean_of_texts, pick, unit
from cpt_jax.model.rotary import rotate
from cpt_jax.model.shape import Shape

# How a layer attends, by whether it is local and what it is given; and arrays that this leaves: see Encoder.run_layers.
AttendIn = Callable[[bool | jax.Array, Any], tuple[Attend, Sequence[jax.Array]]]

# What the backward pass finds kept and need not compute again, by the name that a config gives; 'none' keeps everything.
REMAT = {
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    'full': jax.checkpoint_policies.nothing_saveable,
}


Arguments = ParamSpec('Arguments')
T = TypeVar('T')


def precisely(function: Callable[Arguments, T]) -> Callable[Arguments, T]:
    """The same within `Shape.precision` of its first argument, an Encoder."""

    @wraps(function)
    def within(*arguments: Arguments.args, **more: Arguments.kwargs) -> T:
        with arguments[0].shape.precision():
            return function(*arguments, **more)

    return within


class Norm(nnx.Module):
    """LayerNorm, or RMSNorm without a mean and a bias, in float32."""

    def __init__(self, kind: str, shape: Shape, width: int, rngs: nnx.Rngs, *stack: tuple[int, None]):
        self.kind, self.epsilon, self.from_one = kind, shape.norm_epsilon, shape.norm_from_one
        self.biased = kind == 'layernorm' and shape.norm_bias
        self.scale = parameter(rngs, constant(0.0 if self.from_one else 1.0), *stack, (width, None))
        if self.biased:
            self.bias = parameter(rngs, constant(0.0), *stack, (width, None))

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
    """Multi-head attention in two halves, so that the last layer can go on with the EOS states alone."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs, *stack: tuple[int, None]):
        self.shape = shape
        width, heads, groups = (shape.width, 'fsdp'), (shape.heads, 'tensor'), (shape.kv_heads, 'tensor')
        head_width = (shape.head_width, None)
        value, out = value_and_out(shape)
        self.query = parameter(rngs, normal(0.02), *stack, width, heads, head_width)
        self.key = parameter(rngs, normal(0.02), *stack, width, groups, head_width)
        self.value = parameter(rngs, value, *stack, width, groups, head_width)
        self.out = parameter(rngs, out, *stack, heads, head_width, width)
        if shape.qkv_bias:
            self.query_bias = parameter(rngs, constant(0.0), *stack, heads, head_width)
            self.key_bias = parameter(rngs, constant(0.0), *stack, groups, head_width)
            self.value_bias = parameter(rngs, constant(0.0), *stack, groups, head_width)
        if shape.out_bias:
            self.out_bias = parameter(rngs, constant(0.0), *stack, (shape.width, None))
        if shape.query_key_norm:
            self.query_norm = Norm('rmsnorm', shape, shape.head_width, rngs, *stack)
            self.key_norm = Norm('rmsnorm', shape, shape.head_width, rngs, *stack)

    def mix(self, h_RxSxD: jax.Array, attend: Attend, positions_RxS: jax.Array, local: bool | jax.Array, noise: Noise) -> jax.Array:
        """Each head's mixture of values: [R, S, H, K]."""
        q_RxSxHxK, k_RxSxGxK = (self._compared(h_RxSxD, name, positions_RxS, local, noise) for name in ('query', 'key'))
        return attend(q_RxSxHxK, k_RxSxGxK, self._project(h_RxSxD, 'value', noise))

    def mix_at_ends(
        self, h_RxSxD: jax.Array, segments_RxS: jax.Array, positions_RxS: jax.Array, eos_BxT: jax.Array, local: bool, noise: Noise
    ) -> jax.Array:
        """The same for the texts' ends alone: [B, T, H, K].

        q (h Wk) = (q Wk) h and sum(w h Wv) = sum(w h) Wv: where nothing stands between, such as rotary positions or an adapter's dropout,
        keys and values of all positions need not be made. A bias of all keys adds the same to all scores, and is left out.
        """
        ends = noise._replace(keys=None if noise.keys is None else pick(noise.keys, eos_BxT))
        q_BxTxHxK = self._compared(pick(h_RxSxD, eos_BxT), 'query', pick(positions_RxS, eos_BxT), local, ends) * self.shape.head_width**-0.5
        attend = partial(at_ends, segments_RxS, self.shape.causal, self.shape.reach if local else None, eos_BxT)
        if not self.shape.folds_keys or hasattr(self, 'key_adapter') or hasattr(self, 'value_adapter'):
            return attend(q_BxTxHxK, self._compared(h_RxSxD, 'key', positions_RxS, local, noise), self._project(h_RxSxD, 'value', noise))
        groups = self.shape.kv_heads
        key_DxGxK, value_DxGxK = (gathered(weight, h_RxSxD.dtype, None, 'tensor', None) for weight in (self.key, self.value))
        q_BxTxGxQxD = self._by_group('btgqk,dgk->btgqd', split_heads(q_BxTxHxK, groups), key_DxGxK)
        mixed_BxTxHxD = attend(merge_heads(q_BxTxGxQxD), h_RxSxD[:, :, None])
        a_BxTxGxQxK = self._by_group('btgqd,dgk->btgqk', split_heads(mixed_BxTxHxD, groups), value_DxGxK)
        if self.shape.qkv_bias:
            a_BxTxGxQxK = a_BxTxGxQxK + spread(self.value_bias, a_BxTxGxQxK[:, :, :, 0]).astype(a_BxTxGxQxK.dtype)[:, :, :, None]
        return merge_heads(a_BxTxGxQxK)

    def _by_group(self, form: str, h_BxTxGxQx: jax.Array, weight_DxGxK: jax.Array) -> jax.Array:
        return jnp.einsum(form, h_BxTxGxQx, weight_DxGxK, out_sharding=P(BATCH, None, 'tensor', None, None))

    def _compared(self, h_RxSxD: jax.Array, name: str, positions_RxS: jax.Array, local: bool | jax.Array, noise: Noise) -> jax.Array:
        """Queries or keys as they are compared: their product is then divided by the square root of the head's width."""
        shape, projected_RxSxHxK = self.shape, self._project(h_RxSxD, name, noise)
        if shape.query_key_norm:
            projected_RxSxHxK = getattr(self, f'{name}_norm')(projected_RxSxHxK)
        if name == 'query' and shape.attention_width not in (0, shape.head_width):
            projected_RxSxHxK = projected_RxSxHxK * (shape.head_width / shape.attention_width) ** 0.5
        return rotate(projected_RxSxHxK, positions_RxS, shape, local) if shape.positions == 'rotary' else projected_RxSxHxK

    def _project(self, h_RxSxD: jax.Array, name: str, noise: Noise) -> jax.Array:
        out = product(self, name, 'rsd,dhk->rshk', h_RxSxD, (None, 'tensor', None), P(BATCH, None, 'tensor', None), noise)
        return out + spread(getattr(self, name + '_bias'), out).astype(out.dtype) if self.shape.qkv_bias else out

    def combine(self, a: jax.Array, noise: Noise) -> jax.Array:
        """The heads' mixtures [..., H, K] back to the width: [..., D]."""
        out = product(self, 'out', '...hk,hkd->...d', a, ('tensor', None, None), P(BATCH), noise)
        return out + spread(self.out_bias, out).astype(out.dtype) if self.shape.out_bias else out


# 'gelu' is GPT-2's form, the tanh approximation. That of a gated form is the gate's.
_GELU_EXACT = partial(jax.nn.gelu, approximate=False)
ACTIVATIONS = {
    'gelu': jax.nn.gelu,
    'gelu_exact': _GELU_EXACT,
    'relu': jax.nn.relu,
    'swiglu': jax.nn.silu,
    'geglu': jax.nn.gelu,
    'geglu_exact': _GELU_EXACT,
}


class FeedForward(nnx.Module):
    """Two matrices around an activation, or three of a gated form, such as SwiGLU (arXiv 2002.05202)."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs, *stack: tuple[int, None]):
        self.shape = shape
        width, hidden = (shape.width, 'fsdp'), (shape.hidden, 'tensor')
        self.up = parameter(rngs, normal(0.02), *stack, width, hidden)
        self.down = parameter(rngs, normal(residual_std(shape)), *stack, hidden, width)
        if shape.gated:
            self.gate = parameter(rngs, normal(0.02), *stack, width, hidden)
        if shape.bias:
            self.up_bias = parameter(rngs, constant(0.0), *stack, hidden)
            self.down_bias = parameter(rngs, constant(0.0), *stack, (shape.width, None))

    def __call__(self, h: jax.Array, noise: Noise) -> jax.Array:
        """float[..., D] -> the same."""
        up = self._widen(h, 'up', noise)
        if self.shape.bias:
            up = up + spread(self.up_bias, up).astype(up.dtype)
        activation = ACTIVATIONS[self.shape.activation]
        up = activation(self._widen(h, 'gate', noise)) * up if self.shape.gated else activation(up)
        down = product(self, 'down', '...f,fd->...d', up, ('tensor', None), P(BATCH), noise)
        return down + spread(self.down_bias, down).astype(down.dtype) if self.shape.bias else down

    def _widen(self, h: jax.Array, name: str, noise: Noise) -> jax.Array:
        return product(self, name, '...d,df->...f', h, (None, 'tensor'), P(BATCH, *[None] * (h.ndim - 2), 'tensor'), noise)


class Block(nnx.Module):
    """One layer; with a leading axis of N layers, built as a stack and called on one slice of it."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs, *stack: tuple[int, None]):
        self.shape = shape
        norm = partial(Norm, shape.norm, shape, shape.width, rngs, *stack)
        self.attention_norm = norm()
        self.attention = Attention(shape, rngs, *stack)
        if shape.parallel != 'one norm':
            self.feed_forward_norm = norm()
        self.feed_forward = FeedForward(shape, rngs, *stack)
        if shape.norm_place == 'both':
            self.attended_norm, self.fed_norm = norm(), norm()

    def mix(self, x_RxSxD: jax.Array, attend: Attend, positions_RxS: jax.Array, local: bool | jax.Array, noise: Noise) -> jax.Array:
        """The half that looks at other positions."""
        return self.attention.mix(self.before_attention(x_RxSxD, noise.layer), attend, positions_RxS, local, noise)

    def before_attention(self, x: jax.Array, layer: int | jax.Array) -> jax.Array:
        """What attention reads in layer number `layer`."""
        if self.shape.norm_place == 'after':
            return x
        # A stack has as many norms as layers, and the first of this one is passed by.
        return self.attention_norm(x) if self.shape.first_norm else jnp.where(layer == 0, x, self.attention_norm(x))

    def finish(self, x: jax.Array, a: jax.Array, noise: Noise) -> jax.Array:
        """The half that works on each position alone.

        Args:
          x: float[.., .., D], the residual stream.
          a: float[.., .., H, K], what `mix` made of it.
          noise: of the same tokens, for dropout.
        """
        keys, layer = noise
        a = self.attention.combine(a, noise)
        if self.shape.norm_place == 'both':
            a = self.attended_norm(a)
        attended = x + dropout(a, keys, self.shape.dropout, 2 * layer + 1)
        if self.shape.norm_place == 'after':
            attended = self.attention_norm(attended)
            return self.feed_forward_norm(attended + dropout(self.feed_forward(attended, noise), keys, self.shape.dropout, 2 * layer + 2))
        norm = self.attention_norm if self.shape.parallel == 'one norm' else self.feed_forward_norm
        h = self.feed_forward(norm(attended if self.shape.parallel == 'no' else x), noise)
        if self.shape.norm_place == 'both':
            h = self.fed_norm(h)
        return attended + dropout(h, keys, self.shape.dropout, 2 * layer + 2)


class Encoder(nnx.Module):
    """Tokens -> vectors."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        self.shape = shape
        self.adapter_dropout = 0.0  # LoRA's
        width = (shape.width, 'fsdp')
        narrow = (shape.embedding_width, 'fsdp')
        self.token_embedding = parameter(rngs, normal(0.02), (shape.table_rows, 'tensor'), narrow)
        if shape.positions == 'learned':
            self.position_embedding = parameter(rngs, normal(0.01), (shape.position_offset + shape.max_length, None), width)
        if shape.token_types:
            self.type_embedding = parameter(rngs, normal(0.02), (shape.token_types, None), width)
        if shape.embedding_norm:
            self.embedding_norm = Norm(shape.norm, shape, shape.width, rngs)
        if shape.embedding_width != shape.width:
            self.project_in = parameter(rngs, normal(0.02), (shape.embedding_width, None), width)
            self.project_out = parameter(rngs, normal(0.02), width, (shape.embedding_width, None))
        # The last layer stands apart: it is computed in another way, and a slice of a stack would be a copy of nearly all weights.
        if shape.layers > 1:
            self.blocks = Block(shape, rngs, (shape.layers - 1, None))
        self.last = Block(shape, rngs)
        if shape.final_norm:
            self.final_norm = Norm(shape.norm, shape, shape.width, rngs)

    @property
    def drops(self) -> bool:
        """Whether there is dropout in training."""
        return self.shape.dropout > 0 or self.adapter_dropout > 0

    def __call__(self, *rows: jax.Array | None) -> jax.Array:
        """float32[B, T, D]: `states` of the same arguments, made unit length."""
        return unit(self.states(*rows))

    @precisely
    def states(
        self,
        tokens_RxS: jax.Array,
        segments_RxS: jax.Array,
        positions_RxS: jax.Array,
        eos_BxT: jax.Array,
        keys_RxS: jax.Array | None = None,
    ) -> jax.Array:
        """One vector a text.

        Args:
          tokens_RxS: int32 ids; rows lie over the mesh's data and fsdp axes.
          segments_RxS: int32, from 1: which text of its row a token belongs to, and of all of its device's rows where the pooling is
            'mean'; 0 is padding.
          positions_RxS: int32, from 0 in each text.
          eos_BxT: int32, for T texts of each of B pairs: where its closing delimiter stands, as row * S + column counted within the rows
            of the device that holds the pair.
          keys_RxS: each token's random key, for dropout; without them there is none.

        Returns:
          float32[B, T, D]: the last layer's state at the closing delimiter, after the final norm (or as `shape.pooling` says). The layer's
          second half is computed for these positions alone.
        """
        if self.shape.pooling == 'mean':
            return mean_of_texts(self.all_states(tokens_RxS, segments_RxS, positions_RxS, keys_RxS), segments_RxS, eos_BxT)
        x_RxSxD = self._layers_but_last(tokens_RxS, segments_RxS, positions_RxS, keys_RxS)
        number = self.shape.layers - 1
        local = self.shape.local(number)
        attend = self._attend(segments_RxS, local)
        places_BxT = eos_BxT - pick(positions_RxS, eos_BxT) if self.shape.pooling == 'first' else eos_BxT
        noise, end_noise = Noise(keys_RxS, number), Noise(None if keys_RxS is None else pick(keys_RxS, places_BxT), number)

        @self._remat
        def last_layer(block: Block, x_RxSxD: jax.Array) -> jax.Array:
            if self.shape.attention == 'blocks':  # the rows gathered for each text are cheap on a CPU alone
                h_RxSxD = block.before_attention(x_RxSxD, number)
                a_BxTxHxK = block.attention.mix_at_ends(h_RxSxD, segments_RxS, positions_RxS, places_BxT, local, noise)
            else:
                a_BxTxHxK = pick(block.mix(x_RxSxD, attend, positions_RxS, local, noise), places_BxT)
            return block.finish(pick(x_RxSxD, places_BxT), a_BxTxHxK, end_noise)

        return self.leave(last_layer(self.last, x_RxSxD)).astype(jnp.float32)

    @precisely
    def all_states(
        self, tokens_RxS: jax.Array, segments_RxS: jax.Array, positions_RxS: jax.Array, keys_RxS: jax.Array | None = None
    ) -> jax.Array:
        """The state of every token, after the final norm: [R, S, D] in the compute dtype. Arguments as those of `states`."""
        x_RxSxD = self._layers_but_last(tokens_RxS, segments_RxS, positions_RxS, keys_RxS)
        number = self.shape.layers - 1
        local = self.shape.local(number)
        attend = self._attend(segments_RxS, local)

        @self._remat
        def last_layer(block: Block, x_RxSxD: jax.Array) -> jax.Array:
            noise = Noise(keys_RxS, number)
            return block.finish(x_RxSxD, block.mix(x_RxSxD, attend, positions_RxS, local, noise), noise)

        return self.leave(last_layer(self.last, x_RxSxD))

    def _attend(self, segments_RxS: jax.Array, local: bool | jax.Array) -> Attend:
        return attention_within(segments_RxS, self.shape.causal, self.shape.attention, self.shape.reach, local)

    def embed(self, tokens_RxS: jax.Array, positions_RxS: jax.Array) -> jax.Array:
        """What the first layer reads: [R, S, D]."""
        shape, dtype = self.shape, self.shape.compute_dtype
        x_RxSxD = looked_up(self.token_embedding, tokens_RxS, dtype)
        if shape.embedding_scale:
            x_RxSxD = x_RxSxD * jnp.asarray(shape.width**0.5, dtype)
        if shape.embedding_width != shape.width:
            x_RxSxD = jnp.einsum('rse,ed->rsd', x_RxSxD, gathered(self.project_in, dtype, None, None), out_sharding=P(BATCH))
        if shape.token_types:
            x_RxSxD = x_RxSxD + looked_up(self.type_embedding, jnp.zeros_like(tokens_RxS), dtype)
        if shape.positions == 'learned':
            x_RxSxD = x_RxSxD + looked_up(self.position_embedding, shape.position_offset + positions_RxS, dtype)
        return self.embedding_norm(x_RxSxD) if shape.embedding_norm else x_RxSxD

    def leave(self, h: jax.Array) -> jax.Array:
        """What the last layer made [.., .., D] -> states."""
        h = self.final_norm(h) if self.shape.final_norm else h
        if self.shape.embedding_width == self.shape.width:
            return h
        return jnp.einsum('...d,de->...e', h, gathered(self.project_out, h.dtype, None, None), out_sharding=P(BATCH))

    def _layers_but_last(
        self, tokens_RxS: jax.Array, segments_RxS: jax.Array, positions_RxS: jax.Array, keys_RxS: jax.Array | None
    ) -> jax.Array:
        x_RxSxD = dropout(self.embed(tokens_RxS, positions_RxS), keys_RxS, self.shape.dropout, 0)
        kinds = {self.shape.local(number) for number in range(self.shape.layers - 1)}
        # Of layers of one kind, the mask is made once, before the loop.
        once = self._attend(segments_RxS, *kinds) if len(kinds) == 1 else None
        return self.run_layers(x_RxSxD, positions_RxS, keys_RxS, lambda local, _: (once or self._attend(segments_RxS, local), ()))[0]

    def run_layers(
        self, x_RxSxD: jax.Array, positions_RxS: jax.Array, keys_RxS: jax.Array | None, attend_in: AttendIn, given: Any = None
    ) -> tuple[jax.Array, Any]:
        """All layers but the last, and what they kept.

        Args:
          attend_in: called in each layer, with whether it is local and its part of `given`: how it attends, and a sequence that this fills
            with arrays to keep.
          given: arrays of all layers, [N - 1, ...].

        Returns:
          The residual stream [R, S, D], and the arrays that were kept, [N - 1, ...]; None where there is one layer.
        """
        inner = self.shape.layers - 1
        if not inner:
            return x_RxSxD, None
        kinds = [self.shape.local(number) for number in range(inner)]
        mixed = len(set(kinds)) == 2

        @self._remat
        def layer(x_RxSxD: jax.Array, numbered: tuple[jax.Array, Block, jax.Array | None, Any]) -> tuple[jax.Array, tuple]:
            number, block, kind, own = numbered
            local, noise = kind if mixed else kinds[0], Noise(keys_RxS, number)
            attend, kept = attend_in(local, own)
            a_RxSxHxK = block.mix(x_RxSxD, attend, positions_RxS, local, noise)
            return block.finish(x_RxSxD, a_RxSxHxK, noise), tuple(kept)

        numbered = jnp.arange(inner), self.blocks, jnp.array(kinds) if mixed else None, given
        return jax.lax.scan(layer, x_RxSxD, numbered, unroll=inner if self.shape.layer_loop == 'unroll' else 1)

    def _remat(self, function):
        # prevent_cse=False: inside a scan there is nothing to merge with, and the barriers cost time (jax.checkpoint's own advice).
        return jax.checkpoint(function, policy=REMAT[self.shape.remat], prevent_cse=False) if self.shape.remat in REMAT else function

"""The GPT-style pre-norm transformer of cpt: packed rows of tokens -> one unit vector a text."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from cpt_jax.model.attention import Attend, attention_within
from cpt_jax.model.block import Block, Norm
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.dropout import Noise, dropout
from cpt_jax.model.initializers import normal
from cpt_jax.model.parameter import gathered, looked_up, parameter
from cpt_jax.model.pooling import POOLINGS, normalized, pick
from cpt_jax.runtime.mesh import BATCH

# How a layer attends, by whether it is local and what it is given; and arrays that this leaves: see
# Encoder.run_layers.
AttendIn = Callable[[bool | jax.Array, Any], tuple[Attend, Sequence[jax.Array]]]

# What the backward pass finds kept and need not compute again, by the name that a config gives;
# 'none' keeps everything.
REMAT = {
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    'full': jax.checkpoint_policies.nothing_saveable,
}


Arguments = ParamSpec('Arguments')
E = TypeVar('E', bound='Encoder')
T = TypeVar('T')


def with_matmul_precision(
    function: Callable[Concatenate[E, Arguments], T],
) -> Callable[Concatenate[E, Arguments], T]:
    """Runs a function within `EncoderConfig.precision` of its first argument, an Encoder."""

    @wraps(function)
    def within(encoder: E, *arguments: Arguments.args, **more: Arguments.kwargs) -> T:
        with encoder.config.precision():
            return function(encoder, *arguments, **more)

    return within


class Encoder(nnx.Module):
    """Tokens -> vectors."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.adapter_dropout = 0.0  # LoRA's
        width = (config.width, 'fsdp')
        narrow = (config.embedding_width, 'fsdp')
        self.token_embedding = parameter(rngs, normal(0.02), (config.table_rows, 'tensor'), narrow)
        if config.positions == 'learned':
            self.position_embedding = parameter(
                rngs, normal(0.01), (config.position_offset + config.max_length, None), width
            )
        if config.token_types:
            self.type_embedding = parameter(rngs, normal(0.02), (config.token_types, None), width)
        if config.embedding_norm:
            self.embedding_norm = Norm(config.norm, config, config.width, rngs)
        if config.embedding_width != config.width:
            self.project_in = parameter(rngs, normal(0.02), (config.embedding_width, None), width)
            self.project_out = parameter(rngs, normal(0.02), width, (config.embedding_width, None))
        # The last layer stands apart: it is computed in another way, and a slice of a stack would
        # be a copy of nearly all weights.
        if config.layers > 1:
            self.blocks = Block(config, rngs, (config.layers - 1, None))
        self.last = Block(config, rngs)
        if config.final_norm:
            self.final_norm = Norm(config.norm, config, config.width, rngs)

    @property
    def drops(self) -> bool:
        """Whether there is dropout in training."""
        return self.config.dropout > 0 or self.adapter_dropout > 0

    def __call__(
        self,
        tokens_RxS: jax.Array,
        segments_RxS: jax.Array,
        positions_RxS: jax.Array,
        eos_BxT: jax.Array,
        keys_RxS: jax.Array | None = None,
    ) -> jax.Array:
        """float32[B, T, D]: `states` of the same arguments, made unit length."""
        return normalized(self.states(tokens_RxS, segments_RxS, positions_RxS, eos_BxT, keys_RxS))

    @with_matmul_precision
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
          segments_RxS: int32, from 1: which text of its row a token belongs to, and of all of its
            device's rows where the pooling is 'mean'; 0 is padding.
          positions_RxS: int32, from 0 in each text.
          eos_BxT: int32, for T texts of each of B pairs: where its closing delimiter stands, as row
            * S + column counted within the rows of the device that holds the pair.
          keys_RxS: each token's random key, for dropout; without them there is none.

        Returns:
          float32[B, T, D]: the last layer's state at the closing delimiter, after the final norm
            (or as `config.pooling` says). The layer's second half is computed for these positions
            alone.
        """
        pooling = POOLINGS[self.config.pooling]
        if pooling.reduce:
            h_RxSxD = self.all_states(tokens_RxS, segments_RxS, positions_RxS, keys_RxS)
            return pooling.reduce(h_RxSxD, segments_RxS, eos_BxT)
        x_RxSxD = self._layers_but_last(tokens_RxS, segments_RxS, positions_RxS, keys_RxS)
        number = self.config.layers - 1
        local = self.config.local(number)
        attend = self._attend(segments_RxS, local)
        places_BxT = eos_BxT
        if pooling.is_first_token:
            places_BxT = eos_BxT - pick(positions_RxS, eos_BxT)
        noise = Noise(keys_RxS, number)
        end_noise = Noise(None if keys_RxS is None else pick(keys_RxS, places_BxT), number)

        @self._remat
        def last_layer(block: Block, x_RxSxD: jax.Array) -> jax.Array:
            # The rows gathered for each text are cheap on a CPU alone.
            if self.config.attention == 'blocks':
                h_RxSxD = block.attention_input(x_RxSxD, number)
                a_BxTxHxK = block.attention.attend_at_text_ends(
                    h_RxSxD, segments_RxS, positions_RxS, places_BxT, local, noise
                )
            else:
                a_BxTxHxK = pick(
                    block.mix(x_RxSxD, attend, positions_RxS, local, noise), places_BxT
                )
            return block.residual_and_feed_forward(pick(x_RxSxD, places_BxT), a_BxTxHxK, end_noise)

        return self.final_projection(last_layer(self.last, x_RxSxD)).astype(jnp.float32)

    @with_matmul_precision
    def all_states(
        self,
        tokens_RxS: jax.Array,
        segments_RxS: jax.Array,
        positions_RxS: jax.Array,
        keys_RxS: jax.Array | None = None,
    ) -> jax.Array:
        """The state of every token, after the final norm: [R, S, D] in the compute dtype. Arguments
        as those of `states`.
        """
        x_RxSxD = self._layers_but_last(tokens_RxS, segments_RxS, positions_RxS, keys_RxS)
        number = self.config.layers - 1
        local = self.config.local(number)
        attend = self._attend(segments_RxS, local)

        @self._remat
        def last_layer(block: Block, x_RxSxD: jax.Array) -> jax.Array:
            noise = Noise(keys_RxS, number)
            return block.residual_and_feed_forward(
                x_RxSxD, block.mix(x_RxSxD, attend, positions_RxS, local, noise), noise
            )

        return self.final_projection(last_layer(self.last, x_RxSxD))

    def _attend(self, segments_RxS: jax.Array, local: bool | jax.Array) -> Attend:
        return attention_within(
            segments_RxS, self.config.causal, self.config.attention, self.config.reach, local
        )

    def embed(self, tokens_RxS: jax.Array, positions_RxS: jax.Array) -> jax.Array:
        """What the first layer reads: [R, S, D]."""
        config, dtype = self.config, self.config.compute_dtype
        x_RxSxD = looked_up(self.token_embedding, tokens_RxS, dtype)
        if config.embedding_scale:
            x_RxSxD = x_RxSxD * jnp.asarray(config.width**0.5, dtype)
        if config.embedding_width != config.width:
            x_RxSxD = jnp.einsum(
                'rse,ed->rsd',
                x_RxSxD,
                gathered(self.project_in, dtype, None, None),
                out_sharding=P(BATCH),
            )
        if config.token_types:
            x_RxSxD = x_RxSxD + looked_up(self.type_embedding, jnp.zeros_like(tokens_RxS), dtype)
        if config.positions == 'learned':
            x_RxSxD = x_RxSxD + looked_up(
                self.position_embedding, config.position_offset + positions_RxS, dtype
            )
        return self.embedding_norm(x_RxSxD) if config.embedding_norm else x_RxSxD

    def final_projection(self, h: jax.Array) -> jax.Array:
        """What the last layer made [.., .., D] -> states."""
        h = self.final_norm(h) if self.config.final_norm else h
        if self.config.embedding_width == self.config.width:
            return h
        return jnp.einsum(
            '...d,de->...e',
            h,
            gathered(self.project_out, h.dtype, None, None),
            out_sharding=P(BATCH),
        )

    def _layers_but_last(
        self,
        tokens_RxS: jax.Array,
        segments_RxS: jax.Array,
        positions_RxS: jax.Array,
        keys_RxS: jax.Array | None,
    ) -> jax.Array:
        x_RxSxD = dropout(self.embed(tokens_RxS, positions_RxS), keys_RxS, self.config.dropout, 0)
        kinds = {self.config.local(number) for number in range(self.config.layers - 1)}
        # Of layers of one kind, the mask is made once, before the loop.
        once = self._attend(segments_RxS, *kinds) if len(kinds) == 1 else None

        def attend_in(local: bool | jax.Array, _: None) -> tuple[Attend, tuple]:
            return once or self._attend(segments_RxS, local), ()

        return self.run_layers(x_RxSxD, positions_RxS, keys_RxS, attend_in)[0]

    def run_layers(
        self,
        x_RxSxD: jax.Array,
        positions_RxS: jax.Array,
        keys_RxS: jax.Array | None,
        attend_in: AttendIn,
        layer_inputs: Any = None,
    ) -> tuple[jax.Array, Any]:
        """Runs all layers but the last.

        Args:
          attend_in: called in each layer with whether it is local and its slice of `layer_inputs`;
            returns how the layer attends, and a sequence that this fills with arrays to save.
          layer_inputs: arrays of all layers, [N - 1, ...].

        Returns:
          The residual stream [R, S, D], and the saved arrays of all layers, [N - 1, ...]; None
            where there is one layer.
        """
        inner = self.config.layers - 1
        if not inner:
            return x_RxSxD, None
        kinds = [self.config.local(number) for number in range(inner)]
        mixed = len(set(kinds)) == 2

        @self._remat
        def layer(
            x_RxSxD: jax.Array, layer_slice: tuple[jax.Array, Block, jax.Array | None, Any]
        ) -> tuple[jax.Array, tuple]:
            number, block, is_local, inputs = layer_slice
            local = kinds[0] if is_local is None else is_local
            noise = Noise(keys_RxS, number)
            attend, saved = attend_in(local, inputs)
            a_RxSxHxK = block.mix(x_RxSxD, attend, positions_RxS, local, noise)
            return block.residual_and_feed_forward(x_RxSxD, a_RxSxHxK, noise), tuple(saved)

        are_local = jnp.array(kinds) if mixed else None
        per_layer = jnp.arange(inner), self.blocks, are_local, layer_inputs
        unroll = inner if self.config.layer_loop == 'unroll' else 1
        return jax.lax.scan(layer, x_RxSxD, per_layer, unroll=unroll)

    def _remat(self, function):
        # prevent_cse=False: inside a scan there is nothing to merge with, and the barriers cost
        # time (jax.checkpoint's own advice).
        return (
            jax.checkpoint(function, policy=REMAT[self.config.remat], prevent_cse=False)
            if self.config.remat in REMAT
            else function
        )

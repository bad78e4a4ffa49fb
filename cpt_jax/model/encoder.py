"""The transformer encoder: packed rows of tokens -> one unit vector per text."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from cpt_jax.model.attention import Attend, make_attend
from cpt_jax.model.block import Block, Norm
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.dropout import Noise, dropout
from cpt_jax.model.initializers import normal
from cpt_jax.model.parameter import gather_weight, look_up_rows, make_parameter
from cpt_jax.model.pooling import POOLINGS, normalize, pick
from cpt_jax.model.relative import compute_relative_bias
from cpt_jax.runtime.mesh import BATCH

# Function (is_local, inputs of the layer) -> (attention function, arrays to save); see
# Encoder.run_layers.
MakeLayerAttend = Callable[[bool | jax.Array, Any], tuple[Attend, Sequence[jax.Array]]]

# Activations saved for the backward pass, by the value of `model.remat`; the others are recomputed.
# 'none' saves everything.
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
    """Decorates a function of an Encoder so that it runs with the config's `matmul_precision`."""

    @wraps(function)
    def wrapped(encoder: E, *arguments: Arguments.args, **keywords: Arguments.kwargs) -> T:
        with encoder.config.matmul_precision():
            return function(encoder, *arguments, **keywords)

    return wrapped


def count_without_padding(
    tokens_RxS: jax.Array, positions_RxS: jax.Array, padding_id: int
) -> jax.Array:
    """Returns the position of each token among the tokens of its text that are not `padding_id`.

    A text can contain the padding token, if it spells its name. The result is -1 there.
    """
    if padding_id < 0:
        return positions_RxS
    is_padding_RxS = tokens_RxS == padding_id
    # The padding tokens of the row before each column, and before the text of each column. The
    # counts never fall, so the latest one at the start of a text is the maximum so far.
    before_RxS = jnp.cumsum(is_padding_RxS, axis=1) - is_padding_RxS
    before_text_RxS = jax.lax.cummax(jnp.where(positions_RxS == 0, before_RxS, 0), axis=1)
    return jnp.where(is_padding_RxS, -1, positions_RxS - before_RxS + before_text_RxS)


class Encoder(nnx.Module):
    """A transformer that maps packed rows of tokens to one vector per text."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.adapter_dropout = 0.0  # set by LoRA.add_adapters
        width = (config.width, 'fsdp')
        narrow = (config.embedding_width, 'fsdp')
        self.token_embedding = make_parameter(
            rngs, normal(0.02), (config.table_rows, 'tensor'), narrow
        )
        if config.positions == 'learned':
            self.position_embedding = make_parameter(
                rngs, normal(0.01), (config.position_offset + config.max_length, None), width
            )
        if config.token_types:
            self.type_embedding = make_parameter(
                rngs, normal(0.02), (config.token_types, None), width
            )
        if config.relative_buckets:
            self.relative_bias = make_parameter(
                rngs, normal(0.02), (config.relative_buckets, None), (config.heads, 'tensor')
            )
        if config.embedding_norm:
            self.embedding_norm = Norm(config.norm, config, config.width, rngs)
        if config.embedding_width != config.width:
            self.project_in = make_parameter(
                rngs, normal(0.02), (config.embedding_width, None), width
            )
            self.project_out = make_parameter(
                rngs, normal(0.02), width, (config.embedding_width, None)
            )
        # The last layer is separate from the stack of the others, because it is computed in another
        # way, and slicing the others out of one stack would copy nearly all weights.
        if config.layers > 1:
            self.blocks = Block(config, rngs, (config.layers - 1, None))
        self.last = Block(config, rngs)
        if config.final_norm:
            self.final_norm = Norm(config.norm, config, config.width, rngs)

    @property
    def has_dropout(self) -> bool:
        """Whether the encoder uses dropout in training."""
        return self.config.dropout > 0 or self.adapter_dropout > 0

    def __call__(
        self,
        tokens_RxS: jax.Array,
        segments_RxS: jax.Array,
        positions_RxS: jax.Array,
        eos_BxT: jax.Array,
        keys_RxS: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the unit vectors of texts, float32[B, T, D]: the normalized results of
        `compute_states`.
        """
        return normalize(
            self.compute_states(tokens_RxS, segments_RxS, positions_RxS, eos_BxT, keys_RxS)
        )

    @with_matmul_precision
    def compute_states(
        self,
        tokens_RxS: jax.Array,
        segments_RxS: jax.Array,
        positions_RxS: jax.Array,
        eos_BxT: jax.Array,
        keys_RxS: jax.Array | None = None,
        unpooled: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the pooled state of each text.

        Args:
          tokens_RxS: int32 token ids; rows are split over the mesh's data and fsdp axes.
          segments_RxS: int32, index of each token's text, from 1; 0 is padding. Indices are
            unique within the row, or within all rows of the device if the pooling is 'mean'.
          positions_RxS: int32, position of each token in its text, from 0.
          eos_BxT: int32, position of the closing delimiter of T texts of each of B pairs, as
            row * S + column within the rows of the device that holds the pair.
          keys_RxS: random key of each token, for dropout; None: no dropout.
          unpooled: int32[], number of tokens at the beginning of each text, such as those of its
            prompt, that are neither averaged nor the first token; None: 0.

        Returns:
          float32[B, T, D], by default the state of the last layer at the closing delimiter, after
            the final norm; `config.pooling` can select another state or the mean. For a single
            state, the feed-forward part of the last layer runs only at these positions.
        """
        pooling = POOLINGS[self.config.pooling]
        if pooling.reduce:
            h_RxSxD = self.compute_token_states(tokens_RxS, segments_RxS, positions_RxS, keys_RxS)
            if unpooled is None:
                return pooling.reduce(h_RxSxD, segments_RxS, eos_BxT)
            return pooling.reduce(h_RxSxD, segments_RxS, eos_BxT, positions_RxS >= unpooled)
        x_RxSxD = self._run_layers_but_last(tokens_RxS, segments_RxS, positions_RxS, keys_RxS)
        number = self.config.layers - 1
        is_local = self.config.is_local(number)
        attend = self._make_attend(segments_RxS, is_local)
        pooled_BxT = eos_BxT
        if pooling.is_first_token:
            last_BxT = pick(positions_RxS, eos_BxT)
            pooled_BxT = eos_BxT - last_BxT
            if unpooled is not None:  # a text that is no longer than that keeps its first token
                pooled_BxT += jnp.where(last_BxT >= unpooled, unpooled, 0)
        noise = Noise(keys_RxS, number)
        end_noise = Noise(None if keys_RxS is None else pick(keys_RxS, pooled_BxT), number)

        @self._apply_remat
        def run_last_layer(block: Block, x_RxSxD: jax.Array) -> jax.Array:
            # Gathering the rows of each text is cheap only on a CPU. With a relative bias, they
            # are not gathered: models that have one average all states.
            if self.config.attention == 'blocks' and not self.config.relative_buckets:
                h_RxSxD = block.compute_attention_input(x_RxSxD, number)
                a_BxTxHxK = block.attention.attend_at_text_ends(
                    h_RxSxD, segments_RxS, positions_RxS, pooled_BxT, is_local, noise
                )
            else:
                a_BxTxHxK = pick(
                    block.mix_values(x_RxSxD, attend, positions_RxS, is_local, noise), pooled_BxT
                )
            return block.add_residual_and_feed_forward(
                pick(x_RxSxD, pooled_BxT), a_BxTxHxK, end_noise
            )

        return self.apply_final_projection(run_last_layer(self.last, x_RxSxD)).astype(jnp.float32)

    @with_matmul_precision
    def compute_token_states(
        self,
        tokens_RxS: jax.Array,
        segments_RxS: jax.Array,
        positions_RxS: jax.Array,
        keys_RxS: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the state of every token after the final norm, [R, S, D] in the compute dtype.

        Args:
          tokens_RxS, segments_RxS, positions_RxS, keys_RxS: as in `compute_states`.
        """
        x_RxSxD = self._run_layers_but_last(tokens_RxS, segments_RxS, positions_RxS, keys_RxS)
        number = self.config.layers - 1
        is_local = self.config.is_local(number)
        attend = self._make_attend(segments_RxS, is_local)

        @self._apply_remat
        def run_last_layer(block: Block, x_RxSxD: jax.Array) -> jax.Array:
            noise = Noise(keys_RxS, number)
            return block.add_residual_and_feed_forward(
                x_RxSxD, block.mix_values(x_RxSxD, attend, positions_RxS, is_local, noise), noise
            )

        return self.apply_final_projection(run_last_layer(self.last, x_RxSxD))

    def _make_attend(self, segments_RxS: jax.Array, is_local: bool | jax.Array) -> Attend:
        config = self.config
        bias_HxSxS = None
        if config.relative_buckets:
            bias_HxSxS = compute_relative_bias(self.relative_bias, segments_RxS.shape[1])
        return make_attend(
            segments_RxS, config.causal, config.attention, config.reach, is_local, bias_HxSxS
        )

    def embed(self, tokens_RxS: jax.Array, positions_RxS: jax.Array) -> jax.Array:
        """Returns the embeddings that the first layer reads, [R, S, D] in the compute dtype."""
        config = self.config
        dtype = config.compute_dtype
        x_RxSxD = look_up_rows(self.token_embedding, tokens_RxS, dtype)
        if config.embedding_scale:
            x_RxSxD = x_RxSxD * jnp.asarray(config.width**0.5, dtype)
        if config.embedding_width != config.width:
            x_RxSxD = jnp.einsum(
                'rse,ed->rsd',
                x_RxSxD,
                self._gather(self.project_in, dtype),
                out_sharding=P(BATCH),
            )
        if config.token_types:
            x_RxSxD = x_RxSxD + look_up_rows(self.type_embedding, jnp.zeros_like(tokens_RxS), dtype)
        if config.positions == 'learned':
            x_RxSxD = x_RxSxD + look_up_rows(
                self.position_embedding,
                config.position_offset
                + count_without_padding(tokens_RxS, positions_RxS, config.padding_id),
                dtype,
            )
        return self.embedding_norm(x_RxSxD) if config.embedding_norm else x_RxSxD

    def apply_final_projection(self, h: jax.Array) -> jax.Array:
        """Applies the final norm and the output projection, if any, to [.., .., D]."""
        h = self.final_norm(h) if self.config.final_norm else h
        if self.config.embedding_width == self.config.width:
            return h
        return jnp.einsum(
            '...d,de->...e',
            h,
            self._gather(self.project_out, h.dtype),
            out_sharding=P(BATCH),
        )

    def _gather(self, projection: nnx.Param, dtype: jnp.dtype) -> jax.Array:
        return gather_weight(
            projection, dtype, None, None, sums_in_float32=self.config.sums_in_float32
        )

    def _run_layers_but_last(
        self,
        tokens_RxS: jax.Array,
        segments_RxS: jax.Array,
        positions_RxS: jax.Array,
        keys_RxS: jax.Array | None,
    ) -> jax.Array:
        x_RxSxD = dropout(self.embed(tokens_RxS, positions_RxS), keys_RxS, self.config.dropout, 0)
        kinds = {self.config.is_local(number) for number in range(self.config.layers - 1)}
        # If all layers are of one kind, the mask is computed once, before the loop.
        shared_attend = self._make_attend(segments_RxS, *kinds) if len(kinds) == 1 else None

        def make_layer_attend(is_local: bool | jax.Array, _: None) -> tuple[Attend, tuple]:
            return shared_attend or self._make_attend(segments_RxS, is_local), ()

        return self.run_layers(x_RxSxD, positions_RxS, keys_RxS, make_layer_attend)[0]

    def run_layers(
        self,
        x_RxSxD: jax.Array,
        positions_RxS: jax.Array,
        keys_RxS: jax.Array | None,
        make_layer_attend: MakeLayerAttend,
        layer_inputs: Any = None,
    ) -> tuple[jax.Array, Any]:
        """Runs all layers except the last.

        Args:
          x_RxSxD: residual stream at the input of the first layer.
          positions_RxS, keys_RxS: as in `compute_states`.
          make_layer_attend: function called in each layer with (whether the layer is local, its
            slice of `layer_inputs`). It returns the layer's attention function, and a sequence to
            which that function appends the arrays to save.
          layer_inputs: arrays of all these layers, [L - 1, ...], optional.

        Returns:
          The residual stream [R, S, D], and the saved arrays of all these layers, [L - 1, ...],
            or None for a model of one layer.
        """
        inner = self.config.layers - 1
        if not inner:
            return x_RxSxD, None
        kinds = [self.config.is_local(number) for number in range(inner)]
        has_both_kinds = len(set(kinds)) == 2

        @self._apply_remat
        def run_layer(
            x_RxSxD: jax.Array, layer_slice: tuple[jax.Array, Block, jax.Array | None, Any]
        ) -> tuple[jax.Array, tuple]:
            number, block, scanned_is_local, inputs = layer_slice
            is_local = kinds[0] if scanned_is_local is None else scanned_is_local
            noise = Noise(keys_RxS, number)
            attend, saved = make_layer_attend(is_local, inputs)
            a_RxSxHxK = block.mix_values(x_RxSxD, attend, positions_RxS, is_local, noise)
            return block.add_residual_and_feed_forward(x_RxSxD, a_RxSxHxK, noise), tuple(saved)

        are_local = jnp.array(kinds) if has_both_kinds else None
        per_layer = jnp.arange(inner), self.blocks, are_local, layer_inputs
        unroll = inner if self.config.layer_loop == 'unroll' else 1
        return jax.lax.scan(run_layer, x_RxSxD, per_layer, unroll=unroll)

    def _apply_remat(self, function):
        if self.config.remat not in REMAT:
            return function
        # prevent_cse=False: inside a scan, common subexpressions cannot be merged anyway, and the
        # barriers cost time (see the documentation of jax.checkpoint).
        return jax.checkpoint(function, policy=REMAT[self.config.remat], prevent_cse=False)

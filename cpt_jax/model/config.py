"""Configuration of an encoder: the `model` section of a config."""

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cpt_jax.model.pooling import POOLINGS
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.hardware import has_attention_kernel
from cpt_jax.runtime.mesh import AnyMesh

# The vocabulary is padded to a multiple of this, so that it can be split over a tensor axis of any
# power of two up to this, and fills the lanes of a TPU's matrix unit.
VOCABULARY_MULTIPLE = 128

_CHOICES = {
    'positions': ('learned', 'rotary'),
    'norm': ('layernorm', 'rmsnorm'),
    'norm_place': ('before', 'after', 'both'),
    'activation': ('gelu', 'gelu_exact', 'relu', 'swiglu', 'geglu', 'geglu_exact'),
    'parallel': ('no', 'one norm', 'two norms'),
    'rotary_pairs': ('halves', 'neighbours'),
    'init': ('gpt2', 'passthrough'),
    'remat': ('none', 'dots', 'full'),
    'dtype': ('auto', 'float32', 'bfloat16'),
    'attention': ('auto', 'masked', 'blocks', 'splash', 'cudnn', 'interpreted'),
    'layer_loop': ('auto', 'scan', 'unroll'),
    'gradient_sums': ('compute', 'float32'),
}
# Largest sizes, above which a number is a mistake.
_MAX_SIZE = 10_000_000
_LARGEST = {'layers': 10_000} | dict.fromkeys(
    (
        'width',
        'heads',
        'max_length',
        'kv_heads',
        'head_width',
        'hidden',
        'position_offset',
        'rotary_width',
        'window',
        'embedding_width',
        'token_types',
        'relative_buckets',
    ),
    _MAX_SIZE,
)
# Attention kernels and the platform of each.
_KERNELS = {'splash': 'tpu', 'cudnn': 'gpu'}


class DenseConfig(NamedTuple):
    """The shape of a Dense module, an entry of the config key `model.dense`.

    Attributes:
      width: output dimension.
      has_bias: whether a bias is added.
      activation: 'identity' or 'tanh'.
    """

    width: int
    has_bias: bool
    activation: str


def _make_dense_config(layer: Sequence) -> DenseConfig:
    """Returns an entry of `model.dense`, which JSON gives as a list."""
    try:
        config = DenseConfig(*layer)
        is_valid = 0 < config.width <= _MAX_SIZE and config.activation in ('identity', 'tanh')
    except TypeError:
        is_valid = False
    if not is_valid:
        raise UserError(
            f'model.dense: {layer!r} must be an output dimension, whether there is a bias, and '
            f'identity or tanh'
        )
    return config


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Architecture of an encoder, and how it is computed.

    Fields after `pooling` are set by a pretrained family (model/families), except `freeze_dense`; a
    config sets the others, which configs/base.py describes in more detail.

    Attributes:
      vocab_size: number of token ids.
      width: dimension of the residual stream.
      layers: number of layers.
      heads: query heads of a layer.
      max_length: maximum sequence length in tokens.
      kv_heads: key and value heads of a layer; 0: as many as `heads`.
      head_width: dimension of a head; 0: width / heads.
      hidden: dimension of the feed-forward part; 0: 4 x width, or 8/3 x width for a gated
        activation, which has as many parameters.
      positions: 'learned' (a table of embeddings) or 'rotary'.
      norm: 'layernorm' or 'rmsnorm'.
      norm_epsilon: number added to the variance in a norm.
      activation: activation function of the feed-forward part.
      bias: whether linear layers have biases.
      causal: whether a token attends to earlier tokens only.
      init: initialization: 'gpt2', or 'passthrough' (initializers.py).
      dropout: dropout rate in training.
      remat: activations that the backward pass recomputes: 'none', 'dots' (all but matrix
        products) or 'full'.
      attention: implementation of attention (attention.py).
      dtype: dtype of activations, and of weights where they are used.
      layer_loop: 'scan' compiles one layer for all, 'unroll' every layer.
      gradient_sums: dtype in which the gradients of matrices are added up over devices: 'compute'
        (the compute dtype) or 'float32'.
      pooling: how a text's states become its vector: 'eos' (state at its closing delimiter),
        'first' (state at its first token) or 'mean' (mean over its tokens).
      position_offset: row of position 0 in the position table (OPT: 2).
      padding_id: id that has no position: it uses the row before that of position 0, and later
        tokens of its text are counted without it (RoBERTa); -1: no such id.
      relative_buckets: number of buckets of the distance of two tokens. Each has a bias for each
        head, which all layers add to their attention logits (MPNet); 0: no bias.
      rotary_base: base of the rotary frequencies.
      rotary_scaling: scaling of the rotary frequencies; see rotary.compute_rotary_frequencies.
      rotary_width: dimensions of a head that are rotated, from the first on; 0: all.
      rotary_pairs: dimensions that rotate together: i and i + half ('halves'), or 2 i and 2 i + 1
        ('neighbours').
      norm_place: a norm 'before' attention and feed-forward part, 'after' the residual sum (BERT),
        or 'both': before each part and over its output (Gemma 3).
      norm_bias: whether a LayerNorm has a bias.
      norm_from_one: whether a norm multiplies by 1 + scale, summed in float32 (Gemma).
      first_norm: whether the first layer has a norm before attention (ModernBERT: none, as the
        embeddings have just been normalized).
      parallel: whether the feed-forward part reads the layer's input rather than the output of
        attention: 'no', 'one norm' (GPT-J) or 'two norms' (GPT-NeoX).
      qkv_bias: whether query, key and value projections have biases; None: as `bias`.
      out_bias: whether the output projection of attention has a bias; None: as `bias`.
      down_bias: whether the last matrix of the feed-forward part has a bias; None: as `bias`.
      query_key_norm: whether an RMSNorm is applied to each head's query and key (Qwen3).
      attention_width: attention logits are divided by its square root; 0: head_width.
      local_layers: for each layer, whether it attends within `window` and rotates by
        `local_rotary_base` and `local_rotary_scaling`; (): no layer does.
      window: tokens that a token of a local layer attends to, itself included; if not causal,
        tokens on each side.
      local_rotary_base: rotary_base of local layers.
      local_rotary_scaling: rotary_scaling of local layers.
      final_norm: whether there is a norm after the last layer.
      embedding_norm: whether there is a norm over the sum of all embeddings (BERT).
      embedding_width: dimension of token embeddings and vectors, which a matrix at each end maps
        to and from `width` (OPT 350m); 0: width, without these matrices.
      embedding_scale: whether token embeddings are multiplied by sqrt(width) (Gemma).
      token_types: rows of the token type table, whose first row is added to every token (BERT);
        0: no table.
      tied: whether the output head is the token table; otherwise it is a matrix that is not
        loaded.
      dense: (output dimension, whether it has a bias, 'identity' or 'tanh') of each linear layer
        between pooling and normalization, as in EmbeddingGemma.
      freeze_dense: whether these layers keep their weights in training.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    max_length: int
    kv_heads: int = 0
    head_width: int = 0
    hidden: int = 0
    positions: str = 'learned'
    norm: str = 'layernorm'
    norm_epsilon: float = 1e-5
    activation: str = 'gelu'
    bias: bool = True
    causal: bool = True
    init: str = 'gpt2'
    dropout: float = 0.0
    remat: str = 'full'
    attention: str = 'auto'
    dtype: str = 'auto'
    layer_loop: str = 'auto'
    gradient_sums: str = 'compute'
    pooling: str = 'eos'
    position_offset: int = 0
    padding_id: int = -1
    relative_buckets: int = 0
    rotary_base: float = 10_000.0
    rotary_scaling: tuple[str | float, ...] = ()
    rotary_width: int = 0
    rotary_pairs: str = 'halves'
    norm_place: str = 'before'
    norm_bias: bool = True
    norm_from_one: bool = False
    first_norm: bool = True
    parallel: str = 'no'
    qkv_bias: bool | None = None
    out_bias: bool | None = None
    down_bias: bool | None = None
    query_key_norm: bool = False
    attention_width: float = 0
    local_layers: tuple[bool, ...] = ()
    window: int = 0
    local_rotary_base: float = 10_000.0
    local_rotary_scaling: tuple[str | float, ...] = ()
    final_norm: bool = True
    embedding_norm: bool = False
    embedding_width: int = 0
    embedding_scale: bool = False
    token_types: int = 0
    tied: bool = True
    dense: tuple[DenseConfig, ...] = ()
    freeze_dense: bool = False

    def __post_init__(self):
        choices = {**_CHOICES, 'pooling': tuple(POOLINGS)}
        for key, known in choices.items():
            if getattr(self, key) not in known:
                raise UserError(
                    f'model.{key}={getattr(self, key)!r}: choose one of {", ".join(known)}'
                )
        if not 1 <= self.vocab_size < 2**31:  # ids are int32
            raise UserError(f'tokenizer.vocab_size={self.vocab_size}: must be from 1 to 2^31 - 1')
        for key, most in _LARGEST.items():
            least = 1 if key in ('width', 'layers', 'heads', 'max_length') else 0
            if getattr(self, key) < least:
                raise UserError(f'model.{key}={getattr(self, key)}: must be {least} or more')
            if getattr(self, key) > most:
                raise UserError(f'model.{key}={getattr(self, key)}: must be at most {most:,}')
        if 0 < self.relative_buckets < 4:
            raise UserError(
                f'model.relative_buckets={self.relative_buckets}: must be 0, or 4 or more'
            )
        for key in ('rotary_base', 'local_rotary_base'):
            if not 1 <= getattr(self, key) <= 1e12:
                raise UserError(f'model.{key}={getattr(self, key)}: must be from 1 to 1e12')
        if not 0 <= self.attention_width <= _MAX_SIZE:
            raise UserError(
                f'model.attention_width={self.attention_width}: must be from 0 to {_MAX_SIZE:,}'
            )
        if not 0 <= self.norm_epsilon <= 1:
            raise UserError(f'model.norm_epsilon={self.norm_epsilon}: must be from 0 to 1')
        if not 0 <= self.dropout < 1:
            raise UserError(f'model.dropout={self.dropout}: must be from 0 to less than 1')
        if self.width % self.heads and not self.head_width:
            raise UserError(
                f'model.heads={self.heads} does not divide model.width={self.width}: change one of '
                f'them, or set model.head_width'
            )
        derived = {
            'kv_heads': self.kv_heads or self.heads,
            'head_width': self.head_width or self.width // self.heads,
            'hidden': self.hidden
            or (-(-8 * self.width // 3 // 64) * 64 if self.is_gated else 4 * self.width),
            'embedding_width': self.embedding_width or self.width,
            'qkv_bias': self.bias if self.qkv_bias is None else self.qkv_bias,
            'out_bias': self.bias if self.out_bias is None else self.out_bias,
            'down_bias': self.bias if self.down_bias is None else self.down_bias,
            # JSON gives lists for the rest.
            'rotary_scaling': tuple(self.rotary_scaling),
            'local_rotary_scaling': tuple(self.local_rotary_scaling),
            'local_layers': tuple(map(bool, self.local_layers)),
            'dense': tuple(map(_make_dense_config, self.dense)),
        }
        for key, value in derived.items():
            object.__setattr__(self, key, value)
        if self.heads % self.kv_heads:
            raise UserError(
                f'model.kv_heads={self.kv_heads} does not divide model.heads={self.heads}'
            )
        object.__setattr__(self, 'rotary_width', self.rotary_width or self.head_width)
        if self.positions == 'rotary' and self.rotary_width % 2:
            raise UserError(
                f'model.head_width={self.rotary_width} is odd: rotary positions rotate pairs of '
                f'dimensions, so it must be even'
            )
        if self.local_layers and len(self.local_layers) != self.layers:
            raise UserError(
                f'model.local_layers has {len(self.local_layers)} entries, but '
                f'model.layers={self.layers}'
            )
        if self.freeze_dense and not self.dense:
            raise UserError(
                'model.freeze_dense: there are no Dense modules (with delimiters, those of '
                'init_from are left out); remove it, or start from a model that has some'
            )
        if self.relative_buckets and self.attention in ('splash', 'cudnn', 'interpreted'):
            raise UserError(
                f'model.attention={self.attention} has no relative position bias, which this model '
                f'needs: set model.attention to auto, masked or blocks'
            )
        if any(self.local_layers) and self.window < 1:
            raise UserError(f'model.window={self.window}: must be 1 or more if a layer is local')

    def check_mesh(self, mesh: AnyMesh) -> None:
        """Raises UserError if the mesh's fsdp or tensor axis does not divide the dimensions that
        are split over it.
        """
        split = {
            'fsdp': {'model.width': self.width},
            'tensor': {
                'model.heads': self.heads,
                'model.kv_heads': self.kv_heads,
                'model.hidden': self.hidden,
                'vocabulary': self.table_rows,
            },
        }
        for axis, sizes in split.items():
            for key, size in sizes.items():
                if size % mesh.shape[axis]:
                    raise UserError(f'mesh.{axis}={mesh.shape[axis]} does not divide {key}={size}')

    def resolve_for(self, device: jax.Device, platform: str = '') -> 'EncoderConfig':
        """Returns this config with every 'auto' resolved for a device; see `resolve_auto`.

        Args:
          device: a device of the mesh.
          platform: platform to use in place of the device's, if not empty.
        """
        return self.resolve_auto(platform or device.platform, has_attention_kernel(device))

    def resolve_auto(self, platform: str, has_kernel: bool = True) -> 'EncoderConfig':
        """Returns this config with every 'auto' resolved for a platform.

        GPUs and TPUs get bfloat16 and an attention kernel. XLA:CPU runs the body of a scan at about
        half the speed of unrolled code, so layers are unrolled on a CPU; elsewhere a scan keeps the
        compile time independent of the depth.

        Args:
          platform: 'cpu', 'gpu' or 'tpu'.
          has_kernel: whether the platform's attention kernel runs on the device; see
            `has_attention_kernel`.

        Raises:
          UserError: the attention kernel does not run on the platform, or not with these sizes.
        """
        dtype = self.dtype
        if dtype == 'auto':
            dtype = 'float32' if platform == 'cpu' else 'bfloat16'
        loop = self.layer_loop
        if loop == 'auto':
            loop = 'unroll' if platform == 'cpu' else 'scan'
        attention = self.attention
        if attention == 'auto':
            attention = 'masked'
            if has_kernel:
                attention = self._choose_attention(platform, dtype)
        if attention in _KERNELS and _KERNELS[attention] != platform:
            raise UserError(
                f'model.attention={attention} is a kernel for {_KERNELS[attention].upper()}s: set '
                f'model.attention to auto or masked'
            )
        if attention in _KERNELS and not has_kernel:
            raise UserError(
                f'model.attention={attention} does not run on this device: it needs TPU v4 or an '
                f'Ampere GPU, or newer; set model.attention to auto or masked'
            )
        if attention == 'cudnn' and not self._supports_cudnn(dtype):
            raise UserError(
                f'model.attention=cudnn needs model.dtype=bfloat16 and model.head_width of 8, 16, '
                f'... or 128, not {dtype} and {self.head_width}'
            )
        return dataclasses.replace(self, dtype=dtype, layer_loop=loop, attention=attention)

    def _choose_attention(self, platform: str, dtype: str) -> str:
        if platform == 'cpu':
            return 'blocks'
        if self.relative_buckets:
            return 'masked'
        if platform == 'gpu':
            return 'cudnn' if self._supports_cudnn(dtype) else 'masked'
        return 'splash'

    def _supports_cudnn(self, dtype: str) -> bool:
        return dtype == 'bfloat16' and self.head_width % 8 == 0 and self.head_width <= 128

    @property
    def compute_dtype(self) -> jnp.dtype:
        """dtype of activations, and of weights where they are used."""
        return jnp.dtype('float32' if self.dtype == 'auto' else self.dtype)

    @property
    def sums_in_float32(self) -> bool:
        """Whether gradients of matrices are added up over devices in float32."""
        return self.gradient_sums == 'float32'

    def matmul_precision(self) -> AbstractContextManager[None]:
        """Returns a context in which matrix products are true float32 if that is the compute dtype.

        By default, TPUs multiply float32 in one pass of bfloat16, and GPUs in TF32. For bfloat16
        nothing is set, because kernels reject a precision there.
        """
        if self.compute_dtype == jnp.float32:
            return jax.default_matmul_precision('highest')
        return nullcontext()

    @property
    def vector_width(self) -> int:
        """Dimension of the vectors, after the Dense modules."""
        return self.dense[-1].width if self.dense else self.embedding_width

    @property
    def can_fold_keys(self) -> bool:
        """Whether the key matrix can be folded into the query: no other operation follows it."""
        return self.positions != 'rotary' and not self.query_key_norm

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward part has a gate (a third matrix)."""
        return self.activation in ('swiglu', 'geglu', 'geglu_exact')

    @property
    def reach(self) -> int:
        """Maximum distance, in tokens, to which a token of a local layer attends.

        A causal window includes the token itself; otherwise the window applies to each side.
        """
        return self.window - 1 if self.causal else self.window

    def is_local(self, layer: int) -> bool:
        """Returns whether the layer with this index is local."""
        return bool(self.local_layers) and self.local_layers[layer]

    @property
    def table_rows(self) -> int:
        """Number of rows of the token table: the vocabulary size, padded."""
        return -(-self.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

"""The sizes and choices of an encoder: the `model` section of a config."""

import dataclasses
from contextlib import AbstractContextManager, nullcontext

import jax
import jax.numpy as jnp

from cpt_jax.errors import UserError

# So that a vocabulary shards over a tensor axis of any power of two up to this, and fills the lanes of a matrix unit.
VOCABULARY_MULTIPLE = 128

_CHOICES = {
    'positions': ('learned', 'rotary'),
    'norm': ('layernorm', 'rmsnorm'),
    'norm_place': ('before', 'after', 'both'),
    'activation': ('gelu', 'gelu_exact', 'relu', 'swiglu', 'geglu', 'geglu_exact'),
    'parallel': ('no', 'one norm', 'two norms'),
    'rotary_pairs': ('halves', 'neighbours'),
    'pooling': ('eos', 'first', 'mean'),
    'init': ('gpt2', 'passthrough'),
    'remat': ('none', 'dots', 'full'),
    'dtype': ('auto', 'float32', 'bfloat16'),
    'attention': ('auto', 'masked', 'blocks', 'splash', 'cudnn', 'interpreted'),
    'layer_loop': ('auto', 'scan', 'unroll'),
}
# Attention kernels, and the platform of each.
_KERNELS = {'splash': 'tpu', 'cudnn': 'gpu'}


@dataclasses.dataclass(frozen=True)
class Shape:
    """Everything that decides which parameters an encoder has and what it computes.

    Attributes: configs/base.py comments those that a config chooses. `kv_heads`, `head_width` and `hidden` may be 0: heads,
    width / heads, and the family's usual multiple of the width (8/3 for gated forms: as many parameters as 4 for the others). Those
    from `pooling` on come with a pretrained family (model/families):

      pooling: which state is a text's vector: the one at its closing delimiter, at its first token, or the mean of all.
      position_offset: rows of the position table before that of position 0 (OPT: 2).
      rotary_base, rotary_scaling: frequencies of rotary positions; see rotary.rotary_frequencies.
      rotary_width: units of a head that turn, from the first; 0: all.
      rotary_pairs: unit i turns with i + half ('halves') or 2 i with 2 i + 1 ('neighbours').
      norm_place: a norm before each half of a layer, or after it, over the residual sum (BERT); 'both': one before each half, and one over
        what it adds to the residual stream (Gemma 3).
      norm_bias: of LayerNorms.
      norm_from_one: a norm's scale is what is stored and 1, a sum in float32 (Gemma).
      first_norm: one before the first layer's attention (ModernBERT has none there: its embeddings' norm has just been).
      parallel: both halves of a layer read its input (GPT-NeoX: two norms, GPT-J: one).
      qkv_bias, out_bias: of attention; None: as `bias`, which is that of the feed-forward part.
      query_key_norm: an RMSNorm over each head's query and key (Qwen3).
      attention_width: products of queries and keys are divided by its square root; 0: head_width.
      local_layers: of each layer, whether it is local: its tokens see no further than `reach`, and turn by `local_rotary_base` and
        `local_rotary_scaling`; () where none is.
      window: tokens that a token of a local layer sees, itself the last of them; where attention is not causal, so many on each side.
      final_norm: one after the last layer.
      embedding_norm: one over the sum of all embeddings (BERT).
      embedding_width: of tokens' embeddings and of the vectors, where a matrix at each end leads to the width (OPT 350m); 0: the width.
      embedding_scale: tokens' embeddings count sqrt(width) times (Gemma).
      token_types: rows of a table whose first is added to every token (BERT's segments).
      tied: the scores of the next token come from the token table; False: from a matrix of its own, which is not loaded.
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
    pooling: str = 'eos'
    position_offset: int = 0
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

    def __post_init__(self):
        for key, known in _CHOICES.items():
            if getattr(self, key) not in known:
                raise UserError(f'model.{key}={getattr(self, key)!r}: choose one of {", ".join(known)}')
        for key in ('width', 'layers', 'heads', 'max_length'):
            if getattr(self, key) < 1:
                raise UserError(f'model.{key}={getattr(self, key)}: must be 1 or more')
        if not 0 <= self.dropout < 1:
            raise UserError(f'model.dropout={self.dropout}: a share, 0 or more and less than 1')
        if self.width % self.heads and not self.head_width:
            raise UserError(f'model.heads={self.heads} does not divide model.width={self.width}: set model.head_width')
        derived = {
            'kv_heads': self.kv_heads or self.heads,
            'head_width': self.head_width or self.width // self.heads,
            'hidden': self.hidden or (-(-8 * self.width // 3 // 64) * 64 if self.gated else 4 * self.width),
            'embedding_width': self.embedding_width or self.width,
            'qkv_bias': self.bias if self.qkv_bias is None else self.qkv_bias,
            'out_bias': self.bias if self.out_bias is None else self.out_bias,
            'rotary_scaling': tuple(self.rotary_scaling),  # a list where it comes from JSON, as the two below
            'local_rotary_scaling': tuple(self.local_rotary_scaling),
            'local_layers': tuple(map(bool, self.local_layers)),
        }
        for key, value in derived.items():
            object.__setattr__(self, key, value)
        if self.heads % self.kv_heads:
            raise UserError(f'model.kv_heads={self.kv_heads} does not divide model.heads={self.heads}')
        object.__setattr__(self, 'rotary_width', self.rotary_width or self.head_width)
        if self.positions == 'rotary' and self.rotary_width % 2:
            raise UserError(f'model.head_width={self.rotary_width} is odd: rotary positions turn pairs of units')
        if self.local_layers and len(self.local_layers) != self.layers:
            raise UserError(f'model.local_layers tells of {len(self.local_layers)} layers, and model.layers={self.layers}')
        if any(self.local_layers) and self.window < 1:
            raise UserError(f'model.window={self.window}: must be 1 or more where a layer is local')

    def check_mesh(self, mesh: jax.sharding.Mesh) -> None:
        """Raises UserError if the mesh's fsdp or tensor axis does not divide what is split over it."""
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

    def on(self, platform: str) -> 'Shape':
        """The same with 'auto' decided for 'cpu', 'gpu' or 'tpu'.

        bfloat16 where there is hardware for it, the attention kernel where there is one. XLA:CPU runs the body of a scan at about half
        the speed of straight code; elsewhere a scan compiles in a time that does not grow with the depth.
        """
        dtype = ('float32' if platform == 'cpu' else 'bfloat16') if self.dtype == 'auto' else self.dtype
        loop = ('unroll' if platform == 'cpu' else 'scan') if self.layer_loop == 'auto' else self.layer_loop
        attention = self._attention_on(platform, dtype) if self.attention == 'auto' else self.attention
        if attention in _KERNELS and _KERNELS[attention] != platform:
            raise UserError(f'model.attention={attention} is a kernel for {_KERNELS[attention].upper()}s: set auto or masked')
        if attention == 'cudnn' and not self._cudnn_takes(dtype):
            raise UserError(f'model.attention=cudnn needs bfloat16 and heads of 8, 16, ... 128 units, not {dtype} and {self.head_width}')
        return dataclasses.replace(self, dtype=dtype, layer_loop=loop, attention=attention)

    def _attention_on(self, platform: str, dtype: str) -> str:
        if platform == 'gpu':
            return 'cudnn' if self._cudnn_takes(dtype) else 'masked'
        return 'splash' if platform == 'tpu' else 'blocks'

    def _cudnn_takes(self, dtype: str) -> bool:
        return dtype == 'bfloat16' and self.head_width % 8 == 0 and self.head_width <= 128

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The dtype of activations and of weights where they are used."""
        return jnp.dtype('float32' if self.dtype == 'auto' else self.dtype)

    def precision(self) -> AbstractContextManager[None]:
        """Within it matrix products are in float32 where that is the compute dtype.

        Where nothing is said TPUs multiply float32 in one pass of bfloat16, and GPUs in TF32. Not of bfloat16: kernels refuse it.
        """
        return jax.default_matmul_precision('highest') if self.compute_dtype == jnp.float32 else nullcontext()

    @property
    def folds_keys(self) -> bool:
        """Whether a query can be compared with what a key is made of, as nothing but a matrix stands between."""
        return self.positions != 'rotary' and not self.query_key_norm

    @property
    def gated(self) -> bool:
        """Whether the feed-forward part has a third matrix."""
        return self.activation in ('swiglu', 'geglu', 'geglu_exact')

    @property
    def reach(self) -> int:
        """How many tokens away, to either side, a token of a local layer sees. A causal window counts the token itself."""
        return self.window - 1 if self.causal else self.window

    def local(self, layer: int) -> bool:
        """Whether a layer is local."""
        return bool(self.local_layers) and self.local_layers[layer]

    @property
    def table_rows(self) -> int:
        """Rows of the token table: the vocabulary, padded."""
        return -(-self.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

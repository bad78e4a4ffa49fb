"""LoRA (arXiv 2106.09685) and QLoRA (arXiv 2305.14314): low-rank adapters on frozen weights."""

import dataclasses
import math
from typing import NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from cpt_jax.model.adapters.nf4 import BLOCK, NF4, Int8, QuantizedMatrix, quantize_stack
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.dropout import Noise, dropout
from cpt_jax.model.initializers import Initializer, constant
from cpt_jax.model.parameter import Frozen, gather_weight, is_variable, make_parameter
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import BATCH, AnyMesh, get_mesh

# Name of a matrix of a layer -> (submodule that contains it, number of its input axes).
MATRICES = {
    'query': ('attention', 1),
    'key': ('attention', 1),
    'value': ('attention', 1),
    'out': ('attention', 2),
    'up': ('feed_forward', 1),
    'gate': ('feed_forward', 1),
    'down': ('feed_forward', 1),
}
# Size of an array axis, and the mesh axis that splits it.
Axis = tuple[int, str | None]
_CODE_CLASSES = {'nf4': NF4, 'int8': Int8}
BASES = ('float32', 'bfloat16', *_CODE_CLASSES)
# Dropout sites of adapters start here, above all sites of the layers (model/block.py).
_FIRST_ADAPTER_SITE = 1 << 20


class AdaptableEncoder(Protocol):
    """An Encoder; encoder.py imports this file, so the class itself cannot be imported here."""

    config: EncoderConfig
    adapter_dropout: float


MAX_RANK = 100_000  # a larger number is a mistake
E = TypeVar('E', bound=AdaptableEncoder)


@dataclasses.dataclass(frozen=True)
class LoRA:
    """The `lora` section of a config; configs/base.py describes each key."""

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.05
    targets: tuple[str, ...] = tuple(MATRICES)
    base: str = 'float32'

    def __post_init__(self):
        object.__setattr__(self, 'targets', tuple(self.targets))  # JSON gives a list
        if self.rank < 0:
            raise UserError(
                f'lora.rank={self.rank}: must be 0 (no LoRA: all parameters are trained) or more'
            )
        if self.rank > MAX_RANK:
            raise UserError(f'lora.rank={self.rank}: must be at most {MAX_RANK:,}')
        if not 0 < self.alpha < math.inf:
            raise UserError(f'lora.alpha={self.alpha}: must be greater than 0')
        if not 0 <= self.dropout < 1:
            raise UserError(f'lora.dropout={self.dropout}: must be from 0 to less than 1')
        unknown = [name for name in self.targets if name not in MATRICES]
        if unknown or not self.targets:
            raise UserError(
                f'lora.targets={list(self.targets)}: choose one or more of {", ".join(MATRICES)}'
            )
        if self.base not in BASES:
            raise UserError(f'lora.base={self.base!r}: choose one of {", ".join(BASES)}')
        if not self.rank and self.base != 'float32':
            raise UserError(
                f'lora.base={self.base} with lora.rank=0: without LoRA all parameters are trained '
                f'in float32; set lora.rank to 1 or more, or lora.base=float32'
            )

    @property
    def is_quantized(self) -> bool:
        """Whether the matrices of the layers are stored as codes and dequantized at each use."""
        return self.base in _CODE_CLASSES

    def check(self, config: EncoderConfig, mesh: AnyMesh) -> None:
        """Raises UserError if the model has none of the target matrices, or if its quantized
        weights cannot be split over the mesh.
        """
        if not self.rank:
            return
        if not any(_has_matrix(config, name) for name in self.targets):
            raise UserError(
                f'lora.targets={list(self.targets)}: a model with '
                f'model.activation={config.activation} has none of these matrices'
            )
        if self.is_quantized and config.remat == 'none':
            raise UserError(
                f'lora.base={self.base} with model.remat=none would keep the decoded weights of '
                f'every layer: set model.remat to dots or full'
            )
        if self.base == 'nf4':
            for key, inputs, axis in [
                ('model.width', config.width, 'fsdp'),
                ('model.hidden', config.hidden, 'tensor'),
                ('model.heads x model.head_width', config.heads * config.head_width, 'tensor'),
            ]:
                parts = mesh.shape[axis]
                if inputs % BLOCK:
                    raise UserError(
                        f'lora.base=nf4 has blocks of {BLOCK} inputs, but {key}={inputs} is not a '
                        f'multiple of {BLOCK}: set lora.base to bfloat16 or int8'
                    )
                if inputs // BLOCK % parts:
                    raise UserError(
                        f'lora.base=nf4: {inputs // BLOCK} blocks of {BLOCK} inputs '
                        f'({key}={inputs}) cannot be split over mesh.{axis}={parts}; set '
                        f'mesh.{axis}={math.gcd(inputs // BLOCK, parts)} and mesh.data=-1'
                    )

    def add_adapters(self, encoder: E, rngs: nnx.Rngs) -> E:
        """Returns a frozen Encoder (see `freeze`) with new adapters, whose output is still 0."""
        adapted = self.freeze(encoder)
        adapted.adapter_dropout = self.dropout
        stacks = ('blocks', 'last') if encoder.config.layers > 1 else ('last',)
        for stack in stacks:
            for name in self.targets:
                if _has_matrix(encoder.config, name):
                    part, inputs = MATRICES[name]
                    weight = jax.typeof(getattr(getattr(getattr(encoder, stack), part), name)[...])
                    axes = list(zip(weight.shape, weight.sharding.spec, strict=True))
                    # [layers of the stack, *inputs, *outputs]
                    layers = axes[:-3] if part == 'attention' else axes[:-2]
                    axes = axes[len(layers) :]
                    adapter = LowRankAdapter(self, axes[:inputs], axes[inputs:], rngs, *layers)
                    setattr(getattr(getattr(adapted, stack), part), f'{name}_adapter', adapter)
        return adapted

    def freeze(self, encoder: E) -> E:
        """Returns an Encoder with all variables frozen by `freeze_weight`."""

        def freeze_variable(path: tuple, weight: nnx.Variable) -> nnx.Variable | QuantizedMatrix:
            return self.freeze_weight(
                jax.tree_util.keystr(path, simple=True, separator='.'), weight[...]
            )

        return jax.tree_util.tree_map_with_path(freeze_variable, encoder, is_leaf=is_variable)

    def freeze_weight(self, path: str, weight: jax.Array) -> Frozen | QuantizedMatrix:
        """Returns the frozen form of a weight.

        With `base` 'nf4' or 'int8', only the matrices of the layers become codes; embeddings, norms
        and biases stay float32, as in the PromptEOL code. With 'bfloat16', the matrices of the
        layers and the embeddings are bfloat16.

        Args:
          path: name of the weight, such as 'blocks.attention.query'; 'blocks.' is a stack of
            layers, 'last.' a single layer.
          weight: its value.
        """
        stack = path.partition('.')[0]
        name = path.rpartition('.')[2]
        is_layer_matrix = name in MATRICES and stack in ('blocks', 'last')
        if is_layer_matrix and self.base in _CODE_CLASSES:
            kind, inputs = _CODE_CLASSES[self.base], MATRICES[name][1]
            return (
                quantize_stack(kind, weight, inputs) if stack == 'blocks' else kind(weight, inputs)
            )
        is_bfloat16 = self.base == 'bfloat16' and (
            is_layer_matrix or 'embedding' in name or name.startswith('project_')
        )
        return Frozen(weight.astype(jnp.bfloat16 if is_bfloat16 else jnp.float32))


class LowRankAdapter(nnx.Module):
    """The low-rank term of a linear layer: scale * B(A(dropout(h))), initialized as in PEFT.

    Attributes:
      lora_a: float32[*inputs, r], initialized uniformly within 1 / sqrt(number of inputs) (torch's
        kaiming_uniform_ with a = sqrt(5)).
      lora_b: float32[r, *outputs], initialized to 0.
      scale: alpha / r.
      dropout: dropout rate of the inputs in training.
    """

    def __init__(
        self, lora: LoRA, inputs: list[Axis], outputs: list[Axis], rngs: nnx.Rngs, *stack: Axis
    ):
        self.scale = lora.alpha / lora.rank
        self.dropout = lora.dropout
        bound = math.prod(size for size, _ in inputs) ** -0.5
        a_axes = *stack, *inputs, _make_rank_axis(lora.rank, inputs)
        b_axes = *stack, _make_rank_axis(lora.rank, outputs), *outputs
        self.lora_a = make_parameter(rngs, uniform(bound), *a_axes)
        self.lora_b = make_parameter(rngs, constant(0.0), *b_axes)

    def __call__(
        self,
        form: str,
        h: jax.Array,
        spec: tuple[str | None, ...],
        out_sharding: P,
        site: int | jax.Array,
        noise: Noise | None,
    ) -> jax.Array:
        """Returns the term to add to einsum(form, h, weight).

        The arguments are those of `multiply_with_adapter`, and `site`, the index of the matrix in
        MATRICES.
        """
        # For 'rsd,dhk->rshk': inputs 'd', outputs 'hk', batch 'rs', and the rank is 'z'. Then
        # rsd,dz->rsz and rsz,zhk->rshk.
        left, weight, out = form.replace('->', ',').split(',')
        inputs = [letter for letter in weight if letter in left]
        outputs = [letter for letter in weight if letter not in left]
        batch = left.removesuffix(''.join(inputs))
        axes = dict(zip(weight, spec, strict=True))
        a = gather_weight(self.lora_a, h.dtype, *(axes[letter] for letter in inputs), None)
        b = gather_weight(self.lora_b, h.dtype, None, *(axes[letter] for letter in outputs))
        if noise is not None:
            site = _FIRST_ADAPTER_SITE + len(MATRICES) * noise.layer + site
            h = dropout(h, noise.keys, self.dropout, site)
        low = jnp.einsum(f'{left},{"".join(inputs)}z->{batch}z', h, a, out_sharding=P(BATCH))
        return self.scale * jnp.einsum(
            f'{batch}z,z{"".join(outputs)}->{out}', low, b, out_sharding=out_sharding
        )


def has_adapter(module: nnx.Module, name: str) -> bool:
    """Returns whether the weight `name` of a module has an adapter."""
    return hasattr(module, f'{name}_adapter')


class AdaptableModule(Protocol):
    """A module with weights that may have adapters.

    Attributes:
      config: config of the encoder.
    """

    config: EncoderConfig


def multiply_with_adapter(
    module: AdaptableModule,
    name: str,
    form: str,
    h: jax.Array,
    spec: tuple[str | None, ...],
    out_sharding: P,
    noise: Noise | None = None,
) -> jax.Array:
    """Returns einsum(form, h, weight), plus the term of the weight's adapter if it has one.

    Args:
      module: module with a weight `name` [*inputs, *outputs], and optionally `<name>_adapter`.
      form: einsum formula; the inputs are the last axes of h and the first of the weight.
      spec: mesh axis of each axis of the gathered weight.
      noise: source of the adapter's dropout; None: no dropout.
    """
    weight = gather_weight(
        getattr(module, name),
        h.dtype,
        *spec,
        sums_in_float32=module.config.sums_in_float32,
    )
    out = jnp.einsum(form, h, weight, out_sharding=out_sharding)
    adapter = getattr(module, f'{name}_adapter', None)
    if adapter is None:
        return out
    return out + adapter(form, h, spec, out_sharding, list(MATRICES).index(name), noise)


def uniform(bound: float) -> Initializer:
    """Returns an initializer of independent values, uniform from -bound to bound."""

    def init(
        key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, out_sharding: P
    ) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound, out_sharding=out_sharding)

    return init


class MergeableWeight(NamedTuple):
    """A weight of an encoder, on devices of this process, and its adapter.

    Attributes:
      weight: float[*inputs, *outputs], or a stack of layers with one more leading axis.
      low: the matrices (A, B) of its adapter; None if it has none.
      scale: what the product of A and B is multiplied by.
      inputs: number of input axes.
    """

    weight: jax.Array
    low: tuple[jax.Array, jax.Array] | None = None
    scale: float = 1.0
    inputs: int = 1

    def merge(self) -> np.ndarray:
        """Returns the weight on the host, with its adapter merged into it.

        The result is float32 if the weight has an adapter or is stored as codes; otherwise it keeps
        the dtype of the weight.
        """
        array = np.asarray(jax.device_get(self.weight))
        if self.low is None:
            return array
        a, b = (np.asarray(jax.device_get(matrix)) for matrix in self.low)
        layers, rank = a.shape[: -1 - self.inputs], a.shape[-1]
        delta = a.reshape(*layers, -1, rank) @ b.reshape(*layers, rank, -1)
        return array.astype(np.float32) + np.float32(self.scale) * delta.reshape(array.shape)


def collect_weight(module: nnx.Module, name: str, layer: int | None = None) -> MergeableWeight:
    """Returns a weight of a module and its adapter, gathered if other processes hold parts of them.

    All processes must make the same calls.

    Args:
      module: module with the weight.
      name: name of the weight.
      layer: index of the layer to take from a stack of layers; None: the whole array.
    """
    weight = _gather(getattr(module, name), layer)
    adapter = getattr(module, f'{name}_adapter', None)
    if adapter is None:
        return MergeableWeight(weight)
    low = _gather(adapter.lora_a, layer), _gather(adapter.lora_b, layer)
    return MergeableWeight(weight, low, adapter.scale, MATRICES[name][1])


def merge_adapter(module: nnx.Module, name: str) -> np.ndarray:
    """Returns a weight of a module on the host; see `MergeableWeight.merge`."""
    return collect_weight(module, name).merge()


def count_weights(module: nnx.Module, name: str) -> int:
    """Returns the number of elements of a weight that is not in a stack of layers."""
    weight = getattr(module, name)
    if isinstance(weight, QuantizedMatrix):
        return math.prod((*weight.inputs, *weight.outputs))
    return weight[...].size


def _gather(weight: nnx.Variable | QuantizedMatrix, layer: int | None) -> jax.Array:
    """Returns an array of which this process has all elements."""
    if isinstance(weight, QuantizedMatrix):
        with jax.set_mesh(get_mesh(weight.codes[...])):
            return _take_layer(weight, layer)
    array = weight[...]
    if layer is None and array.is_fully_addressable:
        return array
    with jax.set_mesh(get_mesh(array)):
        return _take_layer(array, layer)


@jax.jit
def _take_layer(stored: jax.Array | QuantizedMatrix, layer: int | None) -> jax.Array:
    """Returns a layer, or the whole array, in floating point on every device."""
    if layer is not None:
        stored = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), stored
        )
    array = stored.dequantize() if isinstance(stored, QuantizedMatrix) else stored
    return jax.reshard(array, P(*[None] * array.ndim))


def _make_rank_axis(rank: int, others: list[Axis]) -> Axis:
    """Returns the axis between A and B.

    It is split over fsdp if that divides the rank and no other axis of the matrix is split over
    fsdp.
    """
    parts = jax.sharding.get_abstract_mesh().shape.get('fsdp', 1)
    can_split = rank % parts == 0 and all(axis != 'fsdp' for _, axis in others)
    return rank, 'fsdp' if can_split else None


def _has_matrix(config: EncoderConfig, name: str) -> bool:
    return name != 'gate' or config.is_gated

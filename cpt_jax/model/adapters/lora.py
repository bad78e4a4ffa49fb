"""LoRA (arXiv 2106.09685) and QLoRA (2305.14314): small matrices are trained beside frozen ones."""

import dataclasses
import math
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from cpt_jax.model.adapters.nf4 import BLOCK, NF4, Codes, Int8, stack_of
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.dropout import Noise, dropout
from cpt_jax.model.initializers import Initializer, constant
from cpt_jax.model.parameter import Frozen, gathered, is_variable, parameter
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import BATCH, AnyMesh, mesh_of

# A layer's matrices: the part that each is in, and how many of its axes are inputs.
MATRICES = {
    'query': ('attention', 1),
    'key': ('attention', 1),
    'value': ('attention', 1),
    'out': ('attention', 2),
    'up': ('feed_forward', 1),
    'gate': ('feed_forward', 1),
    'down': ('feed_forward', 1),
}
# Size, and the mesh axis that it lies over.
Axis = tuple[int, str | None]
_CODES = {'nf4': NF4, 'int8': Int8}
BASES = ('float32', 'bfloat16', *_CODES)
# Adapters' dropout draws at sites of its own, behind all of the layers themselves
# (model/block.py).
_SITES = 1 << 20


class Adaptable(Protocol):
    """What adapters are put into: an Encoder, which this file cannot import (it imports this)."""

    config: EncoderConfig
    adapter_dropout: float


E = TypeVar('E', bound=Adaptable)


@dataclasses.dataclass(frozen=True)
class LoRA:
    """The `lora` section; configs/base.py comments each key."""

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.05
    targets: tuple[str, ...] = tuple(MATRICES)
    base: str = 'float32'

    def __post_init__(self):
        object.__setattr__(self, 'targets', tuple(self.targets))  # a list where it comes from JSON
        if self.rank < 0:
            raise UserError(
                f'lora.rank={self.rank}: must be 0 (all parameters are trained) or more'
            )
        if self.alpha <= 0:
            raise UserError(f'lora.alpha={self.alpha}: must be over 0')
        if not 0 <= self.dropout < 1:
            raise UserError(f'lora.dropout={self.dropout}: a share, 0 or more and less than 1')
        unknown = [name for name in self.targets if name not in MATRICES]
        if unknown or not self.targets:
            raise UserError(
                f'lora.targets={list(self.targets)}: choose one or more of {", ".join(MATRICES)}'
            )
        if self.base not in BASES:
            raise UserError(f'lora.base={self.base!r}: choose one of {", ".join(BASES)}')
        if not self.rank and self.base != 'float32':
            raise UserError(
                f'lora.base={self.base} with lora.rank=0: parameters that are trained are '
                f'float32; set lora.rank'
            )

    @property
    def keeps_codes(self) -> bool:
        """Whether the layers' matrices are kept as codes, and floats are made of them again and
        again.
        """
        return self.base in _CODES

    def check(self, config: EncoderConfig, mesh: AnyMesh) -> None:
        """Raises UserError if a model cannot be adapted so, or its codes cannot be split over a
        mesh.
        """
        if not self.rank:
            return
        if not any(_has(config, name) for name in self.targets):
            raise UserError(
                f'lora.targets={list(self.targets)}: model.activation={config.activation} has none '
                f'of them'
            )
        if self.keeps_codes and config.remat == 'none':
            raise UserError(
                f'lora.base={self.base} with model.remat=none would keep the floats of every '
                f'layer: set dots or full'
            )
        if self.base == 'nf4':
            heads = 'model.heads x model.head_width', config.heads * config.head_width, 'tensor'
            for key, inputs, axis in [
                ('model.width', config.width, 'fsdp'),
                ('model.hidden', config.hidden, 'tensor'),
                heads,
            ]:
                parts = mesh.shape[axis]
                if inputs % BLOCK:
                    raise UserError(
                        f'lora.base=nf4 has blocks of {BLOCK} inputs: {key}={inputs} is no '
                        f'multiple; use bfloat16 or int8'
                    )
                if inputs // BLOCK % parts:
                    raise UserError(
                        f'lora.base=nf4: {inputs // BLOCK} blocks of {BLOCK} inputs '
                        f'({key}={inputs}) cannot be split over mesh.{axis}={parts}; set '
                        f'mesh.{axis}={math.gcd(inputs // BLOCK, parts)} and mesh.data=-1'
                    )

    def adapted(self, encoder: E, rngs: nnx.Rngs) -> E:
        """An Encoder with everything frozen as `base` says and with fresh adapters, which add
        nothing yet.
        """
        adapted = self.frozen(encoder)
        adapted.adapter_dropout = self.dropout
        for stack in ('blocks', 'last') if encoder.config.layers > 1 else ('last',):
            for name in self.targets:
                if _has(encoder.config, name):
                    part, inputs = MATRICES[name]
                    weight = jax.typeof(getattr(getattr(getattr(encoder, stack), part), name)[...])
                    axes = list(zip(weight.shape, weight.sharding.spec, strict=True))
                    layers = axes[:-3] if part == 'attention' else axes[:-2]
                    axes = axes[len(layers) :]
                    adapter = LowRankAdapter(self, axes[:inputs], axes[inputs:], rngs, *layers)
                    setattr(getattr(getattr(adapted, stack), part), f'{name}_adapter', adapter)
        return adapted

    def frozen(self, encoder: E) -> E:
        """An Encoder with all of its variables as `frozen_weight` has them."""

        def freeze(path: tuple, weight: nnx.Variable) -> nnx.Variable | Codes:
            return self.frozen_weight(
                jax.tree_util.keystr(path, simple=True, separator='.'), weight[...]
            )

        return jax.tree_util.tree_map_with_path(freeze, encoder, is_leaf=is_variable)

    def frozen_weight(self, path: str, weight: jax.Array) -> Frozen | Codes:
        """What stands in the place of a weight, by its name ('blocks.attention.query'; 'last.' is
        of one layer, and 'blocks.' a stack).

        Codes are made of the layers' matrices alone; embeddings, norms and biases stay float32, as
        the authors of PromptEOL have them. In bfloat16 are these matrices and the embeddings.
        """
        stack, name = path.partition('.')[0], path.rpartition('.')[2]
        inner = name in MATRICES and stack in ('blocks', 'last')
        if inner and self.base in _CODES:
            kind, inputs = _CODES[self.base], MATRICES[name][1]
            return stack_of(kind, weight, inputs) if stack == 'blocks' else kind(weight, inputs)
        small = self.base == 'bfloat16' and (
            inner or 'embedding' in name or name.startswith('project_')
        )
        return Frozen(weight.astype(jnp.bfloat16 if small else jnp.float32))


class LowRankAdapter(nnx.Module):
    """What is added to a linear layer: scale * B(A(dropout(h))), with A as PEFT begins and B zero.

    Attributes:
      lora_a: float32[*inputs, r], uniform within 1 / sqrt(inputs) (torch's kaiming_uniform_ of a =
        sqrt(5)).
      lora_b: float32[r, *outputs].
      scale: alpha / r.
    """

    def __init__(
        self, lora: LoRA, inputs: list[Axis], outputs: list[Axis], rngs: nnx.Rngs, *stack: Axis
    ):
        self.scale, self.dropout = lora.alpha / lora.rank, lora.dropout
        bound = math.prod(size for size, _ in inputs) ** -0.5
        self.lora_a = parameter(rngs, uniform(bound), *stack, *inputs, _low(lora.rank, inputs))
        self.lora_b = parameter(rngs, constant(0.0), *stack, _low(lora.rank, outputs), *outputs)

    def __call__(
        self,
        form: str,
        h: jax.Array,
        spec: tuple[str | None, ...],
        out_sharding: P,
        site: int,
        noise: Noise | None,
    ) -> jax.Array:
        """What is added to einsum(form, h, weight). Arguments as those of `adapted_product`."""
        left, weight, out = form.replace('->', ',').split(',')
        shared, kept = (
            [letter for letter in weight if (letter in left) == inside] for inside in (True, False)
        )
        before = left.removesuffix(''.join(shared))
        axes = dict(zip(weight, spec, strict=True))
        a = gathered(self.lora_a, h.dtype, *(axes[letter] for letter in shared), None)
        b = gathered(self.lora_b, h.dtype, None, *(axes[letter] for letter in kept))
        if noise is not None:
            h = dropout(h, noise.keys, self.dropout, _SITES + len(MATRICES) * noise.layer + site)
        low = jnp.einsum(f'{left},{"".join(shared)}z->{before}z', h, a, out_sharding=P(BATCH))
        return self.scale * jnp.einsum(
            f'{before}z,z{"".join(kept)}->{out}', low, b, out_sharding=out_sharding
        )


def has_adapter(module: nnx.Module, name: str) -> bool:
    """Whether the weight `name` of a module has an adapter."""
    return hasattr(module, f'{name}_adapter')


def adapted_product(
    module: nnx.Module,
    name: str,
    form: str,
    h: jax.Array,
    spec: tuple[str | None, ...],
    out_sharding: P,
    noise: Noise | None = None,
) -> jax.Array:
    """einsum(form, h, weight) of a module's matrix, and what its adapter adds, where it has one.

    Args:
      module: with a weight `name` [*inputs, *outputs], and perhaps `<name>_adapter`.
      form: of einsum; the inputs are the last axes of h and the first of the weight.
      spec: how the weight lies where it is used, axis by axis.
      noise: for the adapter's dropout; None: there is none.
    """
    out = jnp.einsum(
        form, h, gathered(getattr(module, name), h.dtype, *spec), out_sharding=out_sharding
    )
    adapter = getattr(module, f'{name}_adapter', None)
    return (
        out
        if adapter is None
        else out + adapter(form, h, spec, out_sharding, list(MATRICES).index(name), noise)
    )


def uniform(bound: float) -> Initializer:
    """Independent values, evenly from -bound to bound."""

    def init(
        key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, out_sharding: P
    ) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound, out_sharding=out_sharding)

    return init


def merged(module: nnx.Module, name: str) -> np.ndarray:
    """A weight of a module on the host, with what its adapter adds: float32 where it has one or is
    kept as codes, else as it is.
    """
    weight, adapter = getattr(module, name), getattr(module, f'{name}_adapter', None)
    array = (
        _floats(weight) if isinstance(weight, Codes) else np.asarray(jax.device_get(weight[...]))
    )
    if adapter is None:
        return array
    inputs = MATRICES[name][1]
    a, b = (np.asarray(jax.device_get(low[...])) for low in (adapter.lora_a, adapter.lora_b))
    layers, rank = a.shape[: -1 - inputs], a.shape[-1]
    delta = a.reshape(*layers, -1, rank) @ b.reshape(*layers, rank, -1)
    return array.astype(np.float32) + np.float32(adapter.scale) * delta.reshape(array.shape)


def _floats(codes: Codes) -> np.ndarray:
    with jax.set_mesh(mesh_of(codes.codes[...])):
        return np.asarray(jax.jit(lambda codes: codes.whole())(codes))


def _low(rank: int, others: list[Axis]) -> Axis:
    """The axis between A and B: split over fsdp where no other axis of the matrix is, and it can
    be.
    """
    parts = jax.sharding.get_abstract_mesh().shape.get('fsdp', 1)
    return rank, 'fsdp' if rank % parts == 0 and all(axis != 'fsdp' for _, axis in others) else None


def _has(config: EncoderConfig, name: str) -> bool:
    return name != 'gate' or config.gated

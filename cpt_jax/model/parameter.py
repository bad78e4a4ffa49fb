"""One declaration gives a parameter's shape, dtype, sharding and initial value."""

from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from cpt_jax.model.initializers import Initializer
from cpt_jax.runtime.mesh import BATCH

T = TypeVar('T')

# Modules as plain pytrees: every transform comes from jax (FLIP 5310 makes this the default).
nnx.set_graph_mode(False)
nnx.set_graph_updates(False)


class Frozen(nnx.Variable):
    """What is not trained: it has no gradient and no optimizer state, in any dtype."""


class Encoded(Protocol):
    """A frozen weight that is kept as codes (adapters/nf4.py)."""

    def gathered(self, dtype: jnp.dtype, *spec: str | None) -> jax.Array:
        """The weight where it is used, in the compute dtype."""


def parameter(rngs: nnx.Rngs, init: Initializer, *axes: tuple[int, str | None]) -> nnx.Param:
    """A float32 parameter, one (size, mesh axis or None) for each of its axes.

    Under jax.jit it is made where it lives: no device ever holds more than its part. Under
    jax.eval_shape it costs nothing, and its sharding is in its type.
    """
    shape, spec = tuple(size for size, _ in axes), P(*(axis for _, axis in axes))
    return nnx.Param(init(rngs.params(), shape, jnp.float32, out_sharding=spec))


def gathered(weight: nnx.Variable | Encoded, dtype: jnp.dtype, *spec: str | None) -> jax.Array:
    """The weight where it is used: cast to the compute dtype, then gathered over fsdp (half the
    bytes on the wire in bfloat16).

    Reduced over the batch's axes: its gradient stays each device's own sum until it leaves here,
    and is then summed and split over fsdp in one reduce-scatter. Otherwise XLA sums it whole onto
    every device, twice the bytes, and cuts the parts out. A weight that is kept as codes (NF4,
    Int8) is gathered as these, and is a float only where it is used.
    """
    if not isinstance(weight, nnx.Variable):
        return weight.gathered(dtype, *spec)
    return jax.reshard(weight[...].astype(dtype), P(*spec, reduced=set(BATCH)))


def looked_up(table: nnx.Variable, rows_RxS: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rows of a table [V, D], by number: [R, S, D] in the compute dtype.

    They are taken from the table in its own dtype, as their gradients are added up one by one in
    that. The tokens of a batch share few rows (delimiters stand in every text, and so does each
    position), and a sum in bfloat16 stands still at 256 times what is added to it. Of what is
    frozen there is no gradient.
    """
    own = dtype if isinstance(table, Frozen) else table[...].dtype
    return gathered(table, own, None, None).at[rows_RxS].get(out_sharding=P(BATCH)).astype(dtype)


def spread(vector: nnx.Param, like: jax.Array) -> jax.Array:
    """A vector where it is used: [R, 1.., *V], a copy a row, to be added to or multiplied with
    `like` [R, .., *V] element by element.
    """
    value = vector[...]
    shape = (like.shape[0], *[1] * (like.ndim - 1 - value.ndim), *value.shape)
    spec = jax.typeof(like).sharding.spec
    sharding = P(spec[0], *[None] * (like.ndim - 1 - value.ndim), *spec[like.ndim - value.ndim :])
    return jax.lax.broadcast_in_dim(
        value, shape, range(like.ndim - value.ndim, like.ndim), out_sharding=sharding
    )


def gathered_once(module: T) -> T:
    """A module whose weights are whole over data and fsdp, and whose gradients are summed over them
    once, after all that uses it.

    Without it the gradient of each use is summed on its own: within a loop over chunks, once a
    chunk and layer. The weights and their gradient are then held unsharded, in float32. What is
    frozen has no gradient, and stays as it is.
    """

    def once(weight: nnx.Variable) -> nnx.Variable:
        if isinstance(weight, Frozen):
            return weight
        spec = jax.typeof(weight[...]).sharding.spec
        whole = P(
            *(axis if axis == 'tensor' else None for axis in spec.partitions), reduced=set(BATCH)
        )
        return nnx.Param(jax.reshard(weight[...], whole))

    return jax.tree.map(once, module, is_leaf=is_variable)


def is_variable(node: object) -> bool:
    """Whether a node of a tree of modules is a variable, trained or frozen."""
    return isinstance(node, nnx.Variable)


def divided(module: T) -> tuple[T, T]:
    """(what is trained, what is frozen): two trees of the same modules, each with None in place of
    the other's variables.
    """
    trained = jax.tree.map(
        lambda weight: None if isinstance(weight, Frozen) else weight, module, is_leaf=is_variable
    )
    return trained, jax.tree.map(
        lambda weight: weight if isinstance(weight, Frozen) else None, module, is_leaf=is_variable
    )


def joined(trained: T, frozen: T | None) -> T:
    """The inverse of `divided`; without anything frozen, what is trained."""
    if frozen is None:
        return trained

    def either(node):
        return node is None or is_variable(node)

    return jax.tree.map(
        lambda mine, other: other if mine is None else mine, trained, frozen, is_leaf=either
    )

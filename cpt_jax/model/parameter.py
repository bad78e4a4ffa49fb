"""Declares parameters with shape, sharding and initializer, and gathers them for use in a layer."""

from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from cpt_jax.model.initializers import Initializer
from cpt_jax.runtime.mesh import BATCH

T = TypeVar('T')

# Modules are plain pytrees, so all transforms come from jax (FLIP 5310 makes this the default).
nnx.set_graph_mode(False)
nnx.set_graph_updates(False)


class Frozen(nnx.Variable):
    """A variable that is not trained: no gradient, no optimizer state, any dtype."""


class QuantizedWeight(Protocol):
    """A frozen weight stored as codes (adapters/nf4.py)."""

    def gather(self, dtype: jnp.dtype, *spec: str | None) -> jax.Array:
        """Returns the weight in `dtype`, sharded as `spec`."""


def make_parameter(rngs: nnx.Rngs, init: Initializer, *axes: tuple[int, str | None]) -> nnx.Param:
    """Makes a float32 parameter.

    Under jax.jit each device creates only its own shard. Under jax.eval_shape no array is created,
    and the sharding is part of the abstract type.

    Args:
      axes: (size, mesh axis or None) of each array axis.
    """
    shape = tuple(size for size, _ in axes)
    spec = P(*(axis for _, axis in axes))
    return nnx.Param(init(rngs.params(), shape, jnp.float32, out_sharding=spec))


def gather_weight(
    weight: nnx.Variable | QuantizedWeight,
    dtype: jnp.dtype,
    *spec: str | None,
    sums_in_float32: bool = False,
) -> jax.Array:
    """Casts a weight to the compute dtype and gathers it over fsdp.

    The cast comes first, because bfloat16 halves the bytes that are sent.

    The result is marked as reduced over the batch axes: each device keeps its own sum of the
    gradient, and the sums are combined and split over fsdp in one reduce-scatter. Without the mark
    XLA all-reduces the whole gradient to every device (twice the bytes) and then slices it. A
    weight stored as codes (NF4, Int8) is gathered as codes, and decoded on each device.

    Args:
      weight: the weight.
      dtype: compute dtype.
      spec: mesh axis of each axis of the gathered weight.
      sums_in_float32: whether the sums of the devices are combined in float32, and not in the
        compute dtype. Twice the bytes are then sent for the gradient.
    """
    if not isinstance(weight, nnx.Variable):
        return weight.gather(dtype, *spec)
    gathered = P(*spec, reduced=set(BATCH))
    if sums_in_float32 and dtype != weight[...].dtype:
        return _gather_with_wide_gradient(weight[...], dtype, gathered)
    return jax.reshard(weight[...].astype(dtype), gathered)


def _gather_with_wide_gradient(weight: jax.Array, dtype: jnp.dtype, gathered: P) -> jax.Array:
    """Casts and gathers a weight; its gradient is cast back before it is reduced."""
    own = jax.typeof(weight)

    @jax.custom_vjp
    def gather(weight: jax.Array) -> jax.Array:
        return jax.reshard(weight.astype(dtype), gathered)

    def gather_forward(weight: jax.Array) -> tuple[jax.Array, None]:
        return gather(weight), None

    def reduce_gradient(_: None, gradient: jax.Array) -> tuple[jax.Array]:
        return (jax.reshard(gradient.astype(own.dtype), own.sharding.spec),)

    gather.defvjp(gather_forward, reduce_gradient)
    return gather(weight)


def look_up_rows(table: nnx.Variable, rows_RxS: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Looks up rows of a table [V, D] by index; returns [R, S, D] in the compute dtype.

    The lookup uses the dtype of the table (float32), because the backward pass adds up the
    gradients of a row one by one in the lookup dtype. Many tokens of a batch use the same row (a
    delimiter, a position), and a running sum in bfloat16 stops growing at 256 times the size of its
    summands.
    A frozen table has no gradient, so it is looked up in the compute dtype.
    """
    lookup_dtype = dtype if isinstance(table, Frozen) else table[...].dtype
    return (
        gather_weight(table, lookup_dtype, None, None)
        .at[rows_RxS]
        .get(out_sharding=P(BATCH))
        .astype(dtype)
    )


def broadcast_vector(vector: nnx.Param, like: jax.Array) -> jax.Array:
    """Broadcasts a vector to [R, 1.., *V], one copy per row, for element-wise use with `like`
    [R, .., *V].
    """
    value = vector[...]
    shape = (like.shape[0], *[1] * (like.ndim - 1 - value.ndim), *value.shape)
    spec = jax.typeof(like).sharding.spec
    sharding = P(spec[0], *[None] * (like.ndim - 1 - value.ndim), *spec[like.ndim - value.ndim :])
    return jax.lax.broadcast_in_dim(
        value, shape, range(like.ndim - value.ndim, like.ndim), out_sharding=sharding
    )


def add_bias(h: jax.Array, bias_Bx1xV: jax.Array) -> jax.Array:
    """Returns h [R, .., *V] plus a bias from `broadcast_vector`, in the dtype of h.

    The bias is repeated for every position before it is cast, so that the backward pass adds up the
    gradients of all positions in float32. A running sum in bfloat16 would stop growing at 256 times
    the size of its summands.
    """
    repeated = jnp.broadcast_to(bias_Bx1xV, h.shape, out_sharding=jax.typeof(h).sharding.spec)
    return h + repeated.astype(h.dtype)


def gather_once(module: T) -> T:
    """Gathers the weights of a module over data and fsdp, so that their gradients are reduced once,
    after all uses of the module.

    Without this, the gradient of each use is reduced separately: in a loop over chunks, once per
    chunk and layer. The cost is memory: weights and gradients are held unsharded, in float32.
    Frozen variables have no gradient and are left sharded.
    """

    def gather(weight: nnx.Variable) -> nnx.Variable:
        if isinstance(weight, Frozen):
            return weight
        spec = jax.typeof(weight[...]).sharding.spec
        whole = P(
            *(axis if axis == 'tensor' else None for axis in spec.partitions), reduced=set(BATCH)
        )
        return nnx.Param(jax.reshard(weight[...], whole))

    return jax.tree.map(gather, module, is_leaf=is_variable)


def is_variable(node: object) -> bool:
    """Returns whether a node of a module tree is a variable, trained or frozen."""
    return isinstance(node, nnx.Variable)


def split_frozen(module: T) -> tuple[T, T]:
    """Splits a module into its trained and its frozen variables.

    Returns:
      (trained, frozen): two trees of the same structure, each with None in place of the variables
        of the other.
    """
    trained = jax.tree.map(
        lambda weight: None if isinstance(weight, Frozen) else weight, module, is_leaf=is_variable
    )
    frozen = jax.tree.map(
        lambda weight: weight if isinstance(weight, Frozen) else None, module, is_leaf=is_variable
    )
    return trained, frozen


def join_frozen(trained: T, frozen: T | None) -> T:
    """Inverts `split_frozen`. If `frozen` is None, returns `trained`."""
    if frozen is None:
        return trained

    def is_leaf(node):
        return node is None or is_variable(node)

    return jax.tree.map(
        lambda weight, frozen_weight: frozen_weight if weight is None else weight,
        trained,
        frozen,
        is_leaf=is_leaf,
    )

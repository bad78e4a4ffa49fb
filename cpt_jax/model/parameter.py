"""One declaration gives a parameter's shape, dtype, sharding and initial value."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

# Modules as plain pytrees: every transform comes from jax (FLIP 5310 makes this the default).
nnx.set_graph_mode(False)
nnx.set_graph_updates(False)

# (key, shape, dtype, sharding) -> array
Initializer = Callable[..., jax.Array]


def parameter(rngs: nnx.Rngs, init: Initializer, *axes: tuple[int, str | None]) -> nnx.Param:
    """A float32 parameter, one (size, mesh axis or None) for each of its axes.

    Under jax.jit it is made where it lives: no device ever holds more than its part. Under jax.eval_shape it costs nothing, and
    its sharding is in its type.
    """
    shape, spec = tuple(size for size, _ in axes), P(*(axis for _, axis in axes))
    return nnx.Param(init(rngs.params(), shape, jnp.float32, out_sharding=spec))


def normal(std: float) -> Initializer:
    """Independent normal values."""
    return jax.nn.initializers.normal(std)


def constant(value: float) -> Initializer:
    """The same value everywhere."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, out_sharding: P) -> jax.Array:
        del key
        return jnp.full(shape, value, dtype, out_sharding=out_sharding)

    return init


def gathered(weight: nnx.Param, dtype: jnp.dtype, *spec: str | None) -> jax.Array:
    """The weight where it is used: cast to the compute dtype, then gathered over fsdp (half the bytes on the wire in bfloat16)."""
    return jax.reshard(weight[...].astype(dtype), P(*spec))

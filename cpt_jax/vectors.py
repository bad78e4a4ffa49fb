"""Public alias of `cpt_jax.storage.vector_shards.read_vectors`."""

from cpt_jax.storage.vector_shards import read_vectors as read_vectors

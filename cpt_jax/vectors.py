"""An alias: `read_vectors` lives in cpt_jax/storage/vector_shards.py."""

from cpt_jax.storage.vector_shards import read_vectors as read_vectors

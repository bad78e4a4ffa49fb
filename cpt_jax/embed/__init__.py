"""Embedding: texts to vectors. JAX is imported only when `load_embedder` is first accessed."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpt_jax.embed.load import load_embedder as load_embedder


def __getattr__(name: str) -> Any:
    if name == 'load_embedder':
        from cpt_jax.embed.load import load_embedder

        return load_embedder
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

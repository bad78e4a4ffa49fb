"""The interface of a model for evaluation and search: a function from texts to vectors."""

from collections.abc import Callable, Sequence

import numpy as np

from cpt_jax.runtime.errors import UserError

# (texts, side) -> float32[n, D]; the side is 'x' for queries and 'y' for documents. The vectors
# have unit length, unless the model is compared by dot products of vectors of any length.
Embed = Callable[[Sequence[str], str], np.ndarray]

# Maximum difference of a unit vector's length from 1.
_UNIT_TOLERANCE = 1e-3


def embed_texts(embed: Embed, texts: Sequence[str], side: str) -> np.ndarray:
    """Returns float32[n, D]: the vectors of the texts, after checking that they are finite.

    Raises:
      UserError: a vector is not finite; its ranking would be arbitrary.
    """
    vectors_NxD = np.asarray(embed(texts, side), np.float32)
    if vectors_NxD.ndim != 2 or len(vectors_NxD) != len(texts):
        raise ValueError(f'embed returned shape {vectors_NxD.shape} for {len(texts)} texts')
    bad = np.flatnonzero(~np.isfinite(vectors_NxD).all(axis=1))
    if len(bad):
        raise UserError(
            f'--model gives vectors that are not finite ({len(bad)} of {len(texts)} texts): use an '
            f'earlier checkpoint'
        )
    return vectors_NxD


def embed_distinct(embed: Embed, texts: Sequence[str], side: str) -> np.ndarray:
    """Returns the same float32[n, D] as `embed_texts`, but embeds each distinct text only once.

    Equal texts therefore have bitwise equal vectors.
    """
    row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    vectors = embed_texts(embed, list(row), side)
    return vectors[[row[text] for text in texts]]


def normalize_vectors(vectors_NxD: np.ndarray) -> np.ndarray:
    """Returns the vectors scaled to unit length, for scores that are defined by cosines.

    Vectors that already have unit length, up to rounding, are returned unchanged. Zero vectors stay
    zero.
    """
    if are_unit_vectors(vectors_NxD):
        return vectors_NxD
    norms_Nx1 = np.linalg.norm(vectors_NxD, axis=1, keepdims=True)
    return vectors_NxD / np.maximum(norms_Nx1, np.finfo(np.float32).tiny)


def describe_similarity(vectors_NxD: np.ndarray) -> dict[str, str]:
    """Returns the entry `similarity` of a task's settings if the vectors are not unit vectors."""
    if are_unit_vectors(vectors_NxD):
        return {}
    return {'similarity': 'dot product of vectors of any length, float32'}


def are_unit_vectors(vectors_NxD: np.ndarray) -> bool:
    """Returns whether all vectors have unit length, up to rounding."""
    return bool(np.all(np.abs(np.linalg.norm(vectors_NxD, axis=1) - 1) < _UNIT_TOLERANCE))

"""A model as evaluation and search see it: a function from texts to vectors."""

from collections.abc import Callable, Sequence

import numpy as np

from cpt_jax.runtime.errors import UserError

# All that evaluation sees of a model: texts and a side ('x' queries, 'y' documents) -> float32 unit
# vectors [n, D].
Embed = Callable[[Sequence[str], str], np.ndarray]


def embed_texts(embed: Embed, texts: Sequence[str], side: str) -> np.ndarray:
    """float32[n, D] from `embed`. Raises UserError for numbers that are not finite: they would rank
    in any order.
    """
    vectors_NxD = np.asarray(embed(texts, side), np.float32)
    if vectors_NxD.ndim != 2 or len(vectors_NxD) != len(texts):
        raise ValueError(f'embed gave shape {vectors_NxD.shape} for {len(texts)} texts')
    bad = np.flatnonzero(~np.isfinite(vectors_NxD).all(axis=1))
    if len(bad):
        raise UserError(
            f'--model gives vectors that are not finite ({len(bad)} of {len(texts)} texts): take '
            f'an earlier checkpoint'
        )
    return vectors_NxD


def embed_distinct(embed: Embed, texts: Sequence[str], side: str) -> np.ndarray:
    """The same for texts that occur again and again: each is embedded once, so that equal texts
    have equal vectors to the bit.
    """
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return embed_texts(embed, list(place), side)[[place[text] for text in texts]]

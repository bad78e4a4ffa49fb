"""A pair of texts that belong together, and the interface of a source of pairs."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from cpt_jax.runtime.errors import UserError


class Pair(NamedTuple):
    """Two texts that belong together.

    Attributes:
      x: first text (a docstring, a query, a passage).
      y: second text (a function, a document, the next passage).
      negatives: hard negatives: texts that are similar to `y` but do not match `x`; often empty.
      id: human-readable name that is unique in the source, such as 'file:line'.
      positives: word ids of all y's of this x in the source, if it has several
        (data/positives.py).
      prompts: prompts with which x, and y and its hard negatives, begin; '' where there is none.
      scores: scores of y and of each hard negative by a teacher; or one score, the grade of the
        pair; () if the source has none.
    """

    x: str
    y: str
    negatives: tuple[str, ...] = ()
    id: str = ''
    positives: tuple[int, ...] = ()
    prompts: tuple[str, str] = ('', '')
    scores: tuple[float, ...] = ()


class Source(Protocol):
    """Random access to pairs; `source[i]` is always the same pair, in any thread."""

    @property
    def split(self) -> str:
        """The split that the source contains: 'train', 'heldout' or 'all'."""

    @property
    def fingerprint(self) -> str:
        """Hex digits that differ if any pair could differ; stored in the run."""

    @property
    def documents(self) -> np.ndarray | None:
        """None, or int64[number of documents + 1]: pairs `documents[d] : documents[d + 1]` come
        from document d, and a batch contains at most one of them.
        """

    def __len__(self) -> int: ...

    def summary(self) -> str:
        """Returns one line: the number of pairs, and what was dropped or wrong, by kind."""

    def __getitem__(self, index: int) -> Pair: ...


def digest_texts(*parts: str) -> str:
    """Returns 32 hex digits that depend only on the parts, not on the machine or Python version."""
    return hashlib.blake2b(
        '\0'.join(parts).encode('utf-8', 'surrogatepass'), digest_size=16
    ).hexdigest()


def compute_content_id(text: str) -> int:
    """Returns an id, 1 to 2**31 - 1, of a text's content; 0 is reserved for "no text".

    Texts with equal ids are not used as negatives of each other (data/equality.py). White space
    around a text is ignored, as in tokenization. In a batch of 65,536 texts, about one pair of
    different texts has the same 31-bit hash, which costs one negative.
    """
    return int(digest_texts(text.strip())[:8], 16) % (2**31 - 1) + 1


def compute_text_key(text: str) -> int:
    """Returns an id, below 2**64, by which the vector of a text is found (data/text_vectors.py).

    White space around a text is ignored, as in `compute_content_id`. Two of a billion different
    texts have the same id with a probability of 3 %.
    """
    return int(digest_texts(text.strip())[:16], 16)


def hash_to_unit_interval(name: str) -> float:
    """Returns a number in [0, 1) that depends only on the name.

    `hash_to_unit_interval(name) < fraction` holds out that fraction of the names.
    """
    return int(digest_texts(name)[:13], 16) / 16**13


def spread_indices(size: int, sample: int) -> np.ndarray:
    """Returns int64[n]: up to `sample` indices, spread evenly over 0 to size - 1."""
    return np.unique(np.linspace(0, size - 1, min(sample, size)).astype(np.int64))


def check_negatives(sources: Mapping[str, Source], wanted: int, sample: int = 1024) -> None:
    """Checks that some pair has the wanted number of hard negatives.

    Args:
      sources: sources by name.
      wanted: number of hard negatives per pair.
      sample: maximum number of pairs to look at in each source.

    Raises:
      UserError: no sampled pair of any source has that many.
    """
    if not wanted:
        return
    most = 0
    for source in sources.values():
        for index in spread_indices(len(source), sample):
            most = max(most, len(source[int(index)].negatives))
            if most >= wanted:  # usually true for the first pair
                return
    names = ', '.join(f'data.sources.{name}' for name in sources)
    raise UserError(
        f'data.negatives={wanted}: pairs of {names} have at most {most}: lower it, or name the '
        f'field with hard negatives with --config.data.sources.NAME.negatives=FIELD'
    )

"""A pair of texts that belong together, and what a source of pairs looks like."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from cpt_jax.runtime.errors import UserError


class Pair(NamedTuple):
    """Two texts that belong together.

    Attributes:
      x: the first text (a docstring, a query, a piece of prose).
      y: the second (a function, a document, the next piece).
      negatives: texts that look like `y` and are not (hard negatives); often empty.
      id: a name that is unique in the source, for people: a file and a line, say.
    """

    x: str
    y: str
    negatives: tuple[str, ...] = ()
    id: str = ''


class Source(Protocol):
    """Random access to pairs; reading `source[i]` twice gives the same pair, in any thread."""

    @property
    def split(self) -> str:
        """Which part of the pairs it holds: 'train', 'heldout' or 'all'."""

    @property
    def fingerprint(self) -> str:
        """Hex digits that change when any pair could differ; stored in the run."""

    @property
    def documents(self) -> np.ndarray | None:
        """None, or int64[number of documents + 1]: pairs `documents[d] : documents[d + 1]` come
        from one document, and no batch holds two of them.
        """

    def __len__(self) -> int: ...

    def summary(self) -> str:
        """One line: how many pairs, and what was dropped or wrong, by kind."""

    def __getitem__(self, index: int) -> Pair: ...


def text_digest(*parts: str) -> str:
    """32 hex digits of the parts, the same on every machine and Python."""
    return hashlib.blake2b(
        '\0'.join(parts).encode('utf-8', 'surrogatepass'), digest_size=16
    ).hexdigest()


def content_id(text: str) -> int:
    """An int32 that stands for a text's content, without white space around it, which counts for
    nothing in tokens either: equal texts in a batch are not negatives of each other.

    31 bits of a hash, so that two different texts of a batch of 65,536 share one about once in a
    batch, which costs one negative; 0 is left for "no text".
    """
    return int(text_digest(text.strip())[:8], 16) % (2**31 - 1) + 1


def unit_hash(name: str) -> float:
    """A stable number in [0, 1) for a name: `unit_hash(name) < share` holds out that share of the
    names.
    """
    return int(text_digest(name)[:13], 16) / 16**13


def spread_over(size: int, sample: int) -> np.ndarray:
    """int64[n]: up to `sample` numbers, spread evenly over 0 .. size - 1."""
    return np.unique(np.linspace(0, size - 1, min(sample, size)).astype(np.int64))


def check_negatives(sources: Mapping[str, Source], wanted: int, sample: int = 1024) -> None:
    """Raises UserError where none of up to `sample` pairs of any source has `wanted` hard
    negatives: nothing would be trained with them.
    """
    if not wanted:
        return
    most = 0
    for source in sources.values():
        for index in spread_over(len(source), sample):
            most = max(most, len(source[int(index)].negatives))
            if most >= wanted:  # usually at once
                return
    names = ', '.join(f'data.sources.{name}' for name in sources)
    raise UserError(
        f'data.negatives={wanted}: pairs of {names} have {most} at most: lower it, or name the '
        f'field that holds them with --config.data.sources.NAME.negatives=FIELD'
    )

"""Documents of a collection: ids are in memory, texts are read from the file when needed."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from etils import epath
from tqdm import tqdm

from cpt_jax.embed.function import Embed, embed_texts
from cpt_jax.runtime.errors import UserError

TEXTS_PER_BLOCK = 16_384  # number of texts that are held in memory and embedded together


class Row(NamedTuple):
    """A document or query of a file.

    Attributes:
      where: 'file:line'.
      name: id.
      text: text.
    """

    where: str
    name: str
    text: str


class IndexedDocuments:
    """A collection of documents that may be larger than memory; takes about 100 bytes per document.

    Attributes:
      path: the file, for messages.
      names: ids in descending order of their UTF-8 bytes, which is how trec_eval breaks ties. The
        position of a document is its index in `names`.
      positions_N: int64, positions of the documents in file order.
    """

    def __init__(self, path: epath.Path, rows: Callable[[], Iterable[Row]]):
        """Reads all rows once to check them.

        Args:
          path: the file, for messages.
          rows: function that reads the rows again from the start.

        Raises:
          UserError: an id is on two lines, or a text contains a lone surrogate.
        """
        self.path = path
        self._rows = rows
        progress = tqdm(
            rows(), desc='reading documents', unit='document', disable=None, leave=False
        )
        names = [_get_encodable_row(row).name for row in progress]
        # Python orders strings by code point, which gives the same order as their UTF-8 bytes.
        order = sorted(range(len(names)), key=names.__getitem__, reverse=True)
        self.names = [names[index] for index in order]
        # Equal ids are next to each other; the sort is stable, so the later line comes second.
        duplicates = [
            index
            for index, name, previous in zip(
                order[1:], self.names[1:], self.names[:-1], strict=True
            )
            if name == previous
        ]
        if duplicates:
            where, name, _ = next(islice(rows(), min(duplicates), None))
            raise UserError(
                f'{where}: the id {name!r} is already on an earlier line: ids must be unique'
            )
        self.positions_N = np.empty(len(order), np.int64)
        self.positions_N[order] = np.arange(len(order))

    def __len__(self) -> int:
        return len(self.names)

    def iterate_texts(self) -> Iterator[tuple[int, str]]:
        """Yields (position, text) of every document in file order.

        Raises:
          UserError: the file was changed since it was first read.
        """
        rows = iter(self._rows())
        for position in self.positions_N.tolist():
            row = next(rows, None)
            if row is None or row.name != self.names[position]:
                raise UserError(f'{self.path}: was changed while it was read: start again')
            yield position, row.text

    def load_texts_at(self, positions: Iterable[int]) -> dict[int, str]:
        """Returns the texts at a few positions; reads the file up to the last of them."""
        wanted = set(positions)
        found: dict[int, str] = {}
        texts = self.iterate_texts()
        while len(found) < len(wanted):
            position, text = next(texts)
            if position in wanted:
                found[position] = text
        return found

    def load_all_texts(self) -> list[str]:
        """Returns all texts in order of position; they must fit into memory."""
        return [text for _, text in sorted(self.iterate_texts())]

    def embed_blocks(
        self, embed: Embed, show_progress: bool = True
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (positions int64 [C], vectors float32 [C, D]) of each block, in file order.

        Blocks do not depend on the number of devices.

        Args:
          embed: embedding function.
          show_progress: whether to print progress for large collections.
        """
        texts = self.iterate_texts()
        done = 0
        while block := list(islice(texts, TEXTS_PER_BLOCK)):
            yield (
                np.array([position for position, _ in block]),
                embed_texts(embed, [text for _, text in block], 'y'),
            )
            done += len(block)
            if show_progress and len(self) > TEXTS_PER_BLOCK:
                tqdm.write(f'{done:,} of {len(self):,} documents')

    def find_positions(self, names: Iterable[str]) -> dict[str, int]:
        """Returns the positions of documents by id; other names are left out."""
        wanted = set(names)
        return {name: position for position, name in enumerate(self.names) if name in wanted}


def load_texts_by_name(rows: Iterable[Row]) -> dict[str, str]:
    """Returns texts by id.

    Raises:
      UserError: an id is on two lines, or a text contains a lone surrogate.
    """
    texts: dict[str, str] = {}
    for row in rows:
        if _get_encodable_row(row).name in texts:
            raise UserError(
                f'{row.where}: the id {row.name!r} is already on an earlier line: ids must be '
                f'unique'
            )
        texts[row.name] = row.text
    return texts


def _get_encodable_row(row: Row) -> Row:
    """Returns the row. Raises UserError if it cannot be encoded in UTF-8."""
    try:
        f'{row.name}{row.text}'.encode()
    except UnicodeEncodeError:
        raise UserError(
            f'{row.where}: contains a lone surrogate such as \\ud800, which is half a '
            f'character: fix or remove the line'
        ) from None
    return row

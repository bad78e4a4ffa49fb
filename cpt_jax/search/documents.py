"""The documents of a collection: their ids in memory, their texts in a file that is read again
whenever they are wanted.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from etils import epath
from tqdm import tqdm

from cpt_jax.embed.function import Embed, embed_texts
from cpt_jax.runtime.errors import UserError

AT_ONCE = 16_384  # texts in memory


class Row(NamedTuple):
    """A document or a query of a file: 'file:line', id and text."""

    where: str
    name: str
    text: str


class IndexedDocuments:
    """More texts than memory holds; about 100 bytes a document stay there.

    Attributes:
      path: the file, for messages.
      names: ids, in descending order of their UTF-8 bytes, which is how trec_eval breaks ties: a
        document's position is that in `names`.
      positions_N: int64, of the documents in the order of the file.
    """

    def __init__(self, path: epath.Path, rows: Callable[[], Iterable[Row]]):
        """Reads all rows once, to check them. Raises UserError for an id that stands on two lines,
        and for half a character.
        """
        self.path, self._rows = path, rows
        names = [
            _checked(row).name
            for row in tqdm(
                rows(), desc='reading documents', unit='document', disable=None, leave=False
            )
        ]
        # Strings sort as their UTF-8 bytes do.
        order = sorted(range(len(names)), key=names.__getitem__, reverse=True)
        self.names = [names[place] for place in order]
        again = [
            later
            for later, name, before in zip(order[1:], self.names[1:], self.names[:-1], strict=True)
            if name == before
        ]
        if again:
            where, name, _ = next(islice(rows(), min(again), None))
            raise UserError(
                f'{where}: the id {name!r} stands on an earlier line too: ids must be unique'
            )
        self.positions_N = np.empty(len(order), np.int64)  # in the order of the file
        self.positions_N[order] = np.arange(len(order))

    def __len__(self) -> int:
        return len(self.names)

    def texts(self) -> Iterator[tuple[int, str]]:
        """(position, text) of each, in the order of the file. Raises UserError where it has another
        number of rows than at first.
        """
        rows = iter(self._rows())
        for position in self.positions_N.tolist():
            row = next(rows, None)
            if row is None or row.name != self.names[position]:
                raise UserError(f'{self.path}: was changed while it was read: start again')
            yield position, row.text

    def texts_at(self, positions: Iterable[int]) -> dict[int, str]:
        """The texts of a few positions; reads the file up to the last of them."""
        wanted = set(positions)
        found: dict[int, str] = {}
        texts = self.texts()
        while len(found) < len(wanted):
            position, text = next(texts)
            if position in wanted:
                found[position] = text
        return found

    def in_order(self) -> list[str]:
        """All texts by position; they must fit into memory."""
        return [text for _, text in sorted(self.texts())]

    def embedded(self, embed: Embed, say: bool = True) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(positions int64 [C], vectors float32 [C, D]) block by block, in the order of the file,
        whatever the devices are.
        """
        texts = self.texts()
        done = 0
        while block := list(islice(texts, AT_ONCE)):
            yield (
                np.array([position for position, _ in block]),
                embed_texts(embed, [text for _, text in block], 'y'),
            )
            done += len(block)
            if say and len(self) > AT_ONCE:
                tqdm.write(f'{done:,} of {len(self):,} documents')

    def positions_of(self, names: Iterable[str]) -> dict[str, int]:
        """Where those of the names stand that are ids of documents."""
        wanted = set(names)
        return {name: position for position, name in enumerate(self.names) if name in wanted}


def texts_by_name(rows: Iterable[Row]) -> dict[str, str]:
    """Id -> text, of a few. Raises UserError for an id that stands on two lines, and for half a
    character.
    """
    texts: dict[str, str] = {}
    for row in rows:
        if _checked(row).name in texts:
            raise UserError(
                f'{row.where}: the id {row.name!r} stands on an earlier line too: ids must be '
                f'unique'
            )
        texts[row.name] = row.text
    return texts


def _checked(row: Row) -> Row:
    try:
        f'{row.name}{row.text}'.encode()
    except UnicodeEncodeError:
        raise UserError(
            f'{row.where}: holds half a character, a lone surrogate such as \\ud800: mend or '
            f'remove the line'
        ) from None
    return row

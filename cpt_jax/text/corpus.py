"""A file of texts, read one after the other and as often as one likes: more of them than memory
holds.
"""

from array import array
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice

import numpy as np
from etils import epath
from tqdm import tqdm

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.text_lines import read_json_lines, read_lines


class Corpus:
    """Gives (id, text) of each row, in the order of the file. Blank lines count for nothing.

    Attributes:
      path: the file.
      fingerprint: 32 hex digits of all ids and texts.
    """

    def __init__(self, path: epath.Path, field: str = ''):
        """Reads the file once, to check it.

        Args:
          path: .jsonl, or .txt with a text a line; either may be packed (.gz). The id of a row is
            its `_id` or `id`, of one without and of a line of text the number of the line, from 0.
          field: which field of a row is the text; '' takes title + ' ' + text, as in BEIR.

        Raises:
          UserError: with file and line, where one cannot be used or has the id of another.
        """
        self.path, self._field = path, field
        kind = path.name.removesuffix('.gz').rpartition('.')[2]
        if kind not in ('jsonl', 'txt'):
            raise UserError(
                f'{path}: a file that ends in .jsonl or .txt, or in .jsonl.gz or .txt.gz, is '
                f'expected'
            )
        if kind == 'txt' and field:
            raise UserError(f'{path}: a line of a .txt file has no fields: leave --field out')
        self._rows = self._json_rows if kind == 'jsonl' else self._text_rows
        self._count, self.fingerprint = self._check()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((name, text) for _, name, text in self._rows())

    def _json_rows(self) -> Iterator[tuple[str, str, str]]:
        """('file:line', id, text) of each."""
        field = self._field or 'text'
        for where, row in read_json_lines(self.path):
            name = row.get('_id', row.get('id', _line(where)))
            if not isinstance(name, str | int) or '\n' in str(name):
                raise UserError(
                    f'{where}: the id must be a number or a string of one line, not '
                    f'{str(name)[:40]!r}'
                )
            if not isinstance(row.get(field), str):
                there = (
                    ', '.join(repr(key) for key, value in row.items() if isinstance(value, str))
                    or 'none'
                )
                raise UserError(
                    f'{where}: no text in field {field!r}: name another with --field; fields with '
                    f'text are {there}'
                )
            yield where, str(name), row[field] if self._field else document_text(row)

    def _text_rows(self) -> Iterator[tuple[str, str, str]]:
        for where, line in read_lines(self.path):
            yield where, str(_line(where)), line

    def _check(self) -> tuple[int, str]:
        """The number of rows, and the fingerprint."""
        contents, keys = blake2b(digest_size=16), array('Q')
        for where, name, text in tqdm(
            self._rows(), desc='reading texts', unit='text', disable=None
        ):
            try:
                contents.update(f'{name}\0{text}\n'.encode())
            except UnicodeEncodeError:
                raise UserError(
                    f'{where}: holds half a character, a lone surrogate such as \\ud800: mend or '
                    f'remove the line'
                ) from None
            keys.append(int.from_bytes(blake2b(name.encode(), digest_size=8).digest()))
        if not keys:
            raise UserError(f'{self.path}: holds no text')
        self._check_ids(np.array(keys))
        return len(keys), contents.hexdigest()

    def _check_ids(self, keys_N: np.ndarray) -> None:
        """64 bits of each id's hash take little memory, and two of 100 million ids have the same
        ones in one corpus of 4,000.
        """
        order = np.argsort(keys_N, kind='stable')
        again = order[1:][keys_N[order[1:]] == keys_N[order[:-1]]]
        if len(again):
            where, name, _ = next(islice(self._rows(), int(again.min()), None))
            raise UserError(
                f'{where}: the id {name!r} stands on an earlier line too: ids must be unique'
            )


def document_text(row: dict) -> str:
    """Title + ' ' + text of a row of corpus.jsonl, stripped."""
    return f'{row.get("title") or ""} {row["text"]}'.strip()


def _line(where: str) -> int:
    """The number of a line, from 0, of 'file:line', which counts from 1."""
    return int(where.rpartition(':')[2]) - 1

"""A file of texts that is streamed, so that it may be larger than memory."""

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
    """The (id, text) rows of a file, in file order; iterating again reads the file again.

    Blank lines are skipped.

    Attributes:
      path: path of the file.
      fingerprint: 32 hex digits, a digest of all ids and texts.
    """

    def __init__(self, path: epath.Path, field: str = ''):
        """Reads the file once to check it.

        Args:
          path: a .jsonl file, or a .txt file with one text per line; either may be gzipped (.gz).
            The id of a JSON row is its `_id` or `id`. Rows without one and lines of a .txt file
            have the line index, counted from 0, as their id.
          field: name of the text field of a JSON row; '' reads title + ' ' + text, as in BEIR. If
            the field is a list of texts, their ids are 'ID#1', 'ID#2', ...

        Raises:
          UserError: a line cannot be used or repeats an id (the message names file and line), or
            the file's format is not supported.
        """
        self.path = path
        self._field = field
        kind = path.name.removesuffix('.gz').rpartition('.')[2]
        if kind not in ('jsonl', 'txt'):
            raise UserError(
                f'{path}: expected a file name that ends in .jsonl, .txt, .jsonl.gz or .txt.gz'
            )
        if kind == 'txt' and field:
            raise UserError(f'{path}: lines of a .txt file have no fields; remove --field')
        self._read_rows = self._read_json_rows if kind == 'jsonl' else self._read_text_rows
        self._count, self.fingerprint = self._count_and_fingerprint_rows()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((name, text) for _, name, text in self._read_rows())

    def _read_json_rows(self) -> Iterator[tuple[str, str, str]]:
        """Yields ('file:line', id, text) of each JSON row."""
        field = self._field or 'text'
        for where, row in read_json_lines(self.path):
            name = row.get('_id', row.get('id', _parse_line_index(where)))
            if not isinstance(name, str | int) or '\n' in str(name):
                raise UserError(
                    f'{where}: the id must be a number or a one-line string, not {str(name)[:40]!r}'
                )
            if self._field and _is_list_of_texts(row.get(field)):
                for number, text in enumerate(row[field], 1):
                    yield where, f'{name}#{number}', text
                continue
            if not isinstance(row.get(field), str):
                text_fields = [repr(key) for key, value in row.items() if isinstance(value, str)]
                raise UserError(
                    f'{where}: no text in field {field!r}: name another with --field; fields with '
                    f'text are {", ".join(text_fields) or "none"}'
                )
            yield where, str(name), row[field] if self._field else join_title_and_text(row)

    def _read_text_rows(self) -> Iterator[tuple[str, str, str]]:
        """Yields ('file:line', id, text) of each line of text."""
        for where, line in read_lines(self.path):
            yield where, str(_parse_line_index(where)), line

    def _count_and_fingerprint_rows(self) -> tuple[int, str]:
        """Reads and checks all rows; returns their number and the fingerprint."""
        contents = blake2b(digest_size=16)
        id_hashes = array('Q')
        rows = tqdm(self._read_rows(), desc='reading texts', unit='text', disable=None)
        for where, name, text in rows:
            try:
                contents.update(f'{name}\0{text}\n'.encode())
            except UnicodeEncodeError:
                raise UserError(
                    f'{where}: contains a lone surrogate (half a character, such as \\ud800); fix '
                    f'or remove the line'
                ) from None
            id_hashes.append(int.from_bytes(blake2b(name.encode(), digest_size=8).digest()))
        if not id_hashes:
            raise UserError(f'{self.path}: contains no text')
        self._check_ids(np.array(id_hashes))
        return len(id_hashes), contents.hexdigest()

    def _check_ids(self, hashes_N: np.ndarray) -> None:
        """Raises UserError if two ids have the same 64-bit hash.

        Hashes take less memory than ids. With 100 million ids, two different ids collide in about
        one corpus out of 4,000.
        """
        order = np.argsort(hashes_N, kind='stable')
        repeated = order[1:][hashes_N[order[1:]] == hashes_N[order[:-1]]]
        if len(repeated):
            where, name, _ = next(islice(self._read_rows(), int(repeated.min()), None))
            raise UserError(f'{where}: the id {name!r} is used on an earlier line; make ids unique')


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def join_title_and_text(row: dict) -> str:
    """Returns title + ' ' + text of a row of corpus.jsonl, stripped."""
    return f'{row.get("title") or ""} {row["text"]}'.strip()


def _parse_line_index(where: str) -> int:
    """Returns the line index, counted from 0, of 'file:line', which counts from 1."""
    return int(where.rpartition(':')[2]) - 1

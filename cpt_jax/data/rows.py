"""Rows of files that stay on disk: what JSON lines and CSV have in common as sources of pairs.

One pass, kept in the cache, checks every row and notes where the good ones begin; a row is then
read when it is asked for.
"""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from cpt_jax.data.files import InputFile, files_state, input_files
from cpt_jax.data.pairs import Pair, text_digest, unit_hash
from cpt_jax.data.problems import BadRow, Problems
from cpt_jax.data.split import rows_of
from cpt_jax.data.unpacked import unpacked
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.cache import Arrays, cached, from_array, to_array

# Raise it when the code below, or that of a format, takes other rows of the same files.
INDEX_VERSION = 1
BOM = b'\xef\xbb\xbf'


class RowFormat(Protocol):
    """How rows stand in a file, and which of their fields are read. Its repr is part of a source's
    fingerprint.
    """

    @property
    def x(self) -> str:
        """The name of the field that holds x."""

    @property
    def y(self) -> str:
        """The name of the field that holds y."""

    @property
    def id(self) -> str:
        """The name of the field that holds a pair's id."""

    @property
    def group(self) -> tuple[str, ...]:
        """Fields: rows that agree in the first of these that they have are held out together."""

    def rows(self, path: Path, bar: tqdm) -> Iterator[tuple[int, int, bytes]]:
        """(line counted from 1, offset, bytes) of each row of a file; the bar moves with the bytes
        read.
        """

    def head(self, path: Path) -> str:
        """What stands before the rows of a file and says which of their fields is which; '' where
        each row says so itself.
        """

    def parse(self, row: bytes, path: Path) -> dict:
        """The fields of one row, with x, y and negatives found good. Raises BadRow."""

    def negatives_of(self, row: dict) -> tuple[str, ...]:
        """The hard negatives of a parsed row."""


def group_names(group: str | Sequence[str]) -> tuple[str, ...]:
    """The names of a source's argument `group`."""
    return tuple(filter(None, (group,) if isinstance(group, str) else group))


def held_out_by(row: dict, fields: RowFormat) -> str:
    """What decides a row's side: its group where it has one, else x, so that rows of one x stay
    together.
    """
    return next(
        (f'{name}={row[name]}' for name in fields.group if row.get(name) not in (None, '')),
        row[fields.x],
    )


class RowSource:
    """The good rows of some files, in the order of the files' names; blank lines count for nothing.

    Attributes:
      kind: of the source, as configs call it.
      suffixes: of the files that a folder is searched for.
      split, fingerprint, documents, problems: as every source.
    """

    kind: str
    suffixes: tuple[str, ...]
    documents = None

    def __init__(
        self,
        path: str,
        split: str,
        fields: RowFormat,
        holdout: float,
        max_bad_share: float,
        *more: str,
    ):
        """Indexes the files, or reads the index that an earlier call left. `more` is what else the
        pairs depend on.
        """
        self._fields, self._files = fields, unpacked(input_files(path, self.suffixes))
        key = text_digest(str(INDEX_VERSION), files_state(self._files), repr(fields))
        saved = cached(f'{self.kind}_{key}', lambda: _index(self._files, fields))
        contents, problems = from_array(saved['notes'])
        self.split = split
        heads = filter(None, (fields.head(file.path) for file in self._files))
        self.fingerprint = text_digest(
            self.kind,
            str(INDEX_VERSION),
            contents,
            repr(fields),
            split,
            repr(float(holdout)),
            *more,
            *heads,
        )
        self.problems = Problems.from_json(problems, max_bad_share)
        self.problems.check()
        rows = rows_of(split, saved['unit'] < holdout, path, holdout)
        self._file, self._line, self._start, self._bytes = (
            saved[name][rows] for name in ('file_number', 'line', 'start', 'bytes')
        )

    def __len__(self) -> int:
        return len(self._start)

    def __getitem__(self, index: int) -> Pair:
        file = self._files[self._file[index]]
        where = f'{file.found}:{self._line[index]}'
        try:
            row = self._fields.parse(
                _read(file.path, int(self._start[index]), int(self._bytes[index])), file.path
            )
        except BadRow as error:
            raise UserError(
                f'{where}: {error.kind}: the file has changed since the program began'
            ) from None
        name = row.get(self._fields.id, f'{file.name}:{self._line[index]}')
        return Pair(*self._texts(row), self._fields.negatives_of(row), str(name))

    def _texts(self, row: dict) -> tuple[str, str]:
        """x and y."""
        return row[self._fields.x], row[self._fields.y]

    def summary(self) -> str:
        """One line: how many pairs, of how many rows, and what was wrong with the others."""
        problems = self.problems.summary() or 'all rows can be used'
        return (
            f'{self.kind}/{self.split}: {len(self):,} pairs of {self.problems.rows:,} rows in '
            f'{len(self._files):,} files; {problems}'
        )


def _read(path: Path, start: int, size: int) -> bytes:
    """Opens the file each time: no handle to share between threads, and no limit on how many files
    there are.
    """
    with path.open('rb', buffering=0) as file:
        file.seek(start)
        return file.read(size)


def _index(files: Sequence[InputFile], fields: RowFormat) -> Arrays:
    """Checks every row.

    Returns: for the good rows file_number int32[n], line, start, bytes int64[n] and unit
    float64[n], the number in [0, 1) that decides the side; `notes` holds a digest of the contents
    and the problems.
    """
    problems, contents = Problems(), blake2b(digest_size=16)
    found: list[tuple[int, int, int, int, float]] = []
    total = sum(file.path.stat().st_size for file in files)
    with tqdm(total=total, desc='indexing rows', unit='B', unit_scale=True, disable=None) as bar:
        for number, file in enumerate(files):
            for line, start, text in fields.rows(file.path, bar):
                contents.update(text + b'\n')
                problems.rows += 1
                try:
                    row = fields.parse(text, file.path)
                except BadRow as error:
                    problems.add(error, f'{file.found}:{line}')
                else:
                    found.append(
                        (number, line, start, len(text), unit_hash(held_out_by(row, fields)))
                    )
    columns = zip(*found, strict=True) if found else ((),) * 5
    kinds = {
        'file_number': np.int32,
        'line': np.int64,
        'start': np.int64,
        'bytes': np.int64,
        'unit': np.float64,
    }
    arrays = {
        name: np.array(column, kind)
        for (name, kind), column in zip(kinds.items(), columns, strict=True)
    }
    return arrays | {'notes': to_array([contents.hexdigest(), problems.to_json()])}

"""Pairs from JSON lines: one object a line, `{"x": ..., "y": ..., "negatives": [...], "id": ...}`, under any field names.

The files stay on disk. One pass, kept in the cache, checks every row and notes where the good ones begin; a row is then
read when it is asked for.
"""

import json
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from cpt_jax.data.cache import Arrays, cached, from_array, to_array
from cpt_jax.data.files import InputFile, input_files, state
from cpt_jax.data.filters import first_paragraph
from cpt_jax.data.pairs import Pair, digest, unit_hash
from cpt_jax.data.problems import BadRow, Problems, check_text
from cpt_jax.data.python_functions import without_docstring
from cpt_jax.data.split import rows_of
from cpt_jax.errors import UserError

INDEX_VERSION = 1  # raise it when the code below takes other rows of the same files
_BOM = b'\xef\xbb\xbf'


class Fields(NamedTuple):
    """Which fields of a row are read. `negatives` and `id` may be missing in a row; '' is never read."""

    x: str
    y: str
    negatives: str
    id: str
    group: tuple[str, ...]
    max_chars: int

    def parse(self, line: bytes) -> dict:
        """The row's object, with x, y and negatives found good. Raises BadRow."""
        try:
            row = json.loads(line.decode('utf-8'))
        except UnicodeDecodeError as error:
            raise BadRow('not UTF-8', str(error)) from None
        except (ValueError, RecursionError) as error:
            raise BadRow('not JSON', str(error)) from None
        if not isinstance(row, dict):
            raise BadRow('not a JSON object')
        for name in (self.x, self.y):
            if name not in row:
                raise BadRow(f'no field {name!r}', f'it has {", ".join(map(repr, row)) or "none"}')
            check_text(name, row[name], self.max_chars)
        self._check_negatives(row.get(self.negatives))
        return row

    def _check_negatives(self, negatives: object) -> None:
        if negatives is None:
            return
        if not isinstance(negatives, list):
            raise BadRow(f'{self.negatives!r} is not a list of texts')
        for negative in negatives:
            check_text(self.negatives, negative, self.max_chars)

    def held_out_by(self, row: dict) -> str:
        """What decides the row's side: its group where it has one, else x, so that rows of one x stay together."""
        return next((f'{name}={row[name]}' for name in self.group if row.get(name) not in (None, '')), row[self.x])


class JsonlSource:
    """The good rows of some JSON-lines files, in the order of the files' names; blank lines count for nothing.

    Attributes:
      split, fingerprint, documents, problems: as every source.
    """

    documents = None

    def __init__(
        self,
        path: str,
        split: str,
        x: str = 'x',
        y: str = 'y',
        negatives: str = 'negatives',
        id: str = 'id',
        group: str | Sequence[str] = (),
        holdout: float = 0.0,
        max_bad_share: float = 0.001,
        max_chars: int = 100_000,
        codesearchnet: bool = False,
    ):
        """Indexes the files, or reads the index that an earlier call left.

        Args:
          path: a file, a folder (*.jsonl in it and below) or a pattern.
          split: 'train', 'heldout' or 'all'.
          x, y, negatives, id: names of the fields; x and y must hold text, negatives a list of texts.
          group: rows that agree in this field are held out together; of several names the first that the row has counts.
          holdout: share of the groups (without group, of the different x) that 'heldout' gets and 'train' does not.
          max_bad_share: share of rows that may be bad before they stop the program.
          max_chars: a longer text is a bad row.
          codesearchnet: x is cut to its first paragraph and Python in y (rows whose `language` is that, or missing) loses its docstring,
            which CodeSearchNet's files leave in the code: it would give the answer away.
        """
        names = (group,) if isinstance(group, str) else tuple(group)
        self._fields = Fields(x, y, negatives, id, tuple(filter(None, names)), max_chars)
        self._files = input_files(path, ('.jsonl',))
        key = digest(str(INDEX_VERSION), state(self._files), repr(self._fields))
        saved = cached(f'jsonl_{key}', lambda: _index(self._files, self._fields))
        contents, problems = from_array(saved['notes'])
        self.split, self._codesearchnet = split, codesearchnet
        self.fingerprint = digest(
            'jsonl', str(INDEX_VERSION), contents, repr(self._fields), split, repr(float(holdout)), repr(codesearchnet)
        )
        self.problems = Problems.from_json(problems, max_bad_share)
        self.problems.check()
        rows = rows_of(split, saved['unit'] < holdout, path, holdout)
        self._file, self._line, self._start, self._bytes = (saved[name][rows] for name in ('file_number', 'line', 'start', 'bytes'))

    def __len__(self) -> int:
        return len(self._start)

    def __getitem__(self, index: int) -> Pair:
        file = self._files[self._file[index]]
        where = f'{file.path}:{self._line[index]}'
        try:
            row = self._fields.parse(_read(file.path, int(self._start[index]), int(self._bytes[index])))
        except BadRow as error:
            raise UserError(f'{where}: {error.kind}: the file has changed since the program began') from None
        negatives = tuple(row.get(self._fields.negatives) or ())
        name = row.get(self._fields.id, f'{file.name}:{self._line[index]}')
        x, y = row[self._fields.x], row[self._fields.y]
        if self._codesearchnet:
            python = str(row.get('language', 'python')).lower() == 'python'
            x, y = first_paragraph(x) or x, without_docstring(y) if python else y
        return Pair(x=x, y=y, negatives=negatives, id=str(name))

    def summary(self) -> str:
        """One line: how many pairs, of how many rows, and what was wrong with the others."""
        problems = self.problems.summary() or 'all rows can be used'
        return f'jsonl/{self.split}: {len(self):,} pairs of {self.problems.rows:,} rows in {len(self._files):,} files; {problems}'


def _read(path: Path, start: int, size: int) -> bytes:
    """Opens the file each time: no handle to share between threads, and no limit on how many files there are."""
    with path.open('rb', buffering=0) as file:
        file.seek(start)
        return file.read(size)


def _index(files: Sequence[InputFile], fields: Fields) -> Arrays:
    """Checks every row.

    Returns: for the good rows file_number int32[n], line, start, bytes int64[n] and unit float64[n], the number in [0, 1) that decides
    the side; `notes` holds a digest of the contents and the problems.
    """
    problems, contents = Problems(), blake2b(digest_size=16)
    found: list[tuple[int, int, int, int, float]] = []
    total = sum(file.path.stat().st_size for file in files)
    with tqdm(total=total, desc='indexing rows', unit='B', unit_scale=True, disable=None) as bar:
        for number, file in enumerate(files):
            for line, start, text in _lines(file.path, bar):
                contents.update(text + b'\n')
                problems.rows += 1
                try:
                    row = fields.parse(text)
                except BadRow as error:
                    problems.add(error, f'{file.path}:{line}')
                else:
                    found.append((number, line, start, len(text), unit_hash(fields.held_out_by(row))))
    columns = zip(*found, strict=True) if found else ((),) * 5
    kinds = {'file_number': np.int32, 'line': np.int64, 'start': np.int64, 'bytes': np.int64, 'unit': np.float64}
    arrays = {name: np.array(column, kind) for (name, kind), column in zip(kinds.items(), columns, strict=True)}
    return arrays | {'notes': to_array([contents.hexdigest(), problems.to_json()])}


def _lines(path: Path, bar: tqdm) -> Iterator[tuple[int, int, bytes]]:
    """(line counted from 1, offset, text without the white space around it) of the lines that are not blank."""
    offset = 0
    with path.open('rb') as file:
        for number, line in enumerate(file, start=1):
            start = offset + len(_BOM) * (offset == 0 and line.startswith(_BOM))
            text = line[start - offset :]
            start += len(text) - len(text.lstrip())
            if text := text.strip():
                yield number, start, text
            offset += len(line)
            bar.update(len(line))

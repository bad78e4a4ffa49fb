"""Sources whose rows stay on disk: the common code of the JSON lines and CSV sources.

The first use checks every row and caches the offsets of the valid ones. A row is then read from its
file on access.
"""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from cpt_jax.data.equality import NORMALIZED, STRIPPED, normalize_text
from cpt_jax.data.files import InputFile, digest_file_states, find_input_files
from cpt_jax.data.local_copies import make_local_copies
from cpt_jax.data.pairs import Pair, digest_texts, hash_to_unit_interval
from cpt_jax.data.positives import (
    NO_OTHER_POSITIVES,
    compute_word_id,
    find_other_positives,
)
from cpt_jax.data.problems import BadRow, Problems
from cpt_jax.data.split import select_rows
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.cache import Arrays, array_to_json, json_to_array, load_or_build

# Increment when a change to the code below, or to a format, changes the rows that are selected
# from the same files.
INDEX_VERSION = 1
BOM = b'\xef\xbb\xbf'
_INDEX_ARRAYS = ('file_number', 'line', 'start', 'bytes', 'unit', 'notes')


class RowFormat(Protocol):
    """The format of rows in a file, and the fields to read.

    Its repr is part of a source's fingerprint.
    """

    @property
    def x(self) -> str:
        """Name of the field with x."""

    @property
    def y(self) -> str:
        """Name of the field with y."""

    @property
    def id(self) -> str:
        """Name of the field with a pair's id."""

    @property
    def group(self) -> tuple[str, ...]:
        """Fields that define a row's group, in order of preference: the group is the value of the
        first field that the row has. Rows of the same group are held out together.
        """

    def iterate_rows(self, path: Path, bar: tqdm) -> Iterator[tuple[int, int, bytes]]:
        """Yields (line number from 1, byte offset, content) of each row of a file.

        Also advances the progress bar by the number of bytes read.
        """

    def read_header(self, path: Path) -> str:
        """Returns the header that names the columns of a file; '' if the format has none."""

    def parse(self, row: bytes, path: Path) -> dict:
        """Returns the fields of a row, after checking x, y and negatives.

        Raises:
          BadRow: the row is invalid.
        """

    def get_negatives(self, row: dict) -> tuple[str, ...]:
        """Returns the hard negatives of a parsed row."""


def to_field_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """Returns a name, or a sequence of names, as a tuple without empty names."""
    return tuple(filter(None, (names,) if isinstance(names, str) else names))


def get_split_key(row: dict, fields: RowFormat, equal_texts: str) -> str:
    """Returns the string whose hash decides whether a row is held out.

    It is the row's group if it has one, otherwise x, so that rows with equal x are in one split.

    Args:
      row: a parsed row.
      fields: format of the row.
      equal_texts: when two x are equal (data/equality.py). Case is always folded, because a split
        does not depend on the tokenizer.
    """
    for name in fields.group:
        if row.get(name) not in (None, ''):
            return f'{name}={row[name]}'
    x = row[fields.x]
    return normalize_text(x) if equal_texts == NORMALIZED else x


class RowSource:
    """The valid rows of files, in the order of the file names; blank lines are skipped.

    Attributes:
      kind: name of this kind of source in configs.
      suffixes: suffixes of the files to find in a folder.
      split, fingerprint, documents: see Source.
      problems: counts of bad rows.
      most_positives: largest number of y's that the x of a pair has in other pairs, at most
        MAX_OTHER_POSITIVES (data/positives.py).
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
        equal_texts: str,
        *more: str,
        verify: bool = False,
    ):
        """Indexes the files, or reads the index from the cache.

        Args:
          path: file, folder or pattern; see `find_input_files`.
          split: 'train', 'heldout' or 'all'.
          fields: format of the rows.
          holdout: fraction of the groups, in [0, 1], that is in 'heldout' and not in 'train'.
          max_bad_share: maximum fraction of bad rows.
          equal_texts: when two x are equal, so that their rows are in one split: one of
            EQUALITY_RULES (data/equality.py).
          more: further settings that the pairs depend on, for the fingerprint.
          verify: whether to read the files in full to find out whether they changed.

        Raises:
          UserError: no file or row is found, or too many rows are bad.
        """
        self._fields = fields
        self._files = make_local_copies(find_input_files(path, self.suffixes, verify), verify)
        states = digest_file_states(self._files, verify)
        # Earlier runs were split by STRIPPED and keep their fingerprint.
        rule = () if equal_texts == STRIPPED else (equal_texts,)
        key = digest_texts(str(INDEX_VERSION), states, repr(fields), *rule)
        saved = load_or_build(
            f'{self.kind}_{key}',
            lambda: _index_rows(self._files, fields, equal_texts),
            _INDEX_ARRAYS if equal_texts == STRIPPED else (*_INDEX_ARRAYS, 'x_id', 'y_id'),
        )
        contents, problems = array_to_json(saved['notes'])
        self.split = split
        headers = filter(None, (fields.read_header(file.path) for file in self._files))
        self.fingerprint = digest_texts(
            self.kind,
            str(INDEX_VERSION),
            contents,
            repr(fields),
            split,
            repr(float(holdout)),
            *rule,
            *more,
            *headers,
        )
        self.problems = Problems.from_json(problems, max_bad_share)
        self.problems.check()
        rows = select_rows(split, saved['unit'] < holdout, path, holdout)
        self._file_indices = saved['file_number'][rows]
        self._lines = saved['line'][rows]
        self._offsets = saved['start'][rows]
        self._sizes = saved['bytes'][rows]
        self._positives = NO_OTHER_POSITIVES
        if equal_texts == NORMALIZED:
            self._positives = find_other_positives(saved['x_id'][rows], saved['y_id'][rows])
        self.most_positives = self._positives.most

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Pair:
        file = self._files[self._file_indices[index]]
        line = self._lines[index]
        data = _read_bytes(file.path, int(self._offsets[index]), int(self._sizes[index]))
        try:
            row = self._fields.parse(data, file.path)
        except BadRow as error:
            raise UserError(
                f'{file.original_path}:{line}: {error.kind}: the file has changed since the '
                f'program started; start it again'
            ) from None
        name = row.get(self._fields.id, f'{file.name}:{line}')
        x, y = self._get_texts(row)
        positives = self._positives.find(index)
        return Pair(x, y, self._fields.get_negatives(row), str(name), positives)

    def _get_texts(self, row: dict) -> tuple[str, str]:
        """Returns x and y of a parsed row."""
        return row[self._fields.x], row[self._fields.y]

    def summary(self) -> str:
        """Returns one line: the number of pairs and rows, and the problems of the rejected rows."""
        problems = self.problems.summary() or 'all rows can be used'
        return (
            f'{self.kind}/{self.split}: {len(self):,} pairs of {self.problems.rows:,} rows in '
            f'{len(self._files):,} files; {problems}'
        )


def _read_bytes(path: Path, offset: int, size: int) -> bytes:
    # Opening the file each time needs no handle that threads would share, and allows any number of
    # files.
    with path.open('rb', buffering=0) as file:
        file.seek(offset)
        return file.read(size)


def _index_rows(files: Sequence[InputFile], fields: RowFormat, equal_texts: str) -> Arrays:
    """Checks every row, and returns the locations of the valid ones.

    Returns:
      Arrays for a cache file. For the n valid rows: `file_number` int32[n], index of the file;
      `line` int64[n], counted from 1; `start` int64[n], offset; `bytes` int64[n], size; `unit`
      float64[n], the number in [0, 1) that decides the split. With NORMALIZED, `x_id` and
      `y_id` int32[n], the word ids of x and y. `notes` has a digest of the contents, and the
      problems.
    """
    problems = Problems()
    contents = blake2b(digest_size=16)
    found: list[tuple[int, int, int, int, float]] = []
    word_ids: list[tuple[int, int]] = []
    total = sum(file.path.stat().st_size for file in files)
    with tqdm(total=total, desc='indexing rows', unit='B', unit_scale=True, disable=None) as bar:
        for file_index, file in enumerate(files):
            for line, offset, text in fields.iterate_rows(file.path, bar):
                contents.update(text + b'\n')
                problems.rows += 1
                try:
                    row = fields.parse(text, file.path)
                except BadRow as error:
                    problems.add(error, f'{file.original_path}:{line}')
                else:
                    unit = hash_to_unit_interval(get_split_key(row, fields, equal_texts))
                    found.append((file_index, line, offset, len(text), unit))
                    if equal_texts == NORMALIZED:
                        x, y = row[fields.x], row[fields.y]
                        word_ids.append((compute_word_id(x), compute_word_id(y)))
    columns = zip(*found, strict=True) if found else ((),) * 5
    dtypes = {
        'file_number': np.int32,
        'line': np.int64,
        'start': np.int64,
        'bytes': np.int64,
        'unit': np.float64,
    }
    arrays = {
        name: np.array(column, dtype)
        for (name, dtype), column in zip(dtypes.items(), columns, strict=True)
    }
    if equal_texts == NORMALIZED:
        arrays['x_id'], arrays['y_id'] = np.array(word_ids, np.int32).reshape(-1, 2).T
    return arrays | {'notes': json_to_array([contents.hexdigest(), problems.to_json()])}

"""Sources whose rows stay on disk: the common code of the JSON lines and CSV sources.

The first use checks every row and caches the offsets of the valid ones. A row is then read from its
file on access.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, Protocol

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
from cpt_jax.data.row_counts import AnswerCounts, LongestRow, count_lines
from cpt_jax.data.split import select_rows
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.cache import Arrays, array_to_json, json_to_array, load_or_build

# Increment when a change to the code below, or to a format, changes the rows that are selected
# from the same files.
INDEX_VERSION = 1
BOM = b'\xef\xbb\xbf'
# Columns of an index with their types; see `_index_rows`.
_COLUMNS = {
    'file_number': np.int32,
    'line': np.int64,
    'start': np.int64,
    'bytes': np.int64,
    'unit': np.float64,
    'positive': np.int32,
}
_INDEX_ARRAYS = ('file_number', 'line', 'start', 'bytes', 'unit', 'positive', 'notes')
# The rules of today, by which rows are read. Rules 1 are those of runs that began before this key
# existed: a quoted cell may span the rest of a file, a bad row counts once whatever its length, a
# column may be named twice, an empty hard negative makes its row bad, and a row is one pair.
LATEST_RULES = 2


class ParsedRow(NamedTuple):
    """A valid row.

    Attributes:
      x: first text.
      positives: texts that belong to x, each of which makes a pair.
      negatives: hard negatives of each pair.
      fields: all fields of the row by name, for the id and the group.
      scores: scores of each positive and its hard negatives, as in Pair; () if there are none.
    """

    x: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    fields: dict[str, Any]
    scores: tuple[tuple[float, ...], ...] = ()


class RowFormat(Protocol):
    """The format of rows in a file, and the fields to read.

    Its repr is part of a source's fingerprint. With rules 1 it is that of earlier versions, so that
    the fingerprints of their runs stay as they were.
    """

    @property
    def rules(self) -> int:
        """Version of the rules by which rows are read, from 1 to LATEST_RULES."""

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

    def parse(self, row: bytes, path: Path) -> ParsedRow:
        """Returns the texts and fields of a row.

        Raises:
          BadRow: the row is invalid.
        """


def describe_format(name: str, values: dict[str, Any], later: Sequence[str]) -> str:
    """Returns the repr of a row format.

    Args:
      name: name of the format.
      values: fields of the format, with `rules`.
      later: names of the fields that rules 1 did not have.
    """
    is_first = values['rules'] == 1
    shown = {key: value for key, value in values.items() if not (is_first and key in later)}
    # Runs that began before scores were read keep their fingerprints.
    for key in ('scores', 'score'):
        if not shown.get(key):
            shown.pop(key, None)
    return f'{name}({", ".join(f"{key}={value!r}" for key, value in shown.items())})'


def check_rules(rules: int) -> None:
    """Raises UserError if there is no such version of the rules."""
    if rules not in range(1, LATEST_RULES + 1):
        raise UserError(
            f'rules={rules!r}: leave it out, or set it to 1 (how earlier versions read rows) or '
            f'{LATEST_RULES}'
        )


def to_field_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """Returns a name, or a sequence of names, as a tuple without empty names."""
    return tuple(filter(None, (names,) if isinstance(names, str) else names))


def split_field_names(names: str) -> tuple[str, ...]:
    """Returns the names in a config value that separates them by commas; () for ''."""
    return to_field_names([name.strip() for name in names.split(',')])


def get_split_key(row: ParsedRow, group: Sequence[str], equal_texts: str) -> str:
    """Returns the string whose hash decides whether a row is held out.

    It is the row's group if it has one, otherwise x, so that rows with equal x are in one split.

    Args:
      row: a row.
      group: see RowFormat.
      equal_texts: when two x are equal (data/equality.py). Case is always folded, because a split
        does not depend on the tokenizer.
    """
    for name in group:
        if row.fields.get(name) not in (None, ''):
            return f'{name}={row.fields[name]}'
    return normalize_text(row.x) if equal_texts == NORMALIZED else row.x


class RowSource:
    """The pairs in the valid rows of files, in the order of the file names; blank lines are
    skipped.

    A row with several positives holds as many pairs. They are a document, so that a batch has one
    of them and the next epoch another.

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
        # The index has the word ids of the texts that are trained on, which depend on `more`.
        key = digest_texts(str(INDEX_VERSION), states, repr(fields), *rule, *(more if rule else ()))
        saved = load_or_build(
            f'{self.kind}_{key}',
            lambda: _index_rows(self._files, fields, equal_texts, self._clean_texts),
            _INDEX_ARRAYS if equal_texts == STRIPPED else (*_INDEX_ARRAYS, 'x_id', 'y_id'),
        )
        contents, problems, *notes = array_to_json(saved['notes'])
        self._notes: list[str] = notes
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
        self._other_positives = NO_OTHER_POSITIVES
        if equal_texts == NORMALIZED:
            self._other_positives = find_other_positives(saved['x_id'][rows], saved['y_id'][rows])
        self.most_positives = self._other_positives.most
        self._positives = saved['positive'][rows]
        self.documents = None
        if self._positives.any():  # pairs of one row follow each other
            self.documents = np.append(np.flatnonzero(self._positives == 0), len(rows))

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Pair:
        row = self._read_row(index)
        file = self._files[self._file_indices[index]]
        name = row.fields.get(self._fields.id, f'{file.name}:{self._lines[index]}')
        positive = int(self._positives[index])
        if len(row.positives) > 1:
            name = f'{name}#{positive + 1}'
        x, y = self._clean_texts(row.x, row.positives[positive], row.fields)
        others = self._other_positives.find(index)
        scores = row.scores[positive] if row.scores else ()
        return Pair(x, y, row.negatives, str(name), others, scores=scores)

    def read_fields(self, index: int) -> dict[str, Any]:
        """Returns all fields of the row of a pair, by name."""
        return self._read_row(index).fields

    def _read_row(self, index: int) -> ParsedRow:
        file = self._files[self._file_indices[index]]
        data = _read_bytes(file.path, int(self._offsets[index]), int(self._sizes[index]))
        try:
            return self._fields.parse(data, file.path)
        except BadRow as error:
            raise UserError(
                f'{file.original_path}:{self._lines[index]}: {error.kind}: the file has changed '
                f'since the program started; start it again'
            ) from None

    def _clean_texts(self, x: str, y: str, fields: dict[str, Any]) -> tuple[str, str]:
        """Returns x and y as they are trained on; sources that change texts override it.

        `__init__` calls it.
        """
        del fields
        return x, y

    def summary(self) -> str:
        """Returns one line: the number of pairs and rows, and the problems of the rejected rows."""
        problems = self.problems.summary() or 'all rows can be used'
        counts = (
            f'{self.kind}/{self.split}: {len(self):,} pairs of {self.problems.rows:,} rows in '
            f'{len(self._files):,} files'
        )
        return '; '.join([counts, problems, *self._notes])


def _read_bytes(path: Path, offset: int, size: int) -> bytes:
    # Opening the file each time needs no handle that threads would share, and allows any number of
    # files.
    with path.open('rb', buffering=0) as file:
        file.seek(offset)
        return file.read(size)


def _index_rows(
    files: Sequence[InputFile],
    fields: RowFormat,
    equal_texts: str,
    clean: Callable[[str, str, dict[str, Any]], tuple[str, str]],
) -> Arrays:
    """Checks every row, and returns the locations of the valid ones.

    Args:
      files: the files, in the order of the pairs.
      fields: format of the rows.
      equal_texts: see RowSource.
      clean: function from x, y and all fields of a row to x and y as they are trained on.

    Returns:
      Arrays for a cache file. For the n pairs of the valid rows: `file_number` int32[n], index of
      the file; `line` int64[n], counted from 1; `start` int64[n], offset; `bytes` int64[n], size;
      `unit` float64[n], the number in [0, 1) that decides the split; `positive` int32[n], index in
      the row's positives. With NORMALIZED, `x_id` and `y_id` int32[n], the word ids of x and y as
      they are trained on. `notes` has a digest of the contents, the problems, and sentences for the
      summary.
    """
    problems = Problems()
    contents = blake2b(digest_size=16)
    # Typed arrays take 44 bytes per pair, and lists of tuples 280.
    columns: dict[str, array] = {
        name: array(np.dtype(dtype).char) for name, dtype in _COLUMNS.items()
    }
    word_ids = {'x_id': array('i'), 'y_id': array('i')}
    longest = LongestRow()
    answers = AnswerCounts()
    total = sum(file.path.stat().st_size for file in files)
    with tqdm(total=total, desc='indexing rows', unit='B', unit_scale=True, disable=None) as bar:
        for file_index, file in enumerate(files):
            for line, offset, text in fields.iterate_rows(file.path, bar):
                contents.update(text + b'\n')
                problems.rows += 1
                lines = count_lines(text) if fields.rules > 1 else 1
                problems.more_lines += lines - 1
                try:
                    row = fields.parse(text, file.path)
                except BadRow as error:
                    problems.add(error, f'{file.original_path}:{line}', lines)
                    continue
                if lines > 1:
                    longest.add(lines, f'{file.original_path}:{line}')
                unit = hash_to_unit_interval(get_split_key(row, fields.group, equal_texts))
                for positive, y in enumerate(row.positives):
                    answers.add(y)
                    values = (file_index, line, offset, len(text), unit, positive)
                    for column, value in zip(columns.values(), values, strict=True):
                        column.append(value)
                    if equal_texts == NORMALIZED:
                        clean_x, clean_y = clean(row.x, y, row.fields)
                        word_ids['x_id'].append(compute_word_id(clean_x))
                        word_ids['y_id'].append(compute_word_id(clean_y))
    if equal_texts == NORMALIZED:
        columns |= word_ids
    arrays = {name: np.frombuffer(column, column.typecode) for name, column in columns.items()}
    notes = filter(None, [longest.summary(), answers.summary()])
    return arrays | {'notes': json_to_array([contents.hexdigest(), problems.to_json(), *notes])}

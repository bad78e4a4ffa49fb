"""Pairs from JSON lines: one object a line, `{"x": ..., "y": ..., "negatives": [...], "id": ...}`,
under any field names.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from cpt_jax.data.filters import first_paragraph
from cpt_jax.data.problems import BadRow, check_text
from cpt_jax.data.python_functions import without_docstring
from cpt_jax.data.rows import BOM, RowSource, group_names


class Fields(NamedTuple):
    """Which fields of a row are read. `negatives` and `id` may be missing in a row; '' is never
    read.
    """

    x: str
    y: str
    negatives: str
    id: str
    group: tuple[str, ...]
    max_chars: int

    def head(self, path: Path) -> str:
        """None: a row names its own fields."""
        del path
        return ''

    def parse(self, line: bytes, path: Path) -> dict:
        """The row's object, with x, y and negatives found good. Raises BadRow."""
        del path
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

    def negatives_of(self, row: dict) -> tuple[str, ...]:
        return tuple(row.get(self.negatives) or ())

    def rows(self, path: Path, bar: tqdm) -> Iterator[tuple[int, int, bytes]]:
        """(line counted from 1, offset, text without the white space around it) of the lines that
        are not blank.
        """
        offset = 0
        with path.open('rb') as file:
            for number, line in enumerate(file, start=1):
                start = offset + len(BOM) * (offset == 0 and line.startswith(BOM))
                text = line[start - offset :]
                start += len(text) - len(text.lstrip())
                if text := text.strip():
                    yield number, start, text
                offset += len(line)
                bar.update(len(line))


class JsonlSource(RowSource):
    """The good rows of JSON-lines files."""

    kind, suffixes = 'jsonl', ('.jsonl', '.jsonl.gz')

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
          path: a file, a folder (*.jsonl and *.jsonl.gz in it and below) or a pattern. What is
            packed is unpacked into the cache first.
          split: 'train', 'heldout' or 'all'.
          x, y, negatives, id: names of the fields; x and y must hold text, negatives a list of
            texts.
          group: rows that agree in this field are held out together; of several names the first
            that the row has counts.
          holdout: share of the groups (without group, of the different x) that 'heldout' gets and
            'train' does not.
          max_bad_share: share of rows that may be bad before they stop the program.
          max_chars: a longer text is a bad row.
          codesearchnet: x is cut to its first paragraph and Python in y (rows whose `language` is
            that, or missing) loses its docstring, which CodeSearchNet's files leave in the code: it
            would give the answer away.
        """
        fields = Fields(x, y, negatives, id, group_names(group), max_chars)
        self._codesearchnet = codesearchnet
        super().__init__(path, split, fields, holdout, max_bad_share, repr(codesearchnet))

    def _texts(self, row: dict) -> tuple[str, str]:
        x, y = super()._texts(row)
        if not self._codesearchnet:
            return x, y
        python = str(row.get('language', 'python')).lower() == 'python'
        return first_paragraph(x) or x, without_docstring(y) if python else y

"""Pairs from JSON lines: one object per line, `{"x": ..., "y": ..., "negatives": [...], "id":
...}`, with configurable field names.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from cpt_jax.data.equality import LATEST_RULE
from cpt_jax.data.filters import extract_first_paragraph
from cpt_jax.data.problems import BadRow, decode_text_field
from cpt_jax.data.python_functions import remove_docstring
from cpt_jax.data.rows import BOM, RowSource, to_field_names


class Fields(NamedTuple):
    """The fields to read.

    Attributes:
      x, y: names of the fields with the texts.
      negatives: name of the field with a list of hard negatives; the field is optional.
      id: name of the field with the pair's id; the field is optional.
      group: see RowFormat.
      max_chars: maximum number of characters of a text.
    """

    x: str
    y: str
    negatives: str
    id: str
    group: tuple[str, ...]
    max_chars: int

    def read_header(self, path: Path) -> str:
        """Returns '': JSON lines have no header."""
        del path
        return ''

    def parse(self, line: bytes, path: Path) -> dict:
        """Returns the object of a row, after checking x, y and negatives.

        Raises:
          BadRow: the row is invalid.
        """
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
            decode_text_field(name, row[name], self.max_chars)
        self._check_negatives(row.get(self.negatives))
        return row

    def _check_negatives(self, negatives: object) -> None:
        if negatives is None:
            return
        if not isinstance(negatives, list):
            raise BadRow(f'{self.negatives!r} is not a list of texts')
        for negative in negatives:
            decode_text_field(self.negatives, negative, self.max_chars)

    def get_negatives(self, row: dict) -> tuple[str, ...]:
        """Returns the hard negatives of a parsed row."""
        return tuple(row.get(self.negatives) or ())

    def iterate_rows(self, path: Path, bar: tqdm) -> Iterator[tuple[int, int, bytes]]:
        """Yields (line counted from 1, offset, stripped line) of each line that is not blank."""
        offset = 0
        with path.open('rb') as file:
            for line_number, line in enumerate(file, start=1):
                start = offset
                if offset == 0 and line.startswith(BOM):
                    start += len(BOM)
                text = line[start - offset :]
                start += len(text) - len(text.lstrip())
                if text := text.strip():
                    yield line_number, start, text
                offset += len(line)
                bar.update(len(line))


class JsonlSource(RowSource):
    """The valid rows of JSON-lines files."""

    kind = 'jsonl'
    suffixes = ('.jsonl', '.jsonl.gz')

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
        equal_texts: str = LATEST_RULE,
        verify: bool = False,
    ):
        """Indexes the files, or reads the index from the cache.

        Args:
          path: a file, a folder (searched recursively for *.jsonl and *.jsonl.gz) or a pattern.
            Gzipped files are decompressed into the cache.
          split: 'train', 'heldout' or 'all'.
          x, y: names of the fields with the texts.
          negatives: name of the field with a list of hard negatives; the field is optional.
          id: name of the field with ids; the field is optional.
          group: name of a field; rows with equal values are held out together. If there are several
            names, the first field that the row has is used.
          holdout: fraction of the groups (without `group`, of the distinct x), in [0, 1], that is
            in 'heldout' and not in 'train'.
          max_bad_share: maximum fraction of bad rows, in [0, 1]; more of them are an error.
          max_chars: maximum number of characters of a text; a row with a longer text is bad.
          codesearchnet: whether to cut x to its first paragraph and to remove the docstring from
            Python code in y (rows without `language` are Python). CodeSearchNet's files keep the
            docstring in the code, which makes retrieval trivial.
          equal_texts: when two x are equal, so that their rows are in one split; a run sets it to
            its data.equal_texts.
          verify: whether to read the files in full to find out whether they changed.

        Raises:
          UserError: no file or row is found, an argument is invalid, or too many rows are bad.
        """
        fields = Fields(x, y, negatives, id, to_field_names(group), max_chars)
        self._codesearchnet = codesearchnet
        super().__init__(
            path,
            split,
            fields,
            holdout,
            max_bad_share,
            equal_texts,
            repr(codesearchnet),
            verify=verify,
        )

    def _get_texts(self, row: dict) -> tuple[str, str]:
        x, y = super()._get_texts(row)
        if not self._codesearchnet:
            return x, y
        x = extract_first_paragraph(x) or x
        is_python = str(row.get('language', 'python')).lower() == 'python'
        return x, remove_docstring(y) if is_python else y

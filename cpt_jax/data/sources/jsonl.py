"""Pairs from JSON lines: one object per line, `{"x": ..., "y": ..., "negatives": [...], "id":
...}`, with configurable field names.

The files of FlagEmbedding and sentence-transformers are read as they are (data/known_names.py).
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from cpt_jax.data.equality import LATEST_RULE
from cpt_jax.data.filters import extract_first_paragraph
from cpt_jax.data.known_names import FieldNames, find_known_names
from cpt_jax.data.problems import BadRow, decode_text_field
from cpt_jax.data.python_functions import remove_docstring
from cpt_jax.data.rows import (
    BOM,
    LATEST_RULES,
    ParsedRow,
    RowSource,
    check_rules,
    describe_format,
    split_field_names,
    to_field_names,
)
from cpt_jax.data.scores import check_score_fields, parse_number, parse_scores

DEFAULT_NAMES = ('x', 'y')


class Fields(NamedTuple):
    """The fields to read.

    Attributes:
      x, y: names of the fields with the texts.
      negatives: name of the field with a list of hard negatives; the field is optional.
      id: name of the field with the pair's id; the field is optional.
      group: see RowFormat.
      max_chars: maximum number of characters of a text.
      rules: see RowFormat.
      scores: names of the fields with scores of the positives, then of the hard negatives; ():
        scores are not read.
      score: name of the field with the grade of the pair; '': it is not read.
    """

    x: str
    y: str
    negatives: str
    id: str
    group: tuple[str, ...]
    max_chars: int
    rules: int = LATEST_RULES
    scores: tuple[str, ...] = ()
    score: str = ''

    def __repr__(self) -> str:
        return describe_format('Fields', self._asdict(), ('rules',))

    def read_header(self, path: Path) -> str:
        """Returns '': JSON lines have no header."""
        del path
        return ''

    def parse(self, line: bytes, path: Path) -> ParsedRow:
        """Returns the texts and fields of a row.

        Raises:
          BadRow: the row is invalid.
        """
        try:
            row = json.loads(line.decode('utf-8'))
        except UnicodeDecodeError as error:
            raise BadRow('not UTF-8', str(error)) from None
        except (ValueError, RecursionError) as error:
            advice = '; CSV files need kind=csv' if path.suffix in ('.csv', '.tsv') else ''
            raise BadRow('not JSON', f'{error}{advice}') from None
        if not isinstance(row, dict):
            raise BadRow('not a JSON object')
        names = self._find_names(row)
        for name in (names.x, names.y):
            if name not in row:
                raise BadRow(f'no field {name!r}', f'it has {", ".join(map(repr, row)) or "none"}')
        x = decode_text_field(names.x, row[names.x], self.max_chars)
        positives = self._get_positives(names.y, row[names.y])
        negatives: list[str] = []
        for name in names.negatives:
            negatives += self._get_negatives(name, row.get(name))
        scores = self._get_scores(row, len(positives), names)
        return ParsedRow(x, positives, tuple(negatives), row, scores)

    def _get_scores(
        self, row: dict[str, Any], positives: int, names: FieldNames
    ) -> tuple[tuple[float, ...], ...]:
        """Returns the scores of each positive and its hard negatives, or its grade."""
        wanted = self.scores or to_field_names(self.score)
        for name in wanted:
            if name not in row:
                raise BadRow(f'no field {name!r}', f'it has {", ".join(map(repr, row))}')
        if self.score:
            return ((parse_number(self.score, row[self.score]),),) * positives
        if not self.scores:
            return ()
        listed: list[object] = []
        for name in names.negatives:
            value = row.get(name)
            listed += value if isinstance(value, list) else [value] if value is not None else []
        is_kept = [self.rules == 1 or not _is_blank(text) for text in listed]
        return parse_scores(wanted, [row[name] for name in wanted], positives, is_kept)

    def _find_names(self, row: dict[str, Any]) -> FieldNames:
        """Returns the names of a row's fields: those of another trainer if the config has the
        default names and the row has neither of them.
        """
        is_open = self.rules > 1 and (self.x, self.y) == DEFAULT_NAMES
        if is_open and self.x not in row and self.y not in row:
            if known := find_known_names(row):
                return known
        return FieldNames(self.x, self.y, (self.negatives,))

    def _get_positives(self, name: str, value: object) -> tuple[str, ...]:
        """Returns the texts of field y: one text, or with later rules a list of them."""
        if self.rules == 1 or not isinstance(value, list):
            return (decode_text_field(name, value, self.max_chars),)
        positives = tuple(self._decode_texts(name, value))
        if not positives:
            raise BadRow(f'{name!r} has no text')
        return positives

    def _get_negatives(self, name: str, value: object) -> list[str]:
        """Returns the hard negatives of a field."""
        if value is None:
            return []
        if isinstance(value, str) and name != self.negatives:
            value = [value]
        if not isinstance(value, list):
            raise BadRow(f'{name!r} is not a list of texts')
        return self._decode_texts(name, value)

    def _decode_texts(self, name: str, values: list[object]) -> list[str]:
        """Returns the texts of a list; with later rules, null and empty texts are left out."""
        if self.rules > 1:
            values = [value for value in values if not _is_blank(value)]
        return [decode_text_field(name, value, self.max_chars) for value in values]

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
        rules: int = LATEST_RULES,
        scores: str = '',
        score: str = '',
        equal_texts: str = LATEST_RULE,
        verify: bool = False,
    ):
        """Indexes the files, or reads the index from the cache.

        Args:
          path: a file, a folder (searched recursively for *.jsonl and *.jsonl.gz) or a pattern.
            Gzipped files are decompressed into the cache.
          split: 'train', 'heldout' or 'all'.
          x, y: names of the fields with the texts. A row without fields 'x' and 'y', if these are
            the names, may have those of FlagEmbedding or sentence-transformers. y may be a list of
            texts: each makes a pair with x, and a batch has at most one of them.
          negatives: name of the field with a list of hard negatives; the field is optional, and
            null and empty texts in it are left out.
          id: name of the field with ids; the field is optional.
          group: name of a field; rows with equal values are held out together. If there are several
            names, the first field that the row has is used.
          holdout: fraction of the groups (without `group`, of the distinct x), in [0, 1], that is
            in 'heldout' and not in 'train'.
          max_bad_share: maximum fraction of bad lines, in [0, 1]; more of them are an error.
          max_chars: maximum number of characters of a text; a row with a longer text is bad.
          codesearchnet: whether to cut x to its first paragraph and to remove the docstring from
            Python code in y (rows without `language` are Python). CodeSearchNet's files keep the
            docstring in the code, which makes retrieval trivial.
          rules: version of the rules by which rows are read. A run stores the version with which it
            began.
          scores: name of the field with a teacher's scores: a list of that of y and of each of the
            negatives, in their order. With several names, separated by commas, their lists follow
            each other, as in 'pos_scores,neg_scores' of FlagEmbedding. A row without them is bad.
          score: name of the field with the grade of a pair, a number that is higher the more alike
            x and y are, for the term 'cosent'. A row without it is bad.
          equal_texts: when two x are equal, so that their rows are in one split; a run sets it to
            its data.equal_texts.
          verify: whether to read the files in full to find out whether they changed.

        Raises:
          UserError: no file or row is found, an argument is invalid, or too many rows are bad.
        """
        check_rules(rules)
        names = split_field_names(scores)
        check_score_fields(names, score)
        fields = Fields(x, y, negatives, id, to_field_names(group), max_chars, rules, names, score)
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

    def _clean_texts(self, x: str, y: str, fields: dict[str, Any]) -> tuple[str, str]:
        if not self._codesearchnet:
            return x, y
        x = extract_first_paragraph(x) or x
        is_python = str(fields.get('language', 'python')).lower() == 'python'
        return x, remove_docstring(y) if is_python else y


def _is_blank(value: object) -> bool:
    """Whether a value of a list is null or an empty text, which stands for no text."""
    return value is None or (isinstance(value, str) and not value.strip())

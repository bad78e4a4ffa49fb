"""Counts invalid input rows by kind, and refuses input with too many of them."""

from collections import Counter

from cpt_jax.runtime.errors import UserError


class BadRow(Exception):
    """A row that cannot be used.

    Attributes:
      kind: kind of the problem in a few words; rows are counted by it.
      detail: further information about this row.
    """

    def __init__(self, kind: str, detail: str = ''):
        super().__init__(kind)
        self.kind = kind
        self.detail = detail


def decode_text_field(field: str, value: object, max_chars: int) -> str:
    """Returns the text of a field; bytes are decoded.

    Raises:
      BadRow: the value is not valid as a text of a pair.
    """
    try:
        text = value.decode('utf-8') if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise BadRow(f'{field!r} is not UTF-8', str(error)) from None
    if not isinstance(text, str):
        raise BadRow(f'{field!r} is not text')
    if not text.strip():
        raise BadRow(f'{field!r} is empty')
    if len(text) > max_chars:
        raise BadRow(f'{field!r} is longer than {max_chars:,} characters')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow(
            f'{field!r} contains a lone surrogate', 'half a character, such as \\ud800'
        ) from None
    return text


class Problems:
    """Counts of the rows that cannot be used.

    Attributes:
      max_share: fraction of bad lines, in [0, 1], above which `check` refuses the input.
      rows: number of rows read, good and bad; incremented by the reader of the rows.
      more_lines: number of further lines of rows that span several lines.
      bad_lines: number of lines of the bad rows.
      counts: number of bad rows by kind.
      first: ('file:line', detail) of the first bad row, by kind.
    """

    def __init__(self, max_share: float = 0.001):
        self.max_share = max_share
        self.rows = 0
        self.more_lines = 0
        self.bad_lines = 0
        self.counts: Counter[str] = Counter()
        self.first: dict[str, tuple[str, str]] = {}

    def add(self, error: BadRow, where: str, lines: int = 1) -> None:
        """Counts a bad row.

        Args:
          error: kind of the problem.
          where: 'file:line' of the row.
          lines: number of lines of the row.
        """
        self.bad_lines += lines
        self.counts[error.kind] += 1
        self.first.setdefault(error.kind, (where, error.detail))

    @property
    def bad(self) -> int:
        """Number of bad rows."""
        return sum(self.counts.values())

    def summary(self) -> str:
        """Returns one line with the counts; '' if no row is bad."""
        if not self.bad:
            return ''
        kinds = ', '.join(
            f'{count:,} {kind} (first: {self.first[kind][0]})'
            for kind, count in self.counts.most_common()
        )
        return f'{self._count_bad()} cannot be used: {kinds}'

    def _count_bad(self) -> str:
        """Returns the number of bad rows, and of their lines if a bad row spans several."""
        counts = f'{self.bad:,} of {self.rows:,} rows'
        if self.bad_lines > self.bad:
            counts += f' ({self.bad_lines:,} of {self.rows + self.more_lines:,} lines)'
        return counts

    def check(self) -> None:
        """Raises UserError if the bad rows have more than `max_share` of the lines.

        The message begins with the first bad row.
        """
        if not 0 <= self.max_share <= 1:
            raise UserError(f'max_bad_share={self.max_share:g}: must be a fraction from 0 to 1')
        if self.bad_lines > self.max_share * (self.rows + self.more_lines):
            kind, (where, detail) = next(iter(self.first.items()))
            first = f'{kind}: {detail}' if detail else kind
            counts = ', '.join(f'{count:,} {name}' for name, count in self.counts.most_common())
            raise UserError(
                f'{where}: {first}; {self._count_bad()} cannot be used ({counts}), '
                f'more than the allowed fraction of {self.max_share:g}: fix the rows or raise '
                f'max_bad_share'
            )

    def to_json(self) -> dict:
        """Returns plain values for a cache file, the inverse of `Problems.from_json`."""
        return {
            'rows': self.rows,
            'more_lines': self.more_lines,
            'bad_lines': self.bad_lines,
            'counts': dict(self.counts),
            'first': self.first,
        }

    @classmethod
    def from_json(cls, saved: dict, max_share: float) -> 'Problems':
        """Restores the counts that `to_json` returned."""
        problems = cls(max_share)
        problems.rows = saved['rows']
        problems.counts = Counter(saved['counts'])
        # A cache file of an earlier version does not have these; it counted rows.
        problems.more_lines = saved.get('more_lines', 0)
        problems.bad_lines = saved.get('bad_lines', problems.bad)
        problems.first = {kind: tuple(first) for kind, first in saved['first'].items()}
        return problems

"""What was wrong with the input: counted by kind, shown, and a reason to stop when there is too
much of it.
"""

from collections import Counter

from cpt_jax.runtime.errors import UserError


class BadRow(Exception):
    """A row that cannot be used: the kind of its fault in a few words, and what is special to this
    row.
    """

    def __init__(self, kind: str, detail: str = ''):
        super().__init__(kind)
        self.kind, self.detail = kind, detail


def check_text(field: str, value: object, max_chars: int) -> str:
    """The text of a field, decoded where it is bytes. Raises BadRow if it cannot be one side of a
    pair.
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
            f'{field!r} holds half a character', 'a lone surrogate such as \\ud800'
        ) from None
    return text


class Problems:
    """Counts the rows that could not be used.

    Attributes:
      rows: rows looked at, good and bad; the reader of the rows counts them here.
      counts: how many bad rows of each kind.
      first: where the first bad row of each kind is, as 'file:line', and what its reader said.
    """

    def __init__(self, max_share: float = 0.001):
        """`max_share` is the share of bad rows in [0, 1] above which `check` refuses the input."""
        self.max_share = max_share
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self.first: dict[str, tuple[str, str]] = {}

    def add(self, error: BadRow, where: str) -> None:
        """Counts one bad row; `where` is 'file:line'."""
        self.counts[error.kind] += 1
        self.first.setdefault(error.kind, (where, error.detail))

    @property
    def bad(self) -> int:
        return sum(self.counts.values())

    def summary(self) -> str:
        """One line for people; empty when nothing was wrong."""
        if not self.bad:
            return ''
        kinds = ', '.join(
            f'{count:,} {kind} (first: {self.first[kind][0]})'
            for kind, count in self.counts.most_common()
        )
        return f'{self.bad:,} of {self.rows:,} rows cannot be used: {kinds}'

    def check(self) -> None:
        """Raises UserError if more than `max_share` of the rows were bad; it starts with the place
        of the first one.
        """
        if self.bad > self.max_share * self.rows:
            kind, (where, detail) = next(iter(self.first.items()))
            counts = ', '.join(f'{count:,} {name}' for name, count in self.counts.most_common())
            raise UserError(
                f'{where}: {kind}{detail and ": "}{detail}; {self.bad:,} of {self.rows:,} rows '
                f'cannot be used ({counts}), more than the allowed share of {self.max_share:g}: '
                'repair the rows or raise max_bad_share'
            )

    def to_json(self) -> dict:
        """What a cache file keeps; `Problems.from_json` turns it back."""
        return {'rows': self.rows, 'counts': dict(self.counts), 'first': self.first}

    @classmethod
    def from_json(cls, saved: dict, max_share: float) -> 'Problems':
        problems = cls(max_share)
        problems.rows, problems.counts = saved['rows'], Counter(saved['counts'])
        problems.first = {kind: tuple(first) for kind, first in saved['first'].items()}
        return problems

"""Counts of a task: what came in, what was dropped for which reason, and what went out."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from cpt_jax.prepare.document import Unreadable
from cpt_jax.runtime.errors import UserError

# Records of each kind of problem that are named.
_EXAMPLES = 3


@dataclasses.dataclass
class Counts:
    """Counts of one or several tasks.

    Attributes:
      files, bytes: input files and their bytes.
      records: items that were read, and records that could not be.
      characters: characters of the items.
      unreadable: number of files and records that could not be read, by kind of problem.
      examples: 'where: detail' of the first of them, by kind.
      dropped: number of items, pairs or hard negatives that were dropped, by reason.
      pairs: number of pairs that were written, by split.
      documents: number of documents with such pairs, by split.
    """

    files: int = 0
    bytes: int = 0
    records: int = 0
    characters: int = 0
    unreadable: Counter[str] = dataclasses.field(default_factory=Counter)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    pairs: Counter[str] = dataclasses.field(default_factory=Counter)
    documents: Counter[str] = dataclasses.field(default_factory=Counter)

    def add_unreadable(self, found: Unreadable) -> None:
        """Counts a file or record that cannot be read."""
        self.records += 1
        self.unreadable[found.kind] += 1
        examples = self.examples.setdefault(found.kind, [])
        if len(examples) < _EXAMPLES:
            examples.append(f'{found.where}: {found.detail}'.removesuffix(': '))

    def to_json(self) -> dict[str, Any]:
        """Returns plain values, the inverse of `from_json`."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> 'Counts':
        """Restores the counts that `to_json` returned."""
        counters = ('unreadable', 'dropped', 'pairs', 'documents')
        return cls(**{**stored, **{name: Counter(stored[name]) for name in counters}})


def add_counts(parts: Iterable[Counts]) -> Counts:
    """Returns the sum of counts, with the first examples in their order."""
    total = Counts()
    for part in parts:
        for name in ('files', 'bytes', 'records', 'characters'):
            setattr(total, name, getattr(total, name) + getattr(part, name))
        for name in ('unreadable', 'dropped', 'pairs', 'documents'):
            getattr(total, name).update(getattr(part, name))
        for kind, examples in part.examples.items():
            known = total.examples.setdefault(kind, [])
            known += examples[: _EXAMPLES - len(known)]
    return total


def check_unreadable(counts: Mapping[str, Counts], max_share: float) -> None:
    """Raises UserError if too many records of a source cannot be read.

    Args:
      counts: counts by name of the source.
      max_share: maximum fraction of such records.
    """
    for name, found in counts.items():
        bad = found.unreadable.total()
        if bad > max_share * found.records:
            kind, number = found.unreadable.most_common(1)[0]
            raise UserError(
                f'sources.{name}: {bad:,} of {found.records:,} records cannot be read, most often '
                f'{kind} ({number:,}; first: {found.examples[kind][0]}), more than the allowed '
                f'fraction of {max_share:g}: remove or repair the files, or raise '
                f'output.max_bad_share'
            )
        if not found.records:
            raise UserError(f'sources.{name}: its {found.files:,} files hold no record')

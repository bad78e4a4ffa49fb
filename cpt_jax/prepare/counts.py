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
      cut_files: number of files of which the end could not be read.
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
    cut_files: int = 0
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    pairs: Counter[str] = dataclasses.field(default_factory=Counter)
    documents: Counter[str] = dataclasses.field(default_factory=Counter)

    def add_unreadable(self, found: Unreadable) -> None:
        """Counts a file or record that cannot be read."""
        self.records += 1
        self.unreadable[found.kind] += 1
        self.cut_files += found.ends_file
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
        for name in ('files', 'bytes', 'records', 'characters', 'cut_files'):
            setattr(total, name, getattr(total, name) + getattr(part, name))
        for name in ('unreadable', 'dropped', 'pairs', 'documents'):
            getattr(total, name).update(getattr(part, name))
        for kind, examples in part.examples.items():
            known = total.examples.setdefault(kind, [])
            known += examples[: _EXAMPLES - len(known)]
    return total


def check_unreadable(counts: Mapping[str, Counts], max_share: float) -> None:
    """Raises UserError if too many records of a source cannot be read, or too many of its files not
    to their end: nobody knows how many records are lost there.

    Args:
      counts: counts by name of the source.
      max_share: maximum fraction of such records, and of such files.
    """
    for name, found in counts.items():
        bad = found.unreadable.total()
        problem = ''
        if bad > max_share * found.records:
            problem = f'{bad:,} of {found.records:,} records cannot be read'
        elif found.cut_files > max_share * found.files:
            problem = f'{found.cut_files:,} of {found.files:,} files cannot be read to their end'
        if problem:
            kind, number = found.unreadable.most_common(1)[0]
            raise UserError(
                f'sources.{name}: {problem}, most often {kind} ({number:,}; first: '
                f'{found.examples[kind][0]}), more than the allowed fraction of {max_share:g}: '
                f'remove or repair the files, or raise output.max_bad_share'
            )
        if not found.records and not found.dropped.total():
            raise UserError(f'sources.{name}: its {found.files:,} files hold no record')

"""The files that launch/prepare.py adds to a tfds data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_files import read_json_file

SUMMARY_FILE = 'summary.json'
INFO_FILE = 'dataset_info.json'
_FIRST_VERSION_WITH_RULES = 2
# Kinds of test sets with documents that are relevant to a query.
_KINDS_WITH_DOCUMENTS = ('retrieval', 'codesearch')


def is_prepared(directory: Path) -> bool:
    """Returns whether a directory is a finished output of launch/prepare.py."""
    return (directory / SUMMARY_FILE).is_file() and (directory / INFO_FILE).is_file()


def get_starts_path(directory: Path, split: str) -> Path:
    """Returns the path of a .npy file with `Source.documents` of a split."""
    return directory / f'documents-{split}.npy'


def is_queries_only(name: str, documents: bool) -> bool:
    """Returns whether the relevant documents of a test set were not searched for.

    Args:
      name: name of the test set.
      documents: `decontamination.documents` of launch/prepare.py.
    """
    return not documents and name.partition('/')[0] in _KINDS_WITH_DOCUMENTS


def find_cleaned_sources(
    sources: Mapping[str, object],
) -> dict[str, dict[str, dict[str, Any]] | None]:
    """Returns `PreparedDirectory.searched_sets` of each source that launch/prepare.py wrote."""
    return {
        name: getattr(source, 'searched_sets', None)
        for name, source in sources.items()
        if getattr(source, 'is_prepared', False)
    }


class PreparedDirectory:
    """A finished output of launch/prepare.py.

    Attributes:
      directory: its path.
      splits: names of its splits.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._summary = read_json_file(directory / SUMMARY_FILE)
        self.splits = tuple(self._summary.get('contents', ()))

    @property
    def searched_sets(self) -> dict[str, dict[str, Any]] | None:
        """For each test set whose texts were removed: `texts`, their number; `searched`, how many
        of them are long enough; and `queries_only`. None if no texts were searched for.
        """
        report = self._summary.get('decontamination')
        if report is None:
            return None
        section = self._summary.get('config', {}).get('decontamination', {})
        documents = section.get('documents', True)
        return {
            name: {
                'texts': found['texts'],
                'searched': found['texts'] - found['short'],
                'queries_only': is_queries_only(name, documents),
            }
            for name, found in sorted(report['sets'].items())
        }

    @property
    def removed_pairs(self) -> int:
        """Number of pairs that were removed because of texts of test sets."""
        return self._summary['total']['dropped'].get('contaminated', 0)

    def get_contents(self, split: str) -> str:
        """Returns a digest of all examples of a split."""
        return self._summary['contents'][split]

    def list_rules(self, splits: Sequence[str]) -> list[tuple[str, int]]:
        """Returns the pair rule and the number of pairs of each source, in the order of the pairs;
        [] for a directory of the first version, whose runs go on with what they read.
        """
        if self._summary.get('version', 1) < _FIRST_VERSION_WITH_RULES:
            return []
        # The tasks, and so the shards, are in the order of the sources' names.
        return [
            (self._summary['config']['sources'][name]['pairs'], found['pairs'].get(split, 0))
            for split in splits
            for name, found in sorted(self._summary['sources'].items())
        ]

    def load_documents(self, splits: Sequence[str]) -> np.ndarray:
        """Returns int64[documents + 1], as Source.documents, of splits that follow each other.

        Those of a single split are mapped into memory.

        Raises:
          UserError: the file of a split is missing or damaged.
        """
        parts = []
        for split in splits:
            path = get_starts_path(self.directory, split)
            try:
                parts.append(np.load(path, mmap_mode='r'))
            except (OSError, ValueError) as error:
                raise UserError(f'{path}: cannot be read ({error}): prepare it again') from None
        if len(parts) == 1:
            return parts[0]
        offsets = np.cumsum([0, *(part[-1] for part in parts)])
        shifted = [part[1:] + offset for part, offset in zip(parts, offsets, strict=False)]
        return np.concatenate([[0], *shifted])

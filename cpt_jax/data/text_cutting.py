"""Cuts the documents of text files into shards of pieces."""

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cpt_jax.data.cutting import Cut, TokenCounter
from cpt_jax.data.files import InputFile
from cpt_jax.data.pairs import digest_texts, hash_to_unit_interval
from cpt_jax.data.piece_shards import (
    CONTENTS,
    Contents,
    ShardWriter,
    compute_digest,
    get_shard_paths,
    read_document_table,
    read_notes,
    write_contents,
)
from cpt_jax.data.text_documents import Position, TextDocument, iterate_documents
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.cache import get_free_bytes
from cpt_jax.storage.file_checksums import (
    Checksum,
    compute_stamped_checksum,
    is_undamaged,
    write_checksums,
)

SHARD_BYTES = 128_000_000  # size of a shard's pieces
FORECAST_AFTER = 5.0  # seconds of cutting after which the remaining time is estimated
LONG_CUT = 60.0  # seconds of remaining time above which the estimate is printed
_SECONDS_BETWEEN_REPORTS = 600.0
_MAX_NEW_KEYS = 1 << 20  # number of hashes in a set, before they are moved to an array


class SeenContents:
    """A set of 64-bit hashes of documents, in 8 bytes each.

    Of 50 million different documents, two have an equal hash with a probability of 1 in 15,000.
    """

    def __init__(self) -> None:
        self._sorted = np.zeros(0, np.uint64)
        self._new: set[int] = set()

    def add(self, key: int) -> bool:
        """Adds a hash; returns whether it is new."""
        value = np.uint64(key)
        place = int(np.searchsorted(self._sorted, value))
        is_old = place < len(self._sorted) and self._sorted[place] == value
        if is_old or key in self._new:
            return False
        self._new.add(key)
        if len(self._new) >= _MAX_NEW_KEYS:
            self.update(np.fromiter(self._new, np.uint64, len(self._new)))
            self._new = set()
        return True

    def update(self, keys: np.ndarray) -> None:
        """Adds many hashes."""
        self._sorted = np.concatenate([self._sorted, keys])
        self._sorted.sort()


class CutProgress:
    """The progress of a cut: a bar on a terminal, a line every ten minutes elsewhere, and an
    estimate of the time if it is long.
    """

    def __init__(self, folder: Path, files: int, total: int, bar: tqdm):
        """Starts the clock.

        Args:
          folder: folder of the shards.
          files: number of files.
          total: their size in bytes.
          bar: progress bar.
        """
        self._what = f'{total / 1e9:,.3g} GB of text in {files:,} files'
        self._folder = folder
        self._total = total
        self._bar = bar
        self._done = 0
        self._skipped = 0
        self._start = time.monotonic()
        self._next_report = self._start + FORECAST_AFTER
        self._is_first = True

    def skip(self, size: int) -> None:
        """Counts bytes that an earlier program has cut."""
        self._skipped += size
        self._bar.update(size)

    def update(self, size: int) -> None:
        """Counts bytes that were read."""
        self._done += size
        self._bar.update(size)
        now = time.monotonic()
        if now >= self._next_report:
            self._report(now - self._start)
            self._next_report = now + _SECONDS_BETWEEN_REPORTS

    def _report(self, passed: float) -> None:
        done = self._done + self._skipped
        remaining = (self._total - done) * passed / self._done
        if self._is_first and remaining > LONG_CUT:
            logging.warning(
                'cutting %s into pieces takes about %s on this machine, at %.1f MB/s, and as much '
                'space in %s (%.1f GB are free). It is done once; later starts read the pieces. '
                'To cut with many processes or on other machines, use launch/prepare.py',
                self._what,
                _format_duration(remaining),
                self._done / passed / 1e6,
                self._folder,
                get_free_bytes(self._folder) / 1e9,
            )
        elif self._bar.disable and not self._is_first:
            logging.warning(
                'cutting %s: %.0f %%, about %s remaining',
                self._what,
                100 * done / self._total,
                _format_duration(remaining),
            )
        self._is_first = False


def _format_duration(seconds: float) -> str:
    if seconds < 3600:
        return f'{seconds / 60:.0f} minutes'
    return f'{seconds / 3600:.1f} hours'


class _Cutting:
    """The state of a cut.

    Attributes:
      shards: number of finished shards.
      checksums: checksums of their files, by name.
      next: place of the first document that is not in them.
      counts, latin: see Contents.
      is_finished: whether the shards have all documents.
    """

    def __init__(self) -> None:
        self.shards = 0
        self.checksums: dict[str, Checksum] = {}
        self.next = Position(0, 0)
        self.counts = Counter({'documents': 0, 'repeated': 0, 'too short': 0})
        self.latin: dict[str, None] = {}
        self.is_finished = False
        self._seen = SeenContents()

    @classmethod
    def resume(cls, folder: Path) -> '_Cutting':
        """Returns the state after the shards that an earlier program finished."""
        cutting = cls()
        while not cutting.is_finished:
            table = read_document_table(folder, cutting.shards)
            if table is None:
                return cutting
            notes = read_notes(table)
            if not all(
                is_undamaged(folder / name, checksum)
                for name, checksum in notes['checksums'].items()
            ):
                return cutting
            cutting.next = Position(*notes['next'])
            cutting.counts = Counter(notes['counts'])
            cutting.latin = dict.fromkeys(notes['latin'])
            cutting.is_finished = notes['is_last']
            cutting._seen.update(table.keys)
            cutting._add_shard(folder)
        return cutting

    def _add_shard(self, folder: Path) -> None:
        for path in get_shard_paths(folder, self.shards):
            self.checksums[path.name] = compute_stamped_checksum(path)
        self.shards += 1

    def write_shards(
        self,
        folder: Path,
        documents: Iterator[TextDocument],
        split: Callable[[str], list[str]],
        min_pieces: int,
    ) -> None:
        """Writes the shards of the remaining documents.

        Args:
          folder: folder of the shards.
          documents: the documents from `next` on.
          split: function that returns the pieces of a document.
          min_pieces: documents with fewer pieces are left out.
        """
        while not self.is_finished:
            self.is_finished = True
            with ShardWriter(get_shard_paths(folder, self.shards)) as shard:
                for document in documents:
                    self._add_document(shard, document, split, min_pieces)
                    if shard.size >= SHARD_BYTES:
                        self.is_finished = False
                        break
            shard.finish(
                {
                    'next': self.next,
                    'counts': self.counts,
                    'latin': list(self.latin),
                    'is_last': self.is_finished,
                }
            )
            self._add_shard(folder)

    def _add_document(
        self,
        shard: ShardWriter,
        document: TextDocument,
        split: Callable[[str], list[str]],
        min_pieces: int,
    ) -> None:
        self.next = Position(document.position.file_number, document.position.ordinal + 1)
        self.counts['documents'] += 1
        key = int(digest_texts(' '.join(document.text.split()))[:16], 16)
        if not self._seen.add(key):
            self.counts['repeated'] += 1
            return
        shard.keys.append(key)
        pieces = split(document.text)
        if len(pieces) < min_pieces:
            self.counts['too short'] += 1
            return
        shard.add(document, hash_to_unit_interval(document.name), pieces)


def cut_into_shards(
    folder: Path,
    files: Sequence[InputFile],
    tokenizer: TokenCounter,
    cut: Cut,
    separator: re.Pattern | None,
    min_pieces: int,
) -> None:
    """Cuts all documents into the shards of a folder, after those that an earlier program finished.

    Args:
      folder: folder of the shards.
      files: the text files.
      tokenizer: tokenizer that counts the tokens of texts.
      cut: limits of a piece.
      separator: pattern of the lines that begin a document; None if each file is one.
      min_pieces: documents with fewer pieces are left out.

    Raises:
      UserError: a file is not text, or there is no space for the pieces.
    """
    cutting = _Cutting.resume(folder)
    if not cutting.is_finished:
        sizes = [file.path.stat().st_size for file in files]
        finished = sum(sizes[: cutting.next.file_number])
        _check_free_space(folder, sum(sizes) - finished)
        with tqdm(
            total=sum(sizes), desc='cutting documents', unit='B', unit_scale=True, disable=None
        ) as bar:
            progress = CutProgress(folder, len(files), sum(sizes), bar)
            progress.skip(finished)
            documents = iterate_documents(
                files, separator, cutting.latin, progress.update, cutting.next
            )
            cutting.write_shards(
                folder, documents, lambda text: cut.split(text, tokenizer), min_pieces
            )
    digest = compute_digest(folder, cutting.shards)
    write_contents(
        folder, Contents(cutting.shards, digest, dict(cutting.counts), list(cutting.latin))
    )
    contents = compute_stamped_checksum(folder / CONTENTS)
    write_checksums(folder, cutting.checksums | {CONTENTS: contents})


def _check_free_space(folder: Path, size: int) -> None:
    free = get_free_bytes(folder)
    if size > free:
        raise UserError(
            f'the pieces of {size / 1e9:,.1f} GB of text do not fit into {folder} '
            f'({free / 1e9:,.1f} GB are free): set CPT_JAX_CACHE to a folder on a larger disk'
        )

"""Pairs of neighboring pieces of plain text, as in the training of cpt-text (Neelakantan et al.
2022, section 2.1).

A document is split into consecutive pieces of bounded length, and piece i is paired with piece
i + 1. The paper does not publish how documents were split; here a piece consists of as many whole
sentences as fit.
"""

import logging
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np

from cpt_jax.data.cutting import CUTTING_VERSION, Cut, TokenCounter
from cpt_jax.data.files import digest_file_states, find_input_files
from cpt_jax.data.pairs import Pair, digest_texts
from cpt_jax.data.piece_shards import (
    CONTENTS,
    Contents,
    PieceShards,
    get_shard_paths,
    read_contents,
)
from cpt_jax.data.piece_splits import DocumentSplit, open_document_split
from cpt_jax.data.problems import Problems
from cpt_jax.data.text_cutting import cut_into_shards
from cpt_jax.data.text_documents import compile_separator
from cpt_jax.storage.cache_entry import CacheEntry
from cpt_jax.storage.file_checksums import find_damaged


class TextSource:
    """Pairs (piece i, piece i + 1) of the documents in text files.

    Attributes:
      split, fingerprint: see Source.
      documents: see Source; it covers only the documents of this split.
      problems: number of documents; no document is bad.
      counts: number of documents, of repeated documents, and of documents that are too short for a
        pair; and the names of the files that are read as Latin-1.
    """

    def __init__(
        self,
        path: str,
        split: str,
        tokenizer: TokenCounter,
        piece_tokens: int = 128,
        min_tokens: int = 20,
        separator: str = '',
        holdout: float = 0.0,
        min_pieces: int = 2,
        verify: bool = False,
    ):
        """Splits the documents, or reads the pieces from the cache.

        Args:
          path: a file, a folder (searched recursively for *.txt and *.md) or a pattern. Files that
            are not UTF-8 are read as Latin-1.
          split: 'train', 'heldout' or 'all'.
          tokenizer: tokenizer that counts the tokens of texts, without delimiters.
          piece_tokens: maximum number of tokens of a piece.
          min_tokens: minimum number of tokens of a document's last piece; a shorter one is dropped.
          separator: regular expression. A line that contains a match begins a new document
            ('^CHAPTER ', '^ = [^=]'). Default '': each file is one document. A batch has at most
            one pair of a document, so long files need a separator.
          holdout: fraction of the documents, in [0, 1], that is in 'heldout' and not in 'train'.
          min_pieces: minimum number of pieces of a document; documents with fewer are dropped. A
            pair needs 2; a text for a language model needs only 1.
          verify: whether to read the files in full to find out whether they changed.

        Raises:
          UserError: no file or pair is found, an argument is invalid, or a file is not text.
        """
        cut = Cut(piece_tokens, min_tokens)
        cut.check()
        pattern = compile_separator(separator)
        self._files = find_input_files(path, ('.txt', '.md'), verify)
        key = digest_texts(
            str(CUTTING_VERSION),
            digest_file_states(self._files, verify),
            tokenizer.fingerprint,
            repr(cut),
            separator,
            str(min_pieces),
        )
        self._entry = CacheEntry(f'text_{key}')
        waiting = f'{path}: waiting for another process, which reads or cuts the documents'
        with self._entry.lock(_is_whole, waiting):
            folder = self._entry.folder
            contents = _read_undamaged_contents(folder, verify)
            if contents is None:
                cut_into_shards(folder, self._files, tokenizer, cut, pattern, min_pieces)
                contents = read_contents(folder)
                assert contents is not None
            chosen = open_document_split(folder, contents.shards, split, holdout, path, verify)
        self.counts: dict[str, Any] = {**contents.counts, 'latin-1 files': contents.latin}
        self.split = split
        self.problems = Problems()
        self.problems.rows = contents.counts['documents']
        self.fingerprint = digest_texts('text', contents.digest, split, repr(float(holdout)))
        self.documents = chosen.starts
        self._rows = chosen.rows
        self._shards = PieceShards(folder, contents.shards)

    def __len__(self) -> int:
        return int(self.documents[-1])

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f'pair {index} of {len(self)}')
        document = int(np.searchsorted(self.documents, index, 'right')) - 1
        in_document = int(index - self.documents[document])
        row = self._rows[document]
        x, y = self._shards.read(int(row['first_piece']) + in_document, 2)
        file = self._files[row['file_number']]
        return Pair(x=x, y=y, id=f'{file.name}#{row["ordinal"]}:{in_document}')

    def get_pieces(self) -> 'PiecesOfSplit':
        """Returns the pieces of this split's documents, each once and in order."""
        return PiecesOfSplit(self._shards, DocumentSplit(self.documents, self._rows))

    def summary(self) -> str:
        """Returns one line: the numbers of pairs, documents and files, and what was left out."""
        left_out = ', '.join(f'{self.counts[name]:,} {name}' for name in ('repeated', 'too short'))
        latin = self.counts['latin-1 files']
        return (
            f'text/{self.split}: {len(self):,} pairs of {len(self.documents) - 1:,} documents; '
            f'{self.counts["documents"]:,} documents in {len(self._files):,} files, {left_out}'
            + (f'; not UTF-8 and read as Latin-1: {", ".join(latin)}' if latin else '')
        )


class PiecesOfSplit:
    """The pieces of a split's documents, each once and in order."""

    def __init__(self, shards: PieceShards, chosen: DocumentSplit):
        self._shards = shards
        self._rows = chosen.rows
        self._starts = chosen.starts

    def __len__(self) -> int:
        return self._get_start(len(self._rows))

    def _get_start(self, document: int) -> int:
        """Returns the index of a document's first piece; it has one piece more than pairs."""
        return int(self._starts[document]) + document

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f'piece {index} of {len(self)}')
        document = bisect_right(range(len(self._rows)), index, key=self._get_start) - 1
        first = int(self._rows[document]['first_piece'])
        return self._shards[first + index - self._get_start(document)]


def _is_whole(folder: Path) -> bool:
    return read_contents(folder) is not None


def _read_undamaged_contents(folder: Path, verify: bool) -> Contents | None:
    """Returns what the shards of a folder contain; None if they are not complete.

    Warns about damaged files.
    """
    contents = read_contents(folder)
    if contents is None:
        return None
    paths = [path for shard in range(contents.shards) for path in get_shard_paths(folder, shard)]
    damaged = find_damaged(folder, [CONTENTS, *(path.name for path in paths)], verify)
    if damaged:
        logging.warning('%s/%s is damaged: cutting again from there', folder, damaged[0])
        return None
    return contents

"""Pairs of neighboring pieces of plain text, as in the training of cpt-text (Neelakantan et al.
2022, section 2.1).

A document is split into consecutive pieces of bounded length, and piece i is paired with piece
i + 1. The paper does not publish how documents were split; here a piece consists of as many whole
sentences as fit.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from cpt_jax.data.files import InputFile, digest_file_states, find_input_files
from cpt_jax.data.pairs import Pair, digest_texts, hash_to_unit_interval
from cpt_jax.data.problems import Problems
from cpt_jax.data.split import select_rows
from cpt_jax.data.strings import Strings, StringSelection
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.cache import Arrays, array_to_json, json_to_array, load_or_build

# Increment when a change to the code below changes the pieces of the same files.
CUTTING_VERSION = 1
_CUT_ARRAYS = ('pieces', 'pieces_starts', 'first', 'file_number', 'ordinal', 'unit', 'notes')

_PARAGRAPH_END = re.compile(r'\n\s*\n')
_SENTENCE_END = re.compile(r'(?:(?<=[.!?…])|(?<=[.!?…]["\')\]’”]))\s+')


class TokenCounter(Protocol):
    """The part of a tokenizer's interface that counts tokens."""

    @property
    def fingerprint(self) -> str: ...

    def count(self, texts: Sequence[str]) -> list[int]:
        """Returns the number of tokens of each text, without delimiters."""


class Cut(NamedTuple):
    """How to split a document into pieces.

    Attributes:
      piece_tokens: maximum number of tokens of a piece.
      min_tokens: minimum number of tokens of a piece.
    """

    piece_tokens: int
    min_tokens: int

    def check(self) -> None:
        """Raises UserError if the limits do not fit together."""
        if not 0 < 2 * self.min_tokens <= self.piece_tokens:
            raise UserError(
                f'piece_tokens is {self.piece_tokens} and must be at least twice min_tokens, '
                f'{self.min_tokens}'
            )

    def split(self, document: str, tokenizer: TokenCounter) -> list[str]:
        """Returns the document's pieces in order; a last piece below `min_tokens` is dropped.

        A piece's length is the sum of its sentences' lengths plus one for each joint. It may differ
        from the token count of the whole piece by a token or two, if a tokenizer merges across
        sentences.
        """
        pieces: list[str] = []
        piece = ''
        tokens = 0
        for joint, text, count in self._split_into_segments(document, tokenizer):
            if piece and tokens + 1 + count > self.piece_tokens:
                pieces.append(piece)
                piece = ''
            if piece:
                piece += joint + text
                tokens += 1 + count
            else:
                piece = text
                tokens = count
        if tokens >= self.min_tokens:
            pieces.append(piece)
        return pieces

    def _split_into_segments(
        self, document: str, tokenizer: TokenCounter
    ) -> Iterator[tuple[str, str, int]]:
        """Yields (joint to the previous segment, text, tokens) of each sentence, or part of a long
        sentence.

        A segment has at most piece_tokens - min_tokens tokens. A piece without room for the next
        segment therefore has at least `min_tokens`.
        """
        most = self.piece_tokens - self.min_tokens
        joints, texts = zip(*_split_into_sentences(document), strict=True)
        for joint, text, count in zip(joints, texts, tokenizer.count(texts), strict=True):
            parts = [(text, count)] if count <= most else _split_in_halves(text, tokenizer, most)
            for i, (part, part_count) in enumerate(parts):
                yield (' ' if i else joint), part, part_count


def _split_into_sentences(document: str) -> Iterator[tuple[str, str]]:
    """Yields (joint to the previous sentence, sentence).

    The lines of a paragraph are joined, because they are only wrapped.
    """
    for paragraph in _PARAGRAPH_END.split(document.strip()):
        for i, sentence in enumerate(_SENTENCE_END.split(' '.join(paragraph.split()))):
            yield (' ' if i else '\n'), sentence


def _split_in_halves(text: str, tokenizer: TokenCounter, most: int) -> list[tuple[str, int]]:
    """Returns (part, tokens) of a text that is halved until no part has more than `most` tokens.

    Texts are split at white space if possible.
    """
    count = tokenizer.count([text])[0]
    if count <= most or len(text) == 1:
        return [(text, count)]
    middle = len(text) // 2
    space = text.rfind(' ', 0, middle)
    if space <= 0:
        space = text.find(' ', 1)
    if space > 0:
        left = text[:space]
        right = text[space + 1 :]
    else:
        left = text[:middle]
        right = text[middle:]
    return _split_in_halves(left, tokenizer, most) + _split_in_halves(right, tokenizer, most)


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
        saved = load_or_build(
            f'text_{key}',
            lambda: _cut_files(self._files, tokenizer, cut, pattern, min_pieces),
            _CUT_ARRAYS,
        )
        contents, self.counts = array_to_json(saved['notes'])
        self.split = split
        self.problems = Problems()
        self.problems.rows = self.counts['documents']
        self.fingerprint = digest_texts('text', contents, split, repr(float(holdout)))
        chosen = select_rows(split, saved['unit'] < holdout, path, holdout)
        self._pieces = Strings(saved['pieces'], saved['pieces_starts'])
        # Index of each document's first piece. A document with n pieces has n - 1 pairs.
        self._first_piece = saved['first'][:-1][chosen]
        piece_counts = np.diff(saved['first'])[chosen]
        self.documents = np.cumsum([0, *(piece_counts - 1)], dtype=np.int64)
        self._file_indices = saved['file_number'][chosen]
        self._ordinals = saved['ordinal'][chosen]

    def __len__(self) -> int:
        return int(self.documents[-1])

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f'pair {index} of {len(self)}')
        document = int(np.searchsorted(self.documents, index, 'right')) - 1
        in_document = int(index - self.documents[document])
        piece = int(self._first_piece[document]) + in_document
        file = self._files[self._file_indices[document]]
        name = f'{file.name}#{self._ordinals[document]}:{in_document}'
        return Pair(x=self._pieces[piece], y=self._pieces[piece + 1], id=name)

    def get_pieces(self) -> Sequence[str]:
        """Returns the pieces of this split's documents, each once and in order."""
        counts = np.diff(self.documents) + 1
        # Index of each piece within its document: 0 1 2 | 0 1 | 0 1 2 3 for counts 3, 2, 4.
        document_starts = np.repeat(np.cumsum(counts) - counts, counts)
        in_document = np.arange(counts.sum()) - document_starts
        return StringSelection(self._pieces, np.repeat(self._first_piece, counts) + in_document)

    def summary(self) -> str:
        """Returns one line: the numbers of pairs, documents and files, and what was left out."""
        left_out = ', '.join(f'{self.counts[name]:,} {name}' for name in ('repeated', 'too short'))
        latin = self.counts['latin-1 files']
        return (
            f'text/{self.split}: {len(self):,} pairs of {len(self.documents) - 1:,} documents; '
            f'{self.counts["documents"]:,} documents in {len(self._files):,} files, {left_out}'
            + (f'; not UTF-8 and read as Latin-1: {", ".join(latin)}' if latin else '')
        )


def compile_separator(separator: str) -> re.Pattern | None:
    """Returns the compiled regular expression; None for ''.

    Raises:
      UserError: it is invalid.
    """
    try:
        return re.compile(separator) if separator else None
    except re.error as error:
        raise UserError(
            f'separator: {separator!r} is not a valid regular expression: {error}'
        ) from None


class TextDocument(NamedTuple):
    """A document.

    Attributes:
      file_number: index of its file.
      ordinal: index in its file.
      name: 'FILE#ORDINAL'; its hash decides whether the document is held out.
      text: content.
    """

    file_number: int
    ordinal: int
    name: str
    text: str


def _read_documents(
    files: Sequence[InputFile], separator: re.Pattern | None, latin: list[str]
) -> Iterator[TextDocument]:
    """Yields all documents, and appends the names of files that are not UTF-8 to `latin`."""
    total = sum(file.path.stat().st_size for file in files)
    with tqdm(
        total=total, desc='cutting documents', unit='B', unit_scale=True, disable=None
    ) as bar:
        for file_index, file in enumerate(files):
            source = file.path.read_bytes()
            if b'\0' in source:
                raise UserError(
                    f'{file.original_path}: contains zero bytes, so it is not text: remove it from '
                    f'the path'
                )
            try:
                text = source.decode('utf-8-sig')
            except UnicodeDecodeError:
                latin.append(file.name)
                text = source.decode('latin-1')
            for ordinal, document in enumerate(_split_into_documents(text, separator)):
                yield TextDocument(file_index, ordinal, f'{file.name}#{ordinal}', document)
            bar.update(len(source))


def _split_into_documents(text: str, separator: re.Pattern | None) -> Iterator[str]:
    """Yields the documents of a file, without blank ones.

    A separator line is the first line of its document.
    """
    lines: list[str] = []
    for line in text.splitlines():
        if separator and separator.search(line) and any(map(str.strip, lines)):
            yield '\n'.join(lines)
            lines = []
        lines.append(line)
    if any(map(str.strip, lines)):
        yield '\n'.join(lines)


def _cut_files(
    files: Sequence[InputFile],
    tokenizer: TokenCounter,
    cut: Cut,
    separator: re.Pattern | None,
    min_pieces: int,
) -> Arrays:
    """Splits every document into pieces.

    Returns:
      Arrays for a cache file. `pieces` and `pieces_starts`: the texts of all pieces, see Strings.
      For the D documents with at least `min_pieces` pieces: `first` int64[D + 1], index of the
      first piece; `file_number` int64[D], index of the file; `ordinal` int64[D], index of the
      document in its file; `unit` float64[D], the number in [0, 1) that decides the split. `notes`
      has a digest of the pieces, and the counts.
    """
    counts = Counter({'documents': 0, 'repeated': 0, 'too short': 0})
    latin: list[str] = []
    seen: set[str] = set()
    pieces: list[str] = []
    found: list[tuple[int, int, int, float]] = []
    for document in _read_documents(files, separator, latin):
        counts['documents'] += 1
        content = digest_texts(' '.join(document.text.split()))
        if content in seen:
            counts['repeated'] += 1
            continue
        seen.add(content)
        new_pieces = cut.split(document.text, tokenizer)
        if len(new_pieces) < min_pieces:
            counts['too short'] += 1
            continue
        unit = hash_to_unit_interval(document.name)
        found.append((len(pieces), document.file_number, document.ordinal, unit))
        pieces += new_pieces
    texts = Strings.from_texts(pieces)
    first, file_numbers, ordinals, units = zip(*found, strict=True) if found else ((),) * 4
    contents = blake2b(
        texts.bytes.tobytes() + texts.starts.tobytes() + repr(first).encode()
    ).hexdigest()
    return {
        'pieces': texts.bytes,
        'pieces_starts': texts.starts,
        'first': np.array([*first, len(pieces)], np.int64),
        'file_number': np.array(file_numbers, np.int64),
        'ordinal': np.array(ordinals, np.int64),
        'unit': np.array(units, np.float64),
        'notes': json_to_array([contents, {**counts, 'latin-1 files': latin}]),
    }

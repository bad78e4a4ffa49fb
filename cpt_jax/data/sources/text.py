"""Pairs of neighbouring pieces of plain text, as cpt-text was trained on (Neelakantan et al. 2022,
section 2.1).

A document is cut into consecutive pieces of bounded length, and piece i is paired with piece i + 1.
How the paper cut its documents is not published; here a piece is as many whole sentences as fit.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from cpt_jax.data.files import InputFile, files_state, input_files
from cpt_jax.data.pairs import Pair, text_digest, unit_hash
from cpt_jax.data.problems import Problems
from cpt_jax.data.split import rows_of
from cpt_jax.data.strings import Chosen, Strings
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.cache import Arrays, cached, from_array, to_array

CUTTING_VERSION = 1  # raise it when the code below cuts other pieces of the same files

_PARAGRAPH_END = re.compile(r'\n\s*\n')
_SENTENCE_END = re.compile(r'(?:(?<=[.!?…])|(?<=[.!?…]["\')\]’”]))\s+')


class TokenCounter(Protocol):
    """What is needed of a tokenizer."""

    @property
    def fingerprint(self) -> str: ...

    def count(self, texts: Sequence[str]) -> list[int]: ...


class Cut(NamedTuple):
    """How a document is cut: the most tokens of a piece, and the fewest of its last one."""

    piece_tokens: int
    min_tokens: int

    def check(self) -> None:
        if not 0 < 2 * self.min_tokens <= self.piece_tokens:
            raise UserError(
                f'piece_tokens is {self.piece_tokens} and must be at least twice min_tokens, '
                f'{self.min_tokens}'
            )

    def pieces(self, document: str, tokenizer: TokenCounter) -> list[str]:
        """The document's pieces, in order; all but the last hold at least `min_tokens`, and a
        shorter last one is dropped.

        A piece's length is the sum over its sentences and one for each joint. Where a tokenizer
        joins across sentences, the count of the whole may differ by a token or two.
        """
        pieces, piece, tokens = [], '', 0
        for joint, text, count in self._units(document, tokenizer):
            if piece and tokens + 1 + count > self.piece_tokens:
                pieces.append(piece)
                piece, tokens = '', 0
            piece, tokens = (piece + joint + text, tokens + 1 + count) if piece else (text, count)
        return pieces + [piece] if tokens >= self.min_tokens else pieces

    def _units(self, document: str, tokenizer: TokenCounter) -> Iterator[tuple[str, str, int]]:
        """(what joins it to the one before, text, tokens) of what is not cut further: sentences,
        and parts of long ones.

        No unit is longer than `most`, so a piece that has no room for the next unit holds
        `min_tokens` already.
        """
        most = self.piece_tokens - self.min_tokens
        joints, texts = zip(*_sentences(document), strict=True)
        for joint, text, count in zip(joints, texts, tokenizer.count(texts), strict=True):
            parts = [(text, count)] if count <= most else _halved(text, tokenizer, most)
            for i, (part, part_count) in enumerate(parts):
                yield (' ' if i else joint), part, part_count


def _sentences(document: str) -> Iterator[tuple[str, str]]:
    """(what joins it to the one before, sentence); the lines of a paragraph are joined, for they
    are wrapped at some width.
    """
    for paragraph in _PARAGRAPH_END.split(document.strip()):
        for i, sentence in enumerate(_SENTENCE_END.split(' '.join(paragraph.split()))):
            yield (' ' if i else '\n'), sentence


def _halved(text: str, tokenizer: TokenCounter, most: int) -> list[tuple[str, int]]:
    """(part, tokens) of a text cut in two, at white space if it has any, until no part is longer
    than `most` tokens.
    """
    count = tokenizer.count([text])[0]
    if count <= most or len(text) == 1:
        return [(text, count)]
    space = text.rfind(' ', 0, len(text) // 2)
    middle = space if space > 0 else text.find(' ', 1)
    left, right = (
        (text[:middle], text[middle + 1 :])
        if middle > 0
        else (text[: len(text) // 2], text[len(text) // 2 :])
    )
    return _halved(left, tokenizer, most) + _halved(right, tokenizer, most)


class TextSource:
    """Pairs (piece i, piece i + 1) of the documents in some text files.

    Attributes:
      split, fingerprint, documents, problems: as every source; documents are the ones of this
        split.
      counts: documents read, how many of them were repeated and how many were too short for a pair,
        and latin-1 files.
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
    ):
        """Cuts the documents, or reads the pieces that an earlier call left.

        Args:
          path: a file, a folder (*.txt and *.md in it and below) or a pattern. UTF-8, or else taken
            for Latin-1.
          split: 'train', 'heldout' or 'all'.
          tokenizer: counts tokens, without delimiters.
          piece_tokens: the most tokens of a piece.
          min_tokens: a document's last piece is dropped if it is shorter.
          separator: a regular expression; a line in which it is found begins a new document
            ('^CHAPTER ', '^ = [^=]'). Without one a file is a document. A batch holds one pair of a
            document, so long files want one.
          holdout: share of the documents, in [0, 1], that 'heldout' gets and 'train' does not.
          min_pieces: documents of fewer are left out. One piece makes no pair, but a text for a
            language model.
        """
        cut = Cut(piece_tokens, min_tokens)
        cut.check()
        pattern = _compiled(separator)
        self._files = input_files(path, ('.txt', '.md'))
        key = text_digest(
            str(CUTTING_VERSION),
            files_state(self._files),
            tokenizer.fingerprint,
            repr(cut),
            separator,
            str(min_pieces),
        )
        saved = cached(
            f'text_{key}', lambda: _cut_files(self._files, tokenizer, cut, pattern, min_pieces)
        )
        contents, self.counts = from_array(saved['notes'])
        self.split, self.problems = split, Problems()
        self.problems.rows = self.counts['documents']
        self.fingerprint = text_digest('text', contents, split, repr(float(holdout)))
        chosen = rows_of(split, saved['unit'] < holdout, path, holdout)
        self._pieces = Strings(saved['pieces'], saved['pieces_starts'])
        self._first = saved['first'][:-1][chosen]
        self.documents = np.cumsum([0, *(np.diff(saved['first'])[chosen] - 1)], dtype=np.int64)
        self._file_number, self._ordinal = saved['file_number'][chosen], saved['ordinal'][chosen]

    def __len__(self) -> int:
        return int(self.documents[-1])

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f'pair {index} of {len(self)}')
        document = int(np.searchsorted(self.documents, index, 'right')) - 1
        number = int(index - self.documents[document])
        piece = int(self._first[document]) + number
        name = f'{self._files[self._file_number[document]].name}#{self._ordinal[document]}:{number}'
        return Pair(x=self._pieces[piece], y=self._pieces[piece + 1], id=name)

    def pieces(self) -> Sequence[str]:
        """The pieces of this split's documents, each once and in order."""
        counts = np.diff(self.documents) + 1
        before = np.repeat(np.cumsum(counts) - counts, counts)
        return Chosen(
            self._pieces, np.repeat(self._first, counts) + np.arange(counts.sum()) - before
        )

    def summary(self) -> str:
        """One line: how many pairs of how many documents, and what was left out."""
        left_out = ', '.join(f'{self.counts[name]:,} {name}' for name in ('repeated', 'too short'))
        latin = self.counts['latin-1 files']
        return (
            f'text/{self.split}: {len(self):,} pairs of {len(self.documents) - 1:,} documents; '
            f'{self.counts["documents"]:,} documents in {len(self._files):,} files, {left_out}'
            + (f'; not UTF-8 and read as Latin-1: {", ".join(latin)}' if latin else '')
        )


def _compiled(separator: str) -> re.Pattern | None:
    try:
        return re.compile(separator) if separator else None
    except re.error as error:
        raise UserError(f'separator: {separator!r} is no regular expression: {error}') from None


class Document(NamedTuple):
    """A document: its place (number of the file, ordinal in it), the name that decides its side,
    its text.
    """

    file_number: int
    ordinal: int
    name: str
    text: str


def _documents(
    files: Sequence[InputFile], separator: re.Pattern | None, latin: list[str]
) -> Iterator[Document]:
    """All documents; names of files that are not UTF-8 go to `latin`."""
    total = sum(file.path.stat().st_size for file in files)
    with tqdm(
        total=total, desc='cutting documents', unit='B', unit_scale=True, disable=None
    ) as bar:
        for number, file in enumerate(files):
            source = file.path.read_bytes()
            if b'\0' in source:
                raise UserError(
                    f'{file.path}: holds zero bytes, so it is no text: take it out of the path'
                )
            try:
                text = source.decode('utf-8-sig')
            except UnicodeDecodeError:
                latin.append(file.name)
                text = source.decode('latin-1')
            for ordinal, document in enumerate(_separated(text, separator)):
                yield Document(number, ordinal, f'{file.name}#{ordinal}', document)
            bar.update(len(source))


def _separated(text: str, separator: re.Pattern | None) -> Iterator[str]:
    """The documents of a file that are not blank; a separating line is the first of its
    document.
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
    """Cuts every document.

    Returns: `pieces` and `pieces_starts`, the texts of all pieces; for the D documents with
    `min_pieces` or more `first` int64[D + 1], the number of their first piece, file_number and
    ordinal (in the file) int64[D], and unit float64[D], the number in [0, 1) that decides the side;
    `notes` holds a digest of the pieces and the counts.
    """
    counts = Counter({'documents': 0, 'repeated': 0, 'too short': 0})
    latin: list[str] = []
    seen: set[str] = set()
    pieces: list[str] = []
    found: list[tuple[int, int, int, float]] = []
    for document in _documents(files, separator, latin):
        counts['documents'] += 1
        content = text_digest(' '.join(document.text.split()))
        if content in seen:
            counts['repeated'] += 1
            continue
        seen.add(content)
        cuts = cut.pieces(document.text, tokenizer)
        if len(cuts) < min_pieces:
            counts['too short'] += 1
            continue
        found.append(
            (len(pieces), document.file_number, document.ordinal, unit_hash(document.name))
        )
        pieces += cuts
    texts = Strings.of(pieces)
    first, number, ordinal, unit = zip(*found, strict=True) if found else ((),) * 4
    contents = blake2b(
        texts.bytes.tobytes() + texts.starts.tobytes() + repr(first).encode()
    ).hexdigest()
    return {
        'pieces': texts.bytes,
        'pieces_starts': texts.starts,
        'first': np.array([*first, len(pieces)], np.int64),
        'file_number': np.array(number, np.int64),
        'ordinal': np.array(ordinal, np.int64),
        'unit': np.array(unit, np.float64),
        'notes': to_array([contents, {**counts, 'latin-1 files': latin}]),
    }

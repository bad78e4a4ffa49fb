"""Texts to token ids: sentencepiece models and Hugging Face tokenizer.json behind one face, with
the paper's delimiters.
"""

import functools
import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import sentencepiece
import tokenizers

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import write_atomically

Side = Literal['x', 'y']

# "Text and Code Embeddings by Contrastive Pre-Training", section 2: x is wrapped in [ ], y in { }.
# They are four ids of their own behind the model's vocabulary, so no text can produce them or merge
# with them.
DELIMITERS = ('[', ']', '{', '}')
_OPEN: dict[Side, int] = {'x': 0, 'y': 2}
CLOSINGS = ('own', 'shared')

# The special tokens of published language models that begin and end a text, by the names that stand
# in a tokenizer.json. GPT-2, and with it GPT-NeoX and Qwen, have one for both.
_ENDS = ('</s>', '<eos>', '<|end_of_text|>', '<|endoftext|>', '[SEP]')
_STARTS = ('<s>', '<bos>', '<|begin_of_text|>', '[CLS]')

# White space by Unicode's property, which is what other readers of an export strip (`str.strip`
# takes four control characters more).
_WHITE = (
    '\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007'
    '\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000'
)

# sentencepiece's sign for a space; and a control piece, which no text matches, in a model whose
# space pieces are left out of the ids.
SPACE = '\u2581'
SPACES_DROPPED = '<spaces dropped>'


class _Model(Protocol):
    """A subword model: what differs between the two file formats."""

    file_name: str
    data: bytes
    size: int
    # The ids that begin and end a text of a language model; -1 where there is none.
    boundaries: tuple[int, int]

    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class _SentencePiece:
    file_name = 'tokenizer.model'

    def __init__(self, data: bytes):
        self.data = data
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        self.size = self._processor.get_piece_size()
        start, end = self._processor.bos_id(), self._processor.eos_id()
        self.boundaries = start if start >= 0 else end, end

        marked = self._processor.piece_to_id(SPACES_DROPPED)
        self._space = (
            self._processor.piece_to_id(SPACE) if self._processor.is_control(marked) else -1
        )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        found = self._processor.encode(list(texts), num_threads=-1)
        return found if self._space < 0 else [[i for i in ids if i != self._space] for ids in found]

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(i) for i in ids])


class _HuggingFace:
    file_name = 'tokenizer.json'

    def __init__(self, data: bytes):
        self.data = data
        self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # "[CLS]" in a text is text: only we add special tokens.
        self._tokenizer.encode_special_tokens = True
        self.size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        special = {
            token.content: i
            for i, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        named = [
            next((special[name] for name in names if name in special), -1)
            for names in (_STARTS, _ENDS)
        ]
        # What it puts before every text is the start that its model knows, whatever the name (OPT:
        # </s>).
        first = self._tokenizer.encode('').ids[:1]
        self.boundaries = next((i for i in (*first, *named) if i >= 0), -1), named[1]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [
            e.ids for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)


class Tokenizer:
    """Wraps texts in their side's delimiters and turns them into ids.

    Attributes:
      vocab_size: number of ids, the four delimiters (the last four) included.
      closing: 'own': each side ends with its own delimiter, as in the paper. 'shared': y ends with
        that of x, so that a tokenizer.json, which cannot end texts in two ways, serves both sides
        (`cpt_jax/exporting/tokenizer.py`).
      fingerprint: hex digits that differ when any text could get other ids; stored in checkpoints.
    """

    def __init__(self, model: _Model, closing: str = 'own'):
        """Raises UserError where there is no such closing."""
        if closing not in CLOSINGS:
            raise UserError(f'tokenizer.closing={closing!r}: choose one of {", ".join(CLOSINGS)}')
        self._model, self.closing = model, closing
        self.vocab_size = model.size + len(DELIMITERS)

    def closed(self, closing: str) -> 'Tokenizer':
        """The same with another `closing`."""
        return Tokenizer(self._model, closing)

    @property
    def added(self) -> tuple[int, ...]:
        """Ids that a pretrained model with this tokenizer does not have: the delimiters."""
        return *self.delimiters('x'), *self.delimiters('y')

    @property
    def file(self) -> tuple[str, bytes]:
        """The model's file, in its own format: its usual name and its content."""
        return self._model.file_name, self._model.data

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.blake2b(
            self._model.data + repr(self.describe()).encode(), digest_size=16
        ).hexdigest()

    def describe(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """What stands around a text, for results."""
        first = self._model.size
        return {
            'delimiters': {
                side: tuple(DELIMITERS[i - first] for i in self.delimiters(side)) for side in _OPEN
            }
        }

    def delimiters(self, side: Side) -> tuple[int, int]:
        """The opening and the closing id of a side."""
        opening = self._model.size + _OPEN[side]
        return opening, self._model.size + 1 if self.closing == 'shared' else opening + 1

    def encode(self, texts: Sequence[str], side: Side, max_tokens: int) -> list[np.ndarray]:
        """Ids of each text between its delimiters, at most `max_tokens` of them: int32 arrays of at
        least two ids.

        The text is cut before the delimiters are added, so that the closing one, whose state is the
        embedding, is never lost. White space around it does not count: some readers of an export
        strip it, some do not.
        """
        if max_tokens < 2:
            raise ValueError(f'max_tokens = {max_tokens} leaves no room for the two delimiters')
        opening, closing = self.delimiters(side)
        return [
            np.array([opening, *ids[: max_tokens - 2], closing], np.int32)
            for ids in self._stripped(texts)
        ]

    @property
    def boundaries(self) -> tuple[int, int]:
        """The ids that begin and end a text for a language model, which may be one: <s> and </s>,
        or <|endoftext|>.

        They are the model's own, so that one that others trained goes on with those that it knows,
        and none of the four delimiters, which stay unseen until a contrastive run adds them.

        Raises:
          UserError: it has none.
        """
        start, end = self._model.boundaries
        if end < 0:
            names = ' or '.join(_ENDS)
            raise UserError(
                f'this tokenizer has no id that ends a text ({names}), which a language model '
                f'needs: let the run train its own'
            )
        return start, end

    def encode_language(
        self, texts: Sequence[str], max_tokens: int, end: bool = True
    ) -> list[np.ndarray]:
        """Ids of each text for a language model, at most `max_tokens` of them: int32 arrays of at
        least one id.

        The start id, the text just as it is (white space around it counts), and the end id where
        the text was not cut: a text that goes on does not end.

        Args:
          end: False leaves the end id out of all, as of prompts that the model is to go on from.

        Raises:
          UserError: see `boundaries`.
        """
        if max_tokens < 1:
            raise ValueError(f'max_tokens = {max_tokens} leaves no room for the start id')
        start, stop = self.boundaries
        behind = [stop] if end else []
        return [
            np.array([start, *ids, *behind][:max_tokens], np.int32)
            for ids in self._model.encode(texts)
        ]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Number of ids of each text, without delimiters."""
        return [len(ids) for ids in self._stripped(texts)]

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text as it is, white space around it included, without delimiters."""
        return self._model.encode(texts)

    def _stripped(self, texts: Sequence[str]) -> list[list[int]]:
        return self._model.encode([text.strip(_WHITE) for text in texts])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, without delimiters."""
        return self._model.decode([i for i in ids if i < self._model.size])

    def save(self, directory: Path | str) -> None:
        """Writes the model's file, in its own format, into a directory."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / self._model.file_name, self._model.data)


def load_tokenizer(path: Path | str, closing: str = 'own') -> Tokenizer:
    """Reads a sentencepiece model or a tokenizer.json: the file, or a directory that holds
    `tokenizer.model` or `tokenizer.json`.

    Raises:
      UserError: there is no such file, or it is neither format.
    """
    path = Path(path)
    if path.is_dir():
        found = [
            path / kind.file_name
            for kind in (_HuggingFace, _SentencePiece)
            if (path / kind.file_name).is_file()
        ]
        if not found:
            raise UserError(f'{path}: holds neither tokenizer.json nor tokenizer.model')
        path = found[0]
    if not path.is_file():
        raise UserError(f'{path}: no such tokenizer file')
    return tokenizer_from_file(str(path), path.read_bytes(), closing)


def tokenizer_from_file(name: str, data: bytes, closing: str = 'own') -> Tokenizer:
    """A tokenizer from the content of its file; `name` ends in .json for a tokenizer.json, anything
    else is a sentencepiece model.
    """
    kind = _HuggingFace if name.endswith('.json') else _SentencePiece
    try:
        model = kind(data)
    except Exception as error:  # both libraries raise bare exceptions of their own
        raise UserError(
            f'{name}: not a {kind.file_name} that can be read: {str(error).splitlines()[0]}'
        ) from error
    return Tokenizer(model, closing)


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    model_type: str,
    normalization: str,
    whitespace: str,
    characters: int,
    seed: int,
    closing: str = 'own',
    boundaries: bool = False,
) -> Tokenizer:
    """Trains a sentencepiece model on texts; the same texts and arguments give the same bytes.

    Args:
      texts: what to learn the pieces from, in a fixed order.
      vocab_size: ids to make, the four delimiters included; fewer where the texts do not hold as
        many pieces.
      model_type: 'unigram' or 'bpe'.
      normalization: a sentencepiece rule: 'identity', 'nfkc', 'nmt_nfkc', or with case folding
        'nfkc_cf', 'nmt_nfkc_cf'.
      whitespace: 'prefix' marks the start of a word on its first piece, as usual. 'drop' makes a
        space a piece of its own and leaves it out of the ids, so that a word is one piece wherever
        it stands: behind a space, a bracket or an underscore (which is a piece of its own too). A
        query and an identifier then share ids from the start; what is lost is the layout of the
        code.
      characters: stop reading after so many characters.
      seed: of sentencepiece's own random choices.
      closing: 'own' or 'shared'; see Tokenizer.
      boundaries: with the pieces <s> and </s>, which no text matches, for a language model.
    """
    for key, value, known in [
        ('model_type', model_type, ('bpe', 'unigram')),
        ('whitespace', whitespace, ('prefix', 'drop')),
    ]:
        if value not in known:
            raise UserError(f'tokenizer.{key}={value!r}: choose one of {", ".join(known)}')
    sentencepiece.set_random_generator_seed(seed)
    written = io.BytesIO()
    sample = list(_first_characters(texts, characters))
    if not sample:
        raise UserError('tokenizer: the sources hold no text to train it on')
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=written,
            vocab_size=vocab_size - len(DELIMITERS),
            hard_vocab_limit=False,
            model_type=model_type,
            byte_fallback=True,  # any text has ids, none is unknown
            normalization_rule_name=normalization,
            remove_extra_whitespaces=normalization != 'identity',
            user_defined_symbols=[SPACE, '_'] if whitespace == 'drop' else [],
            control_symbols=[SPACES_DROPPED] if whitespace == 'drop' else [],
            max_sentence_length=1 << 20,
            num_threads=1,  # sums of several threads depend on their number
            bos_id=1 if boundaries else -1,  # as in LLaMA's
            eos_id=2 if boundaries else -1,
            pad_id=-1,
            minloglevel=2,
        )
    # An unknown rule, or a vocabulary too small for the 256 bytes and the characters.
    except RuntimeError as error:
        raise UserError(f'tokenizer: sentencepiece cannot train one: {error}') from error
    return Tokenizer(_SentencePiece(written.getvalue()), closing)


def _first_characters(texts: Iterable[str], characters: int) -> Iterable[str]:
    for text in texts:
        if characters <= 0:
            return
        yield text[:characters]
        characters -= len(text)

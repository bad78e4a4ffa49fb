"""Token ids of texts between the paper's delimiters, from a sentencepiece model or a Hugging Face
tokenizer.json.
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
from cpt_jax.storage.paths import as_path

Side = Literal['x', 'y']
SIDES: tuple[Side, ...] = ('x', 'y')

# "Text and Code Embeddings by Contrastive Pre-Training", section 2: x is wrapped in [ ], y in { }.
# They have the four ids after the model's vocabulary, so no text can produce them or merge with
# them.
DELIMITERS = ('[', ']', '{', '}')
_OPENING_OFFSETS: dict[Side, int] = {'x': 0, 'y': 2}
CLOSINGS = ('own', 'shared', 'same')

# Names of EOS and BOS in the tokenizer.json of published language models. GPT-2, GPT-NeoX and Qwen
# have one token for both.
_EOS_NAMES = ('</s>', '<eos>', '<|end_of_text|>', '<|endoftext|>', '[SEP]')
_BOS_NAMES = ('<s>', '<bos>', '<|begin_of_text|>', '[CLS]')

# Characters with Unicode's White_Space property, which is what other readers of an export strip.
# `str.strip` also strips four control characters.
WHITESPACE = (
    '\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007'
    '\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000'
)

# The character that sentencepiece writes for a space.
SPACE = '\u2581'
# A control token that marks a model whose ids omit spaces. No text matches it.
SPACES_DROPPED = '<spaces dropped>'


class _SubwordModel(Protocol):
    """A subword model in one of the two file formats.

    Attributes:
      file_name: usual name of the file.
      data: content of the file.
      size: number of ids.
      bos_and_eos: ids that begin and end a text for a language model; -1 if there is none.
    """

    file_name: str
    data: bytes
    size: int
    bos_and_eos: tuple[int, int]

    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class _SentencePieceSubwords:
    file_name = 'tokenizer.model'

    def __init__(self, data: bytes):
        self.data = data
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        self.size = self._processor.get_piece_size()
        bos, eos = self._processor.bos_id(), self._processor.eos_id()
        self.bos_and_eos = (bos if bos >= 0 else eos, eos)
        # Id that is omitted from all texts; -1 if no id is omitted.
        self._space = -1
        if self._processor.is_control(self._processor.piece_to_id(SPACES_DROPPED)):
            self._space = self._processor.piece_to_id(SPACE)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        found = self._processor.encode(list(texts), num_threads=-1)
        if self._space < 0:
            return found
        return [[i for i in ids if i != self._space] for ids in found]

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(i) for i in ids])


class _HuggingFaceSubwords:
    file_name = 'tokenizer.json'

    def __init__(self, data: bytes):
        self.data = data
        self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # The names of special tokens in a text, such as "[CLS]", are encoded as plain text.
        self._tokenizer.encode_special_tokens = True
        self.size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.bos_and_eos = self._find_bos_and_eos()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoded.ids for encoded in found]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def _find_bos_and_eos(self) -> tuple[int, int]:
        special = {
            token.content: i
            for i, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        bos = next((special[name] for name in _BOS_NAMES if name in special), -1)
        eos = next((special[name] for name in _EOS_NAMES if name in special), -1)
        # The token that the tokenizer itself puts before every text is the BOS that its model was
        # trained with, whatever its name (in OPT, </s>).
        first = self._tokenizer.encode('').ids[:1]
        return next((i for i in (*first, bos, eos) if i >= 0), -1), eos


class Tokenizer:
    """Turns texts into ids between the delimiters of their side.

    Attributes:
      vocab_size: number of ids, including the four delimiters, which are the last ids.
      closing: closing delimiter of side y. 'own': y has its own delimiter, as in the paper.
        'shared': y has the delimiter of x, so that one tokenizer.json, which cannot end texts in
        two ways, serves both sides (`cpt_jax/exporting/tokenizer.py`). 'same': y has both
        delimiters of x, so equal texts have equal vectors on both sides.
      fingerprint: hex digits that differ if any text could get other ids; stored in checkpoints.
    """

    def __init__(self, model: _SubwordModel, closing: str = 'own'):
        """Wraps a subword model.

        Raises:
          UserError: `closing` is unknown.
        """
        if closing not in CLOSINGS:
            raise UserError(f'tokenizer.closing={closing!r}: choose one of {", ".join(CLOSINGS)}')
        self._model = model
        self.closing = closing
        self.vocab_size = model.size + len(DELIMITERS)

    def with_closing(self, closing: str) -> 'Tokenizer':
        """Returns the same tokenizer with another `closing`."""
        return Tokenizer(self._model, closing)

    @property
    def added_ids(self) -> tuple[int, ...]:
        """The delimiters: ids that a pretrained model with this subword model does not have."""
        return *self.get_delimiters('x'), *self.get_delimiters('y')

    @property
    def file(self) -> tuple[str, bytes]:
        """(name, content) of the subword model's file, in its own format."""
        return self._model.file_name, self._model.data

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.blake2b(
            self._model.data + repr(self.describe()).encode(), digest_size=16
        ).hexdigest()

    def describe(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Returns the delimiters of each side, as plain values for results."""
        first = self._model.size
        by_side: dict[str, tuple[str, ...]] = {
            side: tuple(DELIMITERS[i - first] for i in self.get_delimiters(side))
            for side in _OPENING_OFFSETS
        }
        return {'delimiters': by_side}

    def get_delimiters(self, side: Side) -> tuple[int, int]:
        """Returns the opening and the closing id of a side."""
        first = self._model.size
        opening = first + _OPENING_OFFSETS['x' if self.closing == 'same' else side]
        closing = opening + 1 if self.closing == 'own' else first + 1
        return opening, closing

    def encode(self, texts: Sequence[str], side: Side, max_tokens: int) -> list[np.ndarray]:
        """Returns int32[n] ids for each text between its delimiters, 2 <= n <= `max_tokens`.

        A long text is truncated before the delimiters are added: the state at the closing one is
        the embedding, so it must not be lost. Leading and trailing white space is stripped, because
        only some readers of an export strip it themselves.
        """
        if max_tokens < 2:
            raise ValueError(f'max_tokens = {max_tokens} leaves no room for the two delimiters')
        opening, closing = self.get_delimiters(side)
        return [
            np.array([opening, *ids[: max_tokens - 2], closing], np.int32)
            for ids in self._encode_stripped(texts)
        ]

    @property
    def bos_and_eos(self) -> tuple[int, int]:
        """Ids of BOS and EOS for a language model, such as <s> and </s>; <|endoftext|> is both.

        They are the subword model's own, so that a pretrained model continues with the ids that it
        knows. They are none of the four delimiters, which only contrastive runs use.

        Raises:
          UserError: there is no EOS.
        """
        bos, eos = self._model.bos_and_eos
        if eos < 0:
            names = ' or '.join(_EOS_NAMES)
            raise UserError(
                f'this tokenizer has no id that ends a text ({names}), which a language model '
                f'needs: leave tokenizer.path empty, so that the run trains its own'
            )
        return bos, eos

    def encode_language(
        self, texts: Sequence[str], max_tokens: int, end: bool = True
    ) -> list[np.ndarray]:
        """Returns int32[n] ids for each text for a language model, 1 <= n <= `max_tokens`.

        These are BOS, the text as it is (leading and trailing white space included) and EOS.
        Truncation removes EOS, because a truncated text does not end there.

        Args:
          texts: texts to encode.
          max_tokens: maximum number of ids of a text.
          end: whether to append EOS; False for prompts that a model continues.

        Raises:
          UserError: see `bos_and_eos`.
        """
        if max_tokens < 1:
            raise ValueError(f'max_tokens = {max_tokens} leaves no room for BOS')
        bos, eos = self.bos_and_eos
        suffix = [eos] if end else []
        return [
            np.array([bos, *ids, *suffix][:max_tokens], np.int32)
            for ids in self._model.encode(texts)
        ]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Returns the number of ids of each stripped text, without delimiters."""
        return [len(ids) for ids in self._encode_stripped(texts)]

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text without delimiters; white space is not stripped."""
        return self._model.encode(texts)

    def _encode_stripped(self, texts: Sequence[str]) -> list[list[int]]:
        return self._model.encode([text.strip(WHITESPACE) for text in texts])

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; delimiters are left out."""
        return self._model.decode([i for i in ids if i < self._model.size])

    def save(self, directory: Path | str) -> None:
        """Writes the subword model's file, in its own format, into a directory."""
        directory = as_path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / self._model.file_name, self._model.data)


def load_tokenizer(path: Path | str, closing: str = 'own') -> Tokenizer:
    """Loads a tokenizer from a sentencepiece model or a tokenizer.json.

    Args:
      path: the file, or a directory with tokenizer.json or tokenizer.model (preferred in this
        order).
      closing: 'own', 'shared' or 'same'; see Tokenizer.

    Raises:
      UserError: the file does not exist or has neither format.
    """
    path = Path(path)
    if path.is_dir():
        candidates = [
            path / kind.file_name for kind in (_HuggingFaceSubwords, _SentencePieceSubwords)
        ]
        found = [file for file in candidates if file.is_file()]
        if not found:
            raise UserError(f'{path}: holds neither tokenizer.json nor tokenizer.model')
        path = found[0]
    if not path.is_file():
        raise UserError(f'{path}: no such tokenizer file')
    return parse_tokenizer_file(str(path), path.read_bytes(), closing)


def parse_tokenizer_file(name: str, data: bytes, closing: str = 'own') -> Tokenizer:
    """Returns a tokenizer from the content of its file.

    Args:
      name: name of the file. If it ends in .json, the content is a tokenizer.json, otherwise a
        sentencepiece model.
      data: content of the file.
      closing: 'own', 'shared' or 'same'; see Tokenizer.

    Raises:
      UserError: the content cannot be read.
    """
    kind = _HuggingFaceSubwords if name.endswith('.json') else _SentencePieceSubwords
    try:
        model = kind(data)
    except Exception as error:  # both libraries raise bare exceptions
        raise UserError(
            f'{name}: not a valid {kind.file_name}: {str(error).splitlines()[0]}'
        ) from error
    return Tokenizer(model, closing)


_MAX_IDS = 10_000_000  # a larger vocabulary is a mistake


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
    bos_and_eos: bool = False,
) -> Tokenizer:
    """Trains a sentencepiece model on texts; the same texts and arguments give the same bytes.

    Args:
      texts: training texts, in a fixed order.
      vocab_size: maximum number of ids, including the four delimiters. The result has fewer if the
        texts do not contain enough different subwords.
      model_type: 'unigram' or 'bpe'.
      normalization: name of a sentencepiece rule: 'identity', 'nfkc' or 'nmt_nfkc', or with case
        folding 'nfkc_cf' or 'nmt_nfkc_cf'.
      whitespace: 'prefix' marks the start of a word on its first subword, as usual. 'drop' makes a
        space a token of its own and omits it from the ids, so that a word has the same id after a
        space, a bracket or an underscore (which is a token of its own too). A query and an
        identifier then share ids from the start; the layout of code is lost.
      characters: number of characters to train on; the rest of the texts is not read.
      seed: seed of sentencepiece's random choices.
      closing: 'own', 'shared' or 'same'; see Tokenizer.
      bos_and_eos: whether to add <s> and </s>, which no text matches, for a language model.

    Raises:
      UserError: an argument is invalid, or the texts are empty.
    """
    _check_choice('model_type', model_type, ('bpe', 'unigram'))
    _check_choice('whitespace', whitespace, ('prefix', 'drop'))
    if vocab_size > _MAX_IDS:
        raise UserError(f'tokenizer.vocab_size={vocab_size}: must be at most {_MAX_IDS:,}')
    if characters < 1:
        raise UserError(f'tokenizer.characters={characters}: must be 1 or more')
    sentencepiece.set_random_generator_seed(seed)
    output = io.BytesIO()
    sample = list(_take_characters(texts, characters))
    if not sample:
        raise UserError('tokenizer: the sources hold no text to train on')
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=output,
            vocab_size=vocab_size - len(DELIMITERS),
            hard_vocab_limit=False,
            model_type=model_type,
            byte_fallback=True,  # every text has ids; <unk> is never needed
            normalization_rule_name=normalization,
            remove_extra_whitespaces=normalization != 'identity',
            user_defined_symbols=[SPACE, '_'] if whitespace == 'drop' else [],
            control_symbols=[SPACES_DROPPED] if whitespace == 'drop' else [],
            max_sentence_length=1 << 20,
            num_threads=1,  # sums depend on the number of threads
            bos_id=1 if bos_and_eos else -1,  # as in LLaMA
            eos_id=2 if bos_and_eos else -1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        # Unknown normalization rule, or a vocabulary too small for 256 bytes and all characters.
        raise UserError(f'tokenizer: sentencepiece cannot train a model: {error}') from error
    return Tokenizer(_SentencePieceSubwords(output.getvalue()), closing)


def _check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f'tokenizer.{key}={value!r}: choose one of {", ".join(choices)}')


def _take_characters(texts: Iterable[str], characters: int) -> Iterable[str]:
    """Yields the texts up to a total number of characters; the last one may be truncated."""
    for text in texts:
        if characters <= 0:
            return
        yield text[:characters]
        characters -= len(text)

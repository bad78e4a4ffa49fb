"""The tokenizers of pretrained directories: four forms of file behind one face, each with the special tokens of its directory.

Their ids are those of transformers 5.23, and with a sentencepiece model those of sentencepiece itself, which LLaMA was trained with.
transformers makes a BPE of the pieces, in the order of their ids and not of their scores, which differs where spaces meet:
  - LLaMA's pieces of several spaces have the lowest score of all: 'a  The' is a, space, space-The; there it is a, two spaces, The;
  - a text that begins with a space has one more before it, as every text does (with `legacy`, what stands behind a special token too).
Where tokenizer_config.json has no `add_bos_token`, texts begin with it, as the documentation of LlamaTokenizer says; its code adds none.
"""

import functools
import hashlib
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import sentencepiece
import tokenizers
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import AddedToken, normalizers, pre_tokenizers

from cpt_jax.errors import UserError
from cpt_jax.tokenizer import SPACE, Side


class _Model(Protocol):
    """A tokenizer with its special tokens: what differs between the forms.

    Attributes:
      file: name and content of the file of the same tokenizer without them, as cpt_jax.tokenizer reads it.
      identity: bytes that differ when any text could get other ids.
      before: special tokens in front of each text.
    """

    file: tuple[str, bytes]
    identity: bytes
    vocab_size: int
    before: Sequence[int]

    def encode(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]: ...

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Without special tokens around them."""

    def decode(self, ids: Sequence[int]) -> str: ...


class OwnTokenizer:
    """A pretrained model's own tokenizer: its special tokens around each text, its prompt before it.

    Attributes:
      source: the name of the file that it comes from.
      vocab_size: number of ids.
      prompts: what stands before the texts of each side.
      begin: ids that begin a text for a language model, at most once: what the tokenizer itself puts there, or else the model's.
    """

    def __init__(self, source: str, model: _Model, prompts: Mapping[Side, str], lower: bool, end: int, begin: Sequence[int] = ()):
        """`end`: the id of the end of a text; it stands for a text without tokens, which has no state to take a vector from. `begin`: the
        beginning of a text by config.json, for where the tokenizer itself puts none.
        """
        self._model, self._lower, self.begin = model, lower, tuple(model.before or begin)
        self._nothing = [] if model.encode([''], 10)[0] else [end]
        self.source, self.prompts, self.vocab_size = source, dict(prompts), model.vocab_size

    @property
    def file(self) -> tuple[str, bytes]:
        """Name and content of a file for `tokenizer_from_file`: the same pieces, without special tokens and prompts."""
        return self._model.file

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digits that differ when any text could get other ids."""
        around = self.prompts, self._lower, *self._nothing
        return hashlib.blake2b(self._model.identity + repr(around).encode(), digest_size=16).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What stands around a text, for results."""
        return {'prompts': self.prompts, 'special_tokens': "the tokenizer's own"}

    def encode(self, texts: Sequence[str], side: Side, max_tokens: int) -> list[np.ndarray]:
        """Ids of each text with its prompt, cut so that the special tokens fit: at least one, at most `max_tokens`, int32."""
        prompted = [self.prompts[side] + (text.lower() if self._lower else text) for text in texts]
        return [np.array(ids or self._nothing, np.int32) for ids in self._model.encode(prompted, max_tokens)]

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text alone: no special tokens around it, no prompt before it."""
        return self._model.pieces([text.lower() for text in texts] if self._lower else texts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids of `pieces`."""
        return self._model.decode(ids)


def open_tokenizer(directory: Path, config: Mapping[str, Any], prompts: Mapping[Side, str], lower: bool) -> OwnTokenizer:
    """The tokenizer of a directory: tokenizer.json, or else vocab.json with merges.txt, a sentencepiece model, or llama2.c's tok*.bin.

    Args:
      config: of config.json.
      prompts, lower: what stands before the texts of each side, and whether they are lowered.

    Raises:
      UserError: there is none of them, or it is damaged, or of a kind that we do not have.
    """
    own = read_json(directory / 'tokenizer_config.json', optional=True)
    path = _file(directory)
    try:
        match path.name:
            case 'tokenizer.json':
                model: _Model = _Library(path.read_bytes())
            case 'vocab.json':
                model = _Library(_byte_level(directory, config, own))
            case _:
                data = path.read_bytes()
                model = _pieces(directory, own, data if path.suffix == '.model' else _model_of_scores(data))
    except UserError:
        raise
    except Exception as error:  # the libraries raise bare exceptions
        raise UserError(f'{path}: cannot be read: {str(error).splitlines()[0]}') from None
    return OwnTokenizer(path.name, model, prompts, lower, _end(config, model.vocab_size), _begin(config, own, model.vocab_size))


def _end(config: Mapping[str, Any], ids: int) -> int:
    """The id of the end of a text, or the first that config.json gives; 0 where it gives none that the tokenizer has."""
    given = [config.get(key) for key in ('eos_token_id', 'bos_token_id', 'pad_token_id')]
    numbers = [value[0] if isinstance(value, list) and value else value for value in given]
    return next((number for number in numbers if isinstance(number, int) and 0 <= number < ids), 0)


def _begin(config: Mapping[str, Any], own: Mapping[str, Any], ids: int) -> list[int]:
    """The id of the beginning of a text by config.json, unless tokenizer_config.json says that texts have none (Qwen)."""
    number = config.get('bos_token_id')
    none = own.get('add_bos_token') is False or own.get('bos_token', '') is None
    return [number] if isinstance(number, int) and 0 <= number < ids and not none else []


def _file(directory: Path) -> Path:
    names = ['tokenizer.json', *(['vocab.json'] if (directory / 'merges.txt').is_file() else []), 'tokenizer.model', 'spiece.model']
    given = [directory / name for name in names if (directory / name).is_file()]
    found = [*given, *sorted(directory.glob('*.model')), *sorted(directory.glob('tok*.bin'))]
    if not found:
        known = 'tokenizer.json, no vocab.json with merges.txt, and no sentencepiece model (tokenizer.model)'
        raise UserError(f'{directory}: holds no {known}; `AutoTokenizer.from_pretrained(...).save_pretrained(...)` writes one')
    return found[0]


def read_json(path: Path, optional: bool = False) -> Any:
    """The content of a JSON file; {} of one that is not there and need not be. Raises UserError where it is not JSON, or is missing."""
    if optional and not path.is_file():
        return {}
    try:
        return json.loads(path.read_text('utf-8'))
    except FileNotFoundError:
        raise UserError(f'{path}: is missing') from None
    except ValueError as error:
        raise UserError(f'{path}: not JSON ({error})') from None


class _Library:
    """A tokenizer.json, with the special tokens of its post-processor."""

    def __init__(self, data: bytes):
        self.file, self.identity = ('tokenizer.json', data), data
        self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        around = self._tokenizer.encode('a')
        self.before = around.ids[: around.special_tokens_mask.index(0)] if 0 in around.special_tokens_mask else []

    def encode(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        self._tokenizer.enable_truncation(max_tokens)
        return [found.ids for found in self._tokenizer.encode_batch_fast(list(texts))]

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        self._tokenizer.no_truncation()
        return [found.ids for found in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)


class _Special(NamedTuple):
    """The special and added tokens of a directory.

    Attributes:
      named: those with a part to play, by its name ('bos_token').
      numbered: those that the directory gives an id.
      extra: others that are one id wherever they stand in a text.
    """

    named: Mapping[str, AddedToken]
    numbered: Mapping[int, AddedToken]
    extra: Sequence[AddedToken]

    def all(self) -> Iterator[tuple[int | None, AddedToken]]:
        """(id, token) of each; None where the directory gives it no id."""
        yield from sorted(self.numbered.items(), key=lambda item: item[0])
        seen = {token.content for token in self.numbered.values()}
        for token in (*self.named.values(), *self.extra):
            if token.content not in seen:
                seen.add(token.content)
                yield None, token


_PARTS = ('bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token', 'mask_token')


def _special(directory: Path, own: Mapping[str, Any], defaults: Mapping[str, str]) -> _Special:
    """As transformers reads them: all in tokenizer_config.json, or in an older directory special_tokens_map.json and added_tokens.json.

    Args:
      own: tokenizer_config.json.
      defaults: the named ones where neither file says anything.
    """
    given = {**defaults, **own}
    older = 'added_tokens_decoder' not in own
    if older:
        given |= read_json(directory / 'special_tokens_map.json', optional=True)
    named = {part: _token(given[part], special=True) for part in _PARTS if given.get(part)}
    listed = given.get('extra_special_tokens') or given.get('additional_special_tokens') or []
    extra = [_token(value, special=True) for value in (listed.values() if isinstance(listed, dict) else listed)]
    if older:
        special = {token.content for token in (*named.values(), *extra)}
        added = read_json(directory / 'added_tokens.json', optional=True)
        numbered = {i: AddedToken(content, normalized=content not in special, special=content in special) for content, i in added.items()}
    else:
        numbered = {int(i): _token(value) for i, value in own['added_tokens_decoder'].items()}
    return _Special(named, numbered, extra)


def _token(value: str | Mapping[str, Any], special: bool = False) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, special=special)
    flags = {key: value[key] for key in ('single_word', 'lstrip', 'rstrip', 'normalized') if key in value}
    return AddedToken(value['content'], special=special or bool(value.get('special')), **flags)


# How Qwen2 cuts texts before it merges: its tokenizer's own, digit by digit.
_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Names of tokenizers that say nothing, and what they then are by the family; GPT-2's for all others.
_UNSAID = ('', 'TokenizersBackend', 'PreTrainedTokenizer', 'PreTrainedTokenizerFast')
_BY_FAMILY = {'gpt_neox': 'GPTNeoXTokenizer', 'qwen2': 'Qwen2Tokenizer', 'qwen3': 'Qwen2Tokenizer'}
_END = '<|endoftext|>'
_DEFAULTS = {
    'GPT2Tokenizer': {'bos_token': _END, 'eos_token': _END, 'unk_token': _END},
    'CodeGenTokenizer': {'bos_token': _END, 'eos_token': _END, 'unk_token': _END},
    'GPTNeoXTokenizer': {'bos_token': _END, 'eos_token': _END, 'unk_token': _END, 'pad_token': '<|padding|>'},
    'Qwen2Tokenizer': {'eos_token': _END, 'unk_token': _END, 'pad_token': _END},
}


def _byte_level(directory: Path, config: Mapping[str, Any], own: Mapping[str, Any]) -> bytes:
    """The tokenizer.json that transformers makes of vocab.json and merges.txt."""
    kind = (own.get('tokenizer_class') or config.get('tokenizer_class') or '').removesuffix('Fast')
    kind = _BY_FAMILY.get(config.get('model_type', ''), 'GPT2Tokenizer') if kind in _UNSAID else kind
    if kind not in _DEFAULTS:
        raise UserError(
            f'{directory}: a {kind} of vocab.json and merges.txt is not supported; known are {", ".join(_DEFAULTS)}.'
            ' `AutoTokenizer.from_pretrained(...).save_pretrained(...)` writes a tokenizer.json'
        )
    made = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(directory / 'vocab.json'), str(directory / 'merges.txt')))
    prefix = bool(own.get('add_prefix_space'))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=kind != 'Qwen2Tokenizer')
    if kind == 'Qwen2Tokenizer':
        cut = pre_tokenizers.Split(tokenizers.Regex(_QWEN2), behavior='isolated')
        made.pre_tokenizer = pre_tokenizers.Sequence([cut, made.pre_tokenizer])
    if kind in ('Qwen2Tokenizer', 'GPTNeoXTokenizer'):
        made.normalizer = normalizers.NFC()
    made.decoder = tokenizers.decoders.ByteLevel()
    special = _special(directory, own, _DEFAULTS[kind])
    for number, token in special.all():
        made.add_tokens([token])
        if number not in (None, made.token_to_id(token.content)):
            raise UserError(
                f'{directory}: {token.content} is id {number} by its added tokens, and {made.token_to_id(token.content)} by vocab.json'
            )
    around = {part: special.named[part].content for part in ('bos_token', 'eos_token') if own.get(f'add_{part}') and part in special.named}
    if around:
        template = [around.get('bos_token'), '$A', around.get('eos_token')]
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single=[part for part in template if part], special_tokens=[(name, made.token_to_id(name)) for name in set(around.values())]
        )
    return made.to_str().encode()


class _Pieces:
    """A sentencepiece model, with special tokens around texts, and within them where their names stand there."""

    def __init__(self, data: bytes, before: Sequence[int], after: Sequence[int], added: Mapping[int, AddedToken], spaces: bool):
        """Opens a model.

        Args:
          data: of its file.
          before, after: ids around each text.
          added: tokens that are one id wherever they stand in a text.
          spaces: whether sentencepiece puts a space behind each of them too, and not at the start of a text alone.
        """
        flags = {i: (token.content, token.lstrip, token.rstrip, token.single_word) for i, token in added.items()}
        self.file = 'tokenizer.model', data
        self.identity = data + repr((before, after, flags, spaces)).encode()
        self.before, self._after = before, after
        self._first = sentencepiece.SentencePieceProcessor(model_proto=data)
        self._next = self._first if spaces else sentencepiece.SentencePieceProcessor(model_proto=_without_prefix(data))
        self._contents = {i: token.content for i, token in added.items()}
        longest_first = sorted(added, key=lambda i: -len(added[i].content))
        self._ids, self._names = longest_first, re.compile('|'.join(f'({_pattern(added[i])})' for i in longest_first) or '(?!)')
        self.vocab_size = max([self._first.get_piece_size() - 1, *added]) + 1

    def encode(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        return [[*self.before, *ids[: max_tokens - len(self.before) - len(self._after)], *self._after] for ids in self.pieces(texts)]

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        plain = self._first.encode(list(texts), num_threads=-1)
        return [self._with_names(text) if self._names.search(text) else ids for text, ids in zip(texts, plain, strict=True)]

    def decode(self, ids: Sequence[int]) -> str:
        text, start, names = '', 0, self._contents
        for place in [place for place, i in enumerate(ids) if i in names] + [len(ids)]:
            text += (self._next if start else self._first).decode(list(map(int, ids[start:place])))
            text += ''.join(names[i] for i in ids[place : place + 1])
            start = place + 1
        return text

    def _with_names(self, text: str) -> list[int]:
        ids: list[int] = []
        end = 0
        for match in self._names.finditer(text):
            ids += [*self._between(text, end, match.start()), self._ids[match.lastindex - 1]]
            end = match.end()
        return ids + self._between(text, end, len(text))

    def _between(self, text: str, start: int, stop: int) -> list[int]:
        return (self._next if start else self._first).encode(text[start:stop])


def _without_prefix(data: bytes) -> bytes:
    """The same model, but that puts no space before texts."""
    proto = ModelProto.FromString(data)
    proto.normalizer_spec.add_dummy_prefix = False
    return proto.SerializeToString()


def _pattern(token: AddedToken) -> str:
    name = re.escape(token.content)
    name = rf'(?<!\w){name}(?!\w)' if token.single_word else name
    return r'\s*' * token.lstrip + name + r'\s*' * token.rstrip


def _pieces(directory: Path, own: Mapping[str, Any], data: bytes) -> _Pieces:
    model = sentencepiece.SentencePieceProcessor(model_proto=data)
    by_part = {'bos_token': model.bos_id(), 'eos_token': model.eos_id(), 'unk_token': model.unk_id(), 'pad_token': model.pad_id()}
    special = _special(directory, own, {part: model.id_to_piece(i) for part, i in by_part.items() if i >= 0})
    controls = {i: AddedToken(model.id_to_piece(i), special=True) for i in range(model.get_piece_size()) if model.is_control(i)}
    added, names = dict(controls), {token.content: i for i, token in controls.items()}
    for number, token in special.all():
        if number is None:
            piece = model.piece_to_id(token.content)  # of any other text, the unknown piece's
            number = piece if model.id_to_piece(piece) == token.content else max(model.get_piece_size(), *(i + 1 for i in added))
        added[number], names[token.content] = token, number
    around = [
        [names[special.named[part].content]] if own.get(f'add_{part}', default) and part in special.named else []
        for part, default in (('bos_token', True), ('eos_token', False))
    ]
    return _Pieces(data, *around, added, bool(own.get('legacy', False)))


def _model_of_scores(data: bytes) -> bytes:
    """The sentencepiece model of llama2.c's tokenizer.bin: int32 longest, then float32 score, int32 length and UTF-8 of each piece.

    Its pieces are those of LLaMA's models, in their order, with spaces as they are and line breaks around <s> and </s>. llama2.c merges the
    pair with the best score first, the leftmost of several, and falls back to bytes, as sentencepiece does with a BPE.
    """
    proto, place = ModelProto(), 4
    proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback = proto.trainer_spec.BPE, True
    proto.normalizer_spec.remove_extra_whitespaces = False
    while place < len(data):
        score, length = struct.unpack_from('<fi', data, place)
        if length < 0:
            break
        text = data[place + 8 : place + 8 + length].decode()
        kind = _kind(len(proto.pieces), text)
        proto.pieces.add(piece=text.strip() if kind == _PIECE.CONTROL else text.replace(' ', SPACE), score=score, type=kind)
        place += 8 + length
    if place != len(data) or len(proto.pieces) < 3 + 256:
        raise ValueError('it is cut short, or not a tokenizer.bin of llama2.c')
    return proto.SerializeToString()


_PIECE = ModelProto.SentencePiece


def _kind(number: int, text: str) -> int:
    """The first three are <unk>, <s> and </s>."""
    if number < 3:
        return _PIECE.CONTROL if number else _PIECE.UNKNOWN
    return _PIECE.BYTE if re.fullmatch('<0x[0-9A-F]{2}>', text) else _PIECE.NORMAL

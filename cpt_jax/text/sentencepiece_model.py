"""Sentencepiece models of pretrained directories, with special tokens around and within texts."""

import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

# protobuf creates the class when the module is imported, so type checkers cannot see it.
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
from tokenizers import AddedToken

from cpt_jax.text.special_tokens import read_special_tokens
from cpt_jax.text.tokenizer import SPACE


class SentencePieceModel:
    """A sentencepiece model that adds special tokens around texts and recognizes them in texts."""

    def __init__(
        self,
        data: bytes,
        before: Sequence[int],
        after: Sequence[int],
        added: Mapping[int, AddedToken],
        spaces: bool,
    ):
        """Loads a model.

        Args:
          data: content of the sentencepiece model file.
          before, after: ids put before and after each text.
          added: tokens by id; each is encoded as this id wherever it occurs in a text.
          spaces: whether sentencepiece prepends a space to the text after each added token too, and
            not only to the start of a text.
        """
        flags = {
            i: (token.content, token.lstrip, token.rstrip, token.single_word)
            for i, token in added.items()
        }
        self.file = ('tokenizer.model', data)
        self.identity = data + repr((before, after, flags, spaces)).encode()
        self.before = before
        self._after = after
        # One processor for the start of a text, one for the text after an added token.
        self._first = sentencepiece.SentencePieceProcessor(model_proto=data)
        if spaces:
            self._next = self._first
        else:
            self._next = sentencepiece.SentencePieceProcessor(
                model_proto=_disable_dummy_prefix(data)
            )
        self._contents = {i: token.content for i, token in added.items()}
        # Longest first, so that a token is not hidden by another one that is its prefix. The i-th
        # group of the pattern matches token `_ids[i]`; with no added token nothing matches.
        self._ids = sorted(added, key=lambda i: -len(added[i].content))
        groups = [f'({_make_pattern(added[i])})' for i in self._ids]
        self._names = re.compile('|'.join(groups) or '(?!)')
        self.vocab_size = max([self._first.get_piece_size() - 1, *added]) + 1

    def encode(self, texts: Sequence[str], max_tokens: int | None) -> list[list[int]]:
        room = None
        if max_tokens is not None:
            room = max_tokens - len(self.before) - len(self._after)
        return [[*self.before, *ids[:room], *self._after] for ids in self.encode_plain(texts)]

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        plain = self._first.encode(list(texts), num_threads=-1)
        return [
            self._encode_with_added(text) if self._names.search(text) else ids
            for text, ids in zip(texts, plain, strict=True)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        text = ''
        start = 0
        names = self._contents
        for index in [index for index, i in enumerate(ids) if i in names] + [len(ids)]:
            processor = self._next if start else self._first
            text += processor.decode(list(map(int, ids[start:index])))
            text += ''.join(names[i] for i in ids[index : index + 1])
            start = index + 1
        return text

    def _encode_with_added(self, text: str) -> list[int]:
        """Returns the ids of a text that contains added tokens."""
        ids: list[int] = []
        end = 0
        for match in self._names.finditer(text):
            assert match.lastindex is not None  # every alternative of the pattern is a group
            ids += self._encode_span(text, end, match.start())
            ids.append(self._ids[match.lastindex - 1])
            end = match.end()
        return ids + self._encode_span(text, end, len(text))

    def _encode_span(self, text: str, start: int, stop: int) -> list[int]:
        processor = self._next if start else self._first
        return processor.encode(text[start:stop])


def _disable_dummy_prefix(data: bytes) -> bytes:
    """Returns the model's file with the setting that no space is prepended to texts."""
    proto = ModelProto.FromString(data)
    proto.normalizer_spec.add_dummy_prefix = False
    return proto.SerializeToString()


def _make_pattern(token: AddedToken) -> str:
    name = re.escape(token.content)
    name = rf'(?<!\w){name}(?!\w)' if token.single_word else name
    return r'\s*' * token.lstrip + name + r'\s*' * token.rstrip


def read_sentencepiece(
    directory: Path, tokenizer_config: Mapping[str, Any], data: bytes
) -> SentencePieceModel:
    """Returns a sentencepiece model with the special and added tokens of its directory.

    Args:
      directory: directory of the pretrained model.
      tokenizer_config: content of tokenizer_config.json.
      data: content of the sentencepiece model file.
    """
    model = sentencepiece.SentencePieceProcessor(model_proto=data)
    special_ids = {
        'bos_token': model.bos_id(),
        'eos_token': model.eos_id(),
        'unk_token': model.unk_id(),
        'pad_token': model.pad_id(),
    }
    defaults = {part: model.id_to_piece(i) for part, i in special_ids.items() if i >= 0}
    special = read_special_tokens(directory, tokenizer_config, defaults)
    added = {
        i: AddedToken(model.id_to_piece(i), special=True)
        for i in range(model.get_piece_size())
        if model.is_control(i)
    }
    ids = {token.content: i for i, token in added.items()}
    for i, token in special.iterate_tokens():
        if i is None:
            i = model.piece_to_id(token.content)
            # The model has no piece for this token: the token gets the next free id.
            if model.id_to_piece(i) != token.content:
                i = max(model.get_piece_size(), *(other + 1 for other in added))
        added[i] = token
        ids[token.content] = i

    def find_ids(part: str, default: bool) -> list[int]:
        if tokenizer_config.get(f'add_{part}', default) and part in special.named:
            return [ids[special.named[part].content]]
        return []

    before = find_ids('bos_token', True)
    after = find_ids('eos_token', False)
    spaces = bool(tokenizer_config.get('legacy', False))
    return SentencePieceModel(data, before, after, added, spaces)


def convert_llama2c_tokenizer(data: bytes) -> bytes:
    """Returns the sentencepiece model file for the content of llama2.c's tokenizer.bin.

    A tokenizer.bin holds the maximum length (int32), then score (float32), length in bytes (int32)
    and UTF-8 of each token. The tokens are those of LLaMA's model, in the same order, with plain
    spaces and with line breaks around <s> and </s>. llama2.c merges the pair with the highest
    score, the leftmost one if several have it, and falls back to bytes, as sentencepiece does with
    a BPE.

    Raises:
      ValueError: the data is truncated or has another format.
    """
    proto = ModelProto()
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    offset = 4
    while offset < len(data):
        score, length = struct.unpack_from('<fi', data, offset)
        if length < 0:
            break
        text = data[offset + 8 : offset + 8 + length].decode()
        kind = _find_piece_type(len(proto.pieces), text)
        proto.pieces.add(
            piece=text.strip() if kind == _PIECE.CONTROL else text.replace(' ', SPACE),
            score=score,
            type=kind,
        )
        offset += 8 + length
    if offset != len(data) or len(proto.pieces) < 3 + 256:
        raise ValueError('it is cut short, or not a tokenizer.bin of llama2.c')
    return proto.SerializeToString()


_PIECE = ModelProto.SentencePiece


def _find_piece_type(index: int, text: str) -> int:
    """Returns the type of token `index` in LLaMA's model, whose first are <unk>, <s> and </s>."""
    if index == 0:
        return _PIECE.UNKNOWN
    if index < 3:
        return _PIECE.CONTROL
    return _PIECE.BYTE if re.fullmatch('<0x[0-9A-F]{2}>', text) else _PIECE.NORMAL

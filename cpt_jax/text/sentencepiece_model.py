"""Sentencepiece models of pretrained directories, with special tokens around and within texts."""

import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

# protobuf makes the class when the module is imported, so that no checker can see it.
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
from tokenizers import AddedToken

from cpt_jax.text.special_tokens import read_special_tokens
from cpt_jax.text.tokenizer import SPACE


class SentencePieceModel:
    """A sentencepiece model, with special tokens around texts, and within them where their names
    stand there.
    """

    def __init__(
        self,
        data: bytes,
        before: Sequence[int],
        after: Sequence[int],
        added: Mapping[int, AddedToken],
        spaces: bool,
    ):
        """Opens a model.

        Args:
          data: of its file.
          before, after: ids around each text.
          added: tokens that are one id wherever they stand in a text.
          spaces: whether sentencepiece puts a space behind each of them too, and not at the start
            of a text alone.
        """
        flags = {
            i: (token.content, token.lstrip, token.rstrip, token.single_word)
            for i, token in added.items()
        }
        self.file = 'tokenizer.model', data
        self.identity = data + repr((before, after, flags, spaces)).encode()
        self.before, self._after = before, after
        self._first = sentencepiece.SentencePieceProcessor(model_proto=data)
        self._next = (
            self._first
            if spaces
            else sentencepiece.SentencePieceProcessor(model_proto=_without_prefix(data))
        )
        self._contents = {i: token.content for i, token in added.items()}
        longest_first = sorted(added, key=lambda i: -len(added[i].content))
        self._ids = longest_first
        self._names = re.compile(
            '|'.join(f'({_pattern(added[i])})' for i in longest_first) or '(?!)'
        )
        self.vocab_size = max([self._first.get_piece_size() - 1, *added]) + 1

    def encode(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        return [
            [*self.before, *ids[: max_tokens - len(self.before) - len(self._after)], *self._after]
            for ids in self.pieces(texts)
        ]

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        plain = self._first.encode(list(texts), num_threads=-1)
        return [
            self._with_names(text) if self._names.search(text) else ids
            for text, ids in zip(texts, plain, strict=True)
        ]

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
            assert match.lastindex is not None  # every alternative of the pattern is a group
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


def read_sentencepiece(directory: Path, own: Mapping[str, Any], data: bytes) -> SentencePieceModel:
    model = sentencepiece.SentencePieceProcessor(model_proto=data)
    by_part = {
        'bos_token': model.bos_id(),
        'eos_token': model.eos_id(),
        'unk_token': model.unk_id(),
        'pad_token': model.pad_id(),
    }
    special = read_special_tokens(
        directory, own, {part: model.id_to_piece(i) for part, i in by_part.items() if i >= 0}
    )
    controls = {
        i: AddedToken(model.id_to_piece(i), special=True)
        for i in range(model.get_piece_size())
        if model.is_control(i)
    }
    added, names = dict(controls), {token.content: i for i, token in controls.items()}
    for number, token in special.entries():
        if number is None:
            piece = model.piece_to_id(token.content)  # of any other text, the unknown piece's
            number = (
                piece
                if model.id_to_piece(piece) == token.content
                else max(model.get_piece_size(), *(i + 1 for i in added))
            )
        added[number], names[token.content] = token, number
    before, after = (
        [names[special.named[part].content]]
        if own.get(f'add_{part}', default) and part in special.named
        else []
        for part, default in (('bos_token', True), ('eos_token', False))
    )
    return SentencePieceModel(data, before, after, added, bool(own.get('legacy', False)))


def model_of_scores(data: bytes) -> bytes:
    """The sentencepiece model of llama2.c's tokenizer.bin: int32 longest, then float32 score, int32
    length and UTF-8 of each piece.

    Its pieces are those of LLaMA's models, in their order, with spaces as they are and line breaks
    around <s> and </s>. llama2.c merges the pair with the best score first, the leftmost of
    several, and falls back to bytes, as sentencepiece does with a BPE.
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
        proto.pieces.add(
            piece=text.strip() if kind == _PIECE.CONTROL else text.replace(' ', SPACE),
            score=score,
            type=kind,
        )
        place += 8 + length
    if place != len(data) or len(proto.pieces) < 3 + 256:
        raise ValueError('it is cut short, or not a tokenizer.bin of llama2.c')
    return proto.SerializeToString()


_PIECE = ModelProto.SentencePiece


def _kind(number: int, text: str) -> int:
    """The type of piece `number` of LLaMA's models; the first three are <unk>, <s> and </s>."""
    if number < 3:
        return _PIECE.CONTROL if number else _PIECE.UNKNOWN
    return _PIECE.BYTE if re.fullmatch('<0x[0-9A-F]{2}>', text) else _PIECE.NORMAL

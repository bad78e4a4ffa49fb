"""Our tokenizer as the tokenizer.json that the rest of the ecosystem reads, ids equal.

A tokenizer.json puts the same special tokens around every text. So the closing delimiter, which
must survive when a long text is cut, is its post-processor's, and one file can serve both sides
only where they share it (`tokenizer.closing`). The opening one is then the prompt: a string that
its readers put before a text, and that is a token here. A side of its own has both from the
post-processor, and no prompt.
"""

import base64
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import tokenizers

from cpt_jax.text.sentencepiece_model import ModelProto
from cpt_jax.text.tokenizer import DELIMITERS, SPACE, SPACES_DROPPED, Side, Tokenizer

Json = dict[str, Any]

PROMPT_NAMES: dict[Side, str] = {'x': 'query', 'y': 'document'}
_OPENINGS: dict[Side, str] = {'x': '<|query|>', 'y': '<|document|>'}
CLOSING, PADDING = '<|end|>', '<|padding|>'
_LOW = -1e4  # a score that no path of a unigram model takes
# What Unicode joins to the character before it. A reader's rules for characters (`Precompiled`) see
# it together with that character, and lose it where they have a rule for that one alone: "X" +
# U+20E3 would become "x". A control character between the two holds them apart.
_JOINED, _APART = '(?=[\\p{M}\u200c\u200d\uff9e\uff9f\U0001f3fb-\U0001f3ff])', '\x01'


class Exported(NamedTuple):
    """A tokenizer as a directory holds it.

    Attributes:
      content: of tokenizer.json.
      prompts: by sentence-transformers' names; {} where there are none.
      ids: of the special tokens, under the keys of config.json.
    """

    content: Json
    prompts: dict[str, str]
    ids: dict[str, int | None]


def exported(tokenizer: Tokenizer, side: Side | None = None) -> Exported:
    """A tokenizer for texts of one side, or (None) for both, which must share their closing
    delimiter.

    Its ids are those of `tokenizer`, but for texts in which the name of a delimiter stands
    ("<|end|>"): a reader takes it for that token.
    """
    if side is None and tokenizer.closing != 'shared':
        raise ValueError('two closing delimiters: one tokenizer.json for each side')
    content = _content(tokenizer)
    content['normalizer'] = _sequence(_STRIP, content['normalizer'])
    opening, closing = tokenizer.delimiters(side or 'x')
    names = {closing: CLOSING} | {
        tokenizer.delimiters(one)[0]: _OPENINGS[one] for one in _OPENINGS if side in (None, one)
    }
    first = tokenizer.vocab_size - len(DELIMITERS)
    unused = [i for i in range(first, tokenizer.vocab_size) if i not in names]
    names |= {unused[0]: PADDING}
    _add_tokens(content, names | {i: f'<|unused {i}|>' for i in unused[1:]}, first)
    around = [opening, None, closing] if side else [None, closing]
    content['post_processor'] = _around(around, names)
    prompts = {} if side else {PROMPT_NAMES[one]: _OPENINGS[one] for one in _OPENINGS}
    return Exported(
        content, prompts, {'bos_token_id': None, 'eos_token_id': closing, 'pad_token_id': unused[0]}
    )


def prompted(tokenizer: Tokenizer, begin: Sequence[int]) -> Exported:
    """A tokenizer for texts that stand in a template: the ids `begin` before them and nothing
    behind; no text has the delimiters.

    White space at the ends of a text is kept, as what is read is not the text alone.
    """
    content, first = _content(tokenizer), tokenizer.vocab_size - len(DELIMITERS)
    started = {i: _name(tokenizer, i) for i in begin}
    names = {i: f'<|unused {i}|>' for i in range(first, tokenizer.vocab_size)} | {first: PADDING}
    own = content['model']['vocab']
    named = (
        {} if isinstance(own, list) else {i: name for i, name in started.items() if name not in own}
    )
    _add_tokens(content, names | named, first)
    content['post_processor'] = _around([*begin, None], started)
    return Exported(
        content, {}, {'bos_token_id': begin[0] if begin else None, 'pad_token_id': first}
    )


def _content(tokenizer: Tokenizer) -> Json:
    name, data = tokenizer.file
    return (
        _without_special_tokens(json.loads(data))
        if name.endswith('.json')
        else _of_sentencepiece(data)
    )


def _name(tokenizer: Tokenizer, number: int) -> str:
    """What a tokenizer's own file calls an id."""
    name, data = tokenizer.file
    if not name.endswith('.json'):
        return ModelProto.FromString(data).pieces[number].piece
    token = tokenizers.Tokenizer.from_str(data.decode('utf-8')).id_to_token(number)
    if token is None:
        raise ValueError(f'{name} has no id {number}')
    return token


def _without_special_tokens(content: Json) -> Json:
    """Special tokens in a text are text to us. Their ids stay; no other than our own stand around a
    text.
    """
    kept = [token for token in content['added_tokens'] if not token['special']]
    return content | {'added_tokens': kept, 'truncation': None, 'padding': None}


def _add_tokens(content: Json, names: dict[int, str], first: int) -> None:
    """Gives names to the ids from `first` on, in the model's own vocabulary too, so that no reader
    counts them otherwise.
    """
    vocabulary = content['model']['vocab']
    if isinstance(vocabulary, list):  # unigram: an id is a place
        vocabulary += [[f'<|unused {i}|>', _LOW] for i in range(len(vocabulary), first)]
        vocabulary += [[names[i], _LOW] for i in sorted(names)]
    else:
        vocabulary |= {name: i for i, name in names.items()}
    flags = {
        'single_word': False,
        'lstrip': False,
        'rstrip': False,
        'normalized': False,
        'special': True,
    }
    content['added_tokens'] = content['added_tokens'] + [
        {'id': i, 'content': names[i], **flags} for i in sorted(names)
    ]


def _around(ids: list[int | None], names: dict[int, str]) -> Json:
    """A post-processor: these ids, and the text at None."""

    def template(sequences: str) -> list[Json]:
        texts = [{'Sequence': {'id': sequence, 'type_id': 0}} for sequence in sequences]
        parts = [
            texts if i is None else [{'SpecialToken': {'id': names[i], 'type_id': 0}}] for i in ids
        ]
        return [part for some in parts for part in some]

    tokens = {
        names[i]: {'id': names[i], 'ids': [i], 'tokens': [names[i]]} for i in ids if i is not None
    }
    return {
        'type': 'TemplateProcessing',
        'single': template('A'),
        'pair': template('AB'),
        'special_tokens': tokens,
    }


_STRIP = {'type': 'Strip', 'strip_left': True, 'strip_right': True}


def _of_sentencepiece(data: bytes) -> Json:
    """A sentencepiece model as a tokenizer.json.

    Equal ids for all texts but odd ones. Sentencepiece composes a letter and the marks behind it
    only where they stand as Unicode takes them apart, one by one; NFC, of which there is no such
    half, composes all. And where two overlapping pairs of a BPE make the same piece ("a aa", "aa
    a"), sentencepiece takes the left one, and a list of merges that which stands first in it;
    likewise for paths of a unigram model that have one score.
    """
    proto = ModelProto.FromString(data)
    drops = any(piece.piece == SPACES_DROPPED for piece in proto.pieces)
    inner = any(SPACE in piece.piece[1:] for piece in proto.pieces)
    at_spaces = {
        'pattern': {'String': SPACE},
        'behavior': 'Removed' if drops else 'MergedWithNext',
        'invert': False,
    }
    return {
        'version': '1.0',
        'truncation': None,
        'padding': None,
        'added_tokens': [],
        'normalizer': _normalizer(proto),
        # No piece reaches over a space: words are looked up one by one, which is fast. Unless one
        # does.
        'pre_tokenizer': None if inner else {'type': 'Split', **at_spaces},
        'post_processor': None,
        'decoder': _DECODER,
        'model': _bpe(proto)
        if proto.trainer_spec.model_type == proto.trainer_spec.BPE
        else _unigram(proto),
    }


_DECODER = {
    'type': 'Sequence',
    'decoders': [
        {'type': 'Replace', 'pattern': {'String': SPACE}, 'content': ' '},
        {'type': 'ByteFallback'},
        {'type': 'Fuse'},
        {'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0},
    ],
}


def _normalizer(proto: ModelProto) -> Json:
    spec, steps = proto.normalizer_spec, []
    if spec.precompiled_charsmap:
        rules = {
            'type': 'Precompiled',
            'precompiled_charsmap': base64.b64encode(spec.precompiled_charsmap).decode(),
        }
        steps += [
            {'type': 'NFC'},
            _replace({'Regex': _JOINED}, _APART),
            rules,
            _replace({'String': _APART}, ''),
            {'type': 'NFC'},
        ]
    if spec.remove_extra_whitespaces:
        steps += [_STRIP, _replace({'Regex': ' {2,}'}, ' ')]
    if spec.add_dummy_prefix:
        steps.append({'type': 'Prepend', 'prepend': SPACE})
    return _sequence(*steps, _replace({'String': ' '}, SPACE))


def _replace(pattern: Json, content: str) -> Json:
    return {'type': 'Replace', 'pattern': pattern, 'content': content}


def _sequence(*steps: Json | None) -> Json:
    return {'type': 'Sequence', 'normalizers': [step for step in steps if step]}


def _bpe(proto: ModelProto) -> Json:
    """Every way to make a piece of two others is a merge; the better piece's come first."""
    vocabulary = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    made = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
    merges = [
        [piece[:cut], piece[cut:]]
        for piece in sorted(made, key=lambda piece: -made[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in made and piece[cut:] in made
    ]
    return {
        'type': 'BPE',
        'dropout': None,
        'unk_token': proto.pieces[proto.trainer_spec.unk_id].piece,
        'continuing_subword_prefix': None,
        'end_of_word_suffix': None,
        'fuse_unk': True,
        'byte_fallback': proto.trainer_spec.byte_fallback,
        'ignore_merges': False,
        'vocab': vocabulary,
        'merges': merges,
    }


def _unigram(proto: ModelProto) -> Json:
    """Bytes and control pieces are no part of a text's paths, though "<0x0A>" may stand in it."""
    scored = [
        [piece.piece, piece.score if piece.type in (piece.NORMAL, piece.USER_DEFINED) else _LOW]
        for piece in proto.pieces
    ]
    return {
        'type': 'Unigram',
        'unk_id': proto.trainer_spec.unk_id,
        'vocab': scored,
        'byte_fallback': proto.trainer_spec.byte_fallback,
    }

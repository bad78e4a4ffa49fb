"""Conversion of a tokenizer to the tokenizer.json of Hugging Face tokenizers, with equal ids.

A tokenizer.json adds the same special tokens to every text. The closing delimiter must survive
truncation, so the post-processor adds it, and one file can serve both sides only if they share the
closing delimiter (`tokenizer.closing`). The opening delimiter is then a prompt: a string that
readers prepend to the text and that is one token of the vocabulary. If each side has its own
tokenizer.json, the post-processor adds both delimiters and there is no prompt.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tokenizers

from cpt_jax.exporting.added_tokens import match_after_normalization
from cpt_jax.text.pretrained_tokenizer import PretrainedTokenizer
from cpt_jax.text.sentencepiece_model import ModelProto
from cpt_jax.text.tokenizer import DELIMITERS, SPACE, SPACES_DROPPED, Side, Tokenizer

Json = dict[str, Any]

PROMPT_NAMES: dict[Side, str] = {'x': 'query', 'y': 'document'}
_OPENINGS: dict[Side, str] = {'x': '<|query|>', 'y': '<|document|>'}
CLOSING, PADDING = '<|end|>', '<|padding|>'
_UNUSED_SCORE = -1e4  # so low that no segmentation by a unigram model contains the token
# Characters that Unicode combines with the preceding one. The `Precompiled` rules of Hugging Face
# tokenizers look at both together, and drop the second one if a rule exists only for the first: "X"
# + U+20E3 would become "x". A control character inserted between the two prevents that.
_COMBINING = '(?=[\\p{M}\u200c\u200d\uff9e\uff9f\U0001f3fb-\U0001f3ff])'
_SEPARATOR = '\x01'


class ExportedTokenizer(NamedTuple):
    """A converted tokenizer.

    Attributes:
      content: content of tokenizer.json.
      prompts: prompts by sentence-transformers' names; {} if there are none.
      ids: ids of special tokens, by their keys in config.json.
      special_tokens: special tokens, by transformers' names such as 'pad_token'.
      is_lowercased: whether readers lowercase texts first.
      truncates_left: whether long texts lose their beginning and not their end.
    """

    content: Json
    prompts: dict[str, str]
    ids: dict[str, int | None]
    special_tokens: dict[str, str]
    is_lowercased: bool = False
    truncates_left: bool = False


def export_tokenizer(tokenizer: Tokenizer, side: Side | None = None) -> ExportedTokenizer:
    """Converts a tokenizer for texts with delimiters.

    The ids are those of `tokenizer`, except for texts that contain the name of a delimiter
    ("<|end|>"): Hugging Face tokenizers read it as that delimiter.

    Args:
      tokenizer: the tokenizer to convert.
      side: side of the texts; None for both sides, which must share their closing delimiter.
    """
    if side is None and tokenizer.closing != 'shared':
        raise ValueError('two closing delimiters: one tokenizer.json for each side')
    content = _convert_vocabulary(tokenizer)
    match_after_normalization(content)
    content['normalizer'] = _make_sequence(_STRIP, content['normalizer'])
    opening, closing = tokenizer.get_delimiters(side or 'x')
    names = {closing: CLOSING}
    for one, name in _OPENINGS.items():
        if side in (None, one):
            names[tokenizer.get_delimiters(one)[0]] = name
    first = tokenizer.vocab_size - len(DELIMITERS)
    padding, *unused = [i for i in range(first, tokenizer.vocab_size) if i not in names]
    names[padding] = PADDING
    _add_tokens(content, names | {i: f'<|unused {i}|>' for i in unused}, first)
    template = [opening, None, closing] if side else [None, closing]
    content['post_processor'] = _make_post_processor(template, names)
    prompts = {} if side else {PROMPT_NAMES[one]: _OPENINGS[one] for one in _OPENINGS}
    ids = {'bos_token_id': None, 'eos_token_id': closing, 'pad_token_id': padding}
    special_tokens = {'eos_token': CLOSING, 'pad_token': PADDING}
    return ExportedTokenizer(content, prompts, ids, special_tokens)


def export_pretrained_tokenizer(
    tokenizer: PretrainedTokenizer, config: Mapping[str, Any]
) -> ExportedTokenizer:
    """Returns the tokenizer of a pretrained model unchanged, with its prompts.

    Args:
      tokenizer: the tokenizer.
      config: config.json of the pretrained model.
    """
    _, data = tokenizer.file
    settings = tokenizer.settings
    reader = tokenizers.Tokenizer.from_buffer(data)
    padding = reader.token_to_id(settings['padding']) if settings['padding'] else None
    # Readers need a padding token. Any serves: the attention mask hides it.
    if padding is None:
        padding = config.get('pad_token_id')
    name = reader.id_to_token(padding) if isinstance(padding, int) else None
    if name is None:
        padding = settings['end']
        name = reader.id_to_token(settings['end'])
    prompts = {PROMPT_NAMES[side]: prompt for side, prompt in tokenizer.prompts.items()}
    return ExportedTokenizer(
        json.loads(data),
        prompts,
        ids={'pad_token_id': padding},
        special_tokens={'pad_token': name} if name else {},
        is_lowercased=settings['lower'],
        truncates_left=settings.get('truncation_side') == 'left',
    )


def export_template_tokenizer(tokenizer: Tokenizer, begin: Sequence[int]) -> ExportedTokenizer:
    """Converts a tokenizer for texts in a template: they get the ids `begin` but no delimiters.

    White space at the ends is kept, because the input is the text together with its template.

    Args:
      tokenizer: the tokenizer to convert.
      begin: ids that are prepended to every text.
    """
    content = _convert_vocabulary(tokenizer)
    first = tokenizer.vocab_size - len(DELIMITERS)
    begin_names = {i: _find_token_name(tokenizer, i) for i in begin}
    names = {i: f'<|unused {i}|>' for i in range(first, tokenizer.vocab_size)}
    names[first] = PADDING
    vocabulary = content['model']['vocab']
    if isinstance(vocabulary, dict):
        names |= {i: name for i, name in begin_names.items() if name not in vocabulary}
    _add_tokens(content, names, first)
    content['post_processor'] = _make_post_processor([*begin, None], begin_names)
    ids = {'bos_token_id': begin[0] if begin else None, 'pad_token_id': first}
    return ExportedTokenizer(content, {}, ids, {'pad_token': PADDING})


def _convert_vocabulary(tokenizer: Tokenizer) -> Json:
    """Returns the content of a tokenizer.json without delimiters."""
    name, data = tokenizer.file
    if name.endswith('.json'):
        return _remove_special_tokens(json.loads(data))
    return _convert_sentencepiece(data)


def _find_token_name(tokenizer: Tokenizer, number: int) -> str:
    """Returns the string of an id in the tokenizer's own file."""
    name, data = tokenizer.file
    if not name.endswith('.json'):
        return ModelProto.FromString(data).pieces[number].piece
    token = tokenizers.Tokenizer.from_str(data.decode('utf-8')).id_to_token(number)
    if token is None:
        raise ValueError(f'{name} has no id {number}')
    return token


def _remove_special_tokens(content: Json) -> Json:
    """Returns a tokenizer.json whose special tokens are read as ordinary text.

    Their ids stay in the vocabulary. Only our delimiters are added to texts.
    """
    kept = [token for token in content['added_tokens'] if not token['special']]
    return content | {'added_tokens': kept, 'truncation': None, 'padding': None}


def _add_tokens(content: Json, names: dict[int, str], first: int) -> None:
    """Adds special tokens to a tokenizer.json, in place.

    They are also added to the model's own vocabulary, so that all readers count the same number of
    ids.

    Args:
      content: content of the tokenizer.json.
      names: token strings by id.
      first: smallest id after the vocabulary.
    """
    vocabulary = content['model']['vocab']
    if isinstance(vocabulary, list):  # in a unigram model, an id is an index into this list
        vocabulary += [[f'<|unused {i}|>', _UNUSED_SCORE] for i in range(len(vocabulary), first)]
        vocabulary += [[names[i], _UNUSED_SCORE] for i in sorted(names)]
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


def _make_post_processor(ids: list[int | None], names: dict[int, str]) -> Json:
    """Returns a post-processor that adds special tokens.

    Args:
      ids: ids in their order in the output; None is the place of the text.
      names: token strings by id.
    """

    def make_template(sequences: str) -> list[Json]:
        template: list[Json] = []
        for i in ids:
            if i is None:
                template += [{'Sequence': {'id': name, 'type_id': 0}} for name in sequences]
            else:
                template.append({'SpecialToken': {'id': names[i], 'type_id': 0}})
        return template

    tokens = {
        names[i]: {'id': names[i], 'ids': [i], 'tokens': [names[i]]} for i in ids if i is not None
    }
    return {
        'type': 'TemplateProcessing',
        'single': make_template('A'),
        'pair': make_template('AB'),
        'special_tokens': tokens,
    }


_STRIP = {'type': 'Strip', 'strip_left': True, 'strip_right': True}


def _convert_sentencepiece(data: bytes) -> Json:
    """Converts a sentencepiece model to a tokenizer.json.

    Ids are equal except for unusual texts. Sentencepiece composes a letter and the marks after it
    only if they are in canonical decomposed order; there is no equivalent, and NFC composes all of
    them. If two overlapping pairs of a BPE give the same piece ("a aa", "aa a"), sentencepiece
    merges the left pair, and a list of merges the pair that is earlier in the list. Segmentations
    by a unigram model that have equal scores differ in the same way.
    """
    proto = ModelProto.FromString(data)
    drops_spaces = any(piece.piece == SPACES_DROPPED for piece in proto.pieces)
    has_pieces_across_spaces = any(SPACE in piece.piece[1:] for piece in proto.pieces)
    at_spaces = {
        'pattern': {'String': SPACE},
        'behavior': 'Removed' if drops_spaces else 'MergedWithNext',
        'invert': False,
    }
    # Words are tokenized one by one, which is fast, unless a piece spans a space.
    pre_tokenizer = None if has_pieces_across_spaces else {'type': 'Split', **at_spaces}
    is_bpe = proto.trainer_spec.model_type == proto.trainer_spec.BPE
    return {
        'version': '1.0',
        'truncation': None,
        'padding': None,
        'added_tokens': [],
        'normalizer': _make_normalizer(proto),
        'pre_tokenizer': pre_tokenizer,
        'post_processor': None,
        'decoder': _DECODER,
        'model': _make_bpe_model(proto) if is_bpe else _make_unigram_model(proto),
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


def _make_normalizer(proto: ModelProto) -> Json:
    """Returns the normalizer that is equivalent to the normalization of a sentencepiece model."""
    spec = proto.normalizer_spec
    steps: list[Json] = []
    if spec.precompiled_charsmap:
        rules = {
            'type': 'Precompiled',
            'precompiled_charsmap': base64.b64encode(spec.precompiled_charsmap).decode(),
        }
        steps += [
            {'type': 'NFC'},
            _make_replacement({'Regex': _COMBINING}, _SEPARATOR),
            rules,
            _make_replacement({'String': _SEPARATOR}, ''),
            {'type': 'NFC'},
        ]
    if spec.remove_extra_whitespaces:
        steps += [_STRIP, _make_replacement({'Regex': ' {2,}'}, ' ')]
    if spec.add_dummy_prefix:
        steps.append({'type': 'Prepend', 'prepend': SPACE})
    return _make_sequence(*steps, _make_replacement({'String': ' '}, SPACE))


def _make_replacement(pattern: Json, content: str) -> Json:
    return {'type': 'Replace', 'pattern': pattern, 'content': content}


def _make_sequence(*steps: Json | None) -> Json:
    return {'type': 'Sequence', 'normalizers': [step for step in steps if step]}


def _make_bpe_model(proto: ModelProto) -> Json:
    """Returns the BPE model of a tokenizer.json.

    Sentencepiece stores scores of pieces instead of merges. Every split of a piece into two pieces
    is a merge, and merges are ordered by the score of the merged piece.
    """
    vocabulary = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
    merges = [
        [piece[:cut], piece[cut:]]
        for piece in sorted(scores, key=lambda piece: -scores[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
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


def _make_unigram_model(proto: ModelProto) -> Json:
    """Returns the unigram model of a tokenizer.json.

    Byte and control pieces get a score that keeps them out of every segmentation, because a text
    may contain their strings, such as "<0x0A>".
    """
    vocabulary = []
    for piece in proto.pieces:
        is_text = piece.type in (piece.NORMAL, piece.USER_DEFINED)
        vocabulary.append([piece.piece, piece.score if is_text else _UNUSED_SCORE])
    return {
        'type': 'Unigram',
        'unk_id': proto.trainer_spec.unk_id,
        'vocab': vocabulary,
        'byte_fallback': proto.trainer_spec.byte_fallback,
    }

"""The tokenizer in a GGUF file's metadata, as a tokenizer.json.

Ids are those of the tokenizer that the file was converted from. transformers 5.23 gives the same
ones, but for these, which it builds from the vocabulary alone:
  - `smollm` splits every digit from the space before it, LLaMA 3 takes a word that is in the
    vocabulary as it is, and Qwen normalizes to NFC.
  - LLaMA's sentencepiece model puts a space before every text, also if it begins with one.
  - Special tokens with characters that byte-level BPE does not have ("<|begin▁of▁sentence|>" of
    DeepSeek) get new ids, beyond the model's rows.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_checks import format_value
from cpt_jax.text.byte_level import QWEN2_PATTERN
from cpt_jax.text.hugging_face_json import HuggingFaceJson
from cpt_jax.text.pretrained_tokenizer import PretrainedTokenizer
from cpt_jax.text.tokenizer import SPACE

_PREFIX = 'tokenizer.ggml.'
# Types of tokens (llama.cpp's llama_token_type).
_NORMAL = 1
_UNKNOWN = 2
_CONTROL = 3
_USER_DEFINED = 4

_LLAMA3_PATTERN = QWEN2_PATTERN.replace(r'\p{N}|', r'\p{N}{1,3}|')
_UPPER = r'[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]'
_LOWER = r'[\p{Ll}\p{Lm}\p{Lo}\p{M}]'
_REST = r' ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+'
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"


def _make_cased_pattern(ending: str, digits: str) -> str:
    """Returns a pattern that splits where a lower-case letter is followed by an upper-case one."""
    words = [rf'[^\r\n\p{{L}}\p{{N}}]?{_UPPER}{a}{_LOWER}{b}{ending}' for a, b in ('*+', '+*')]
    return '|'.join([*words, digits, _REST])


class _Rule(NamedTuple):
    """How a byte-level BPE splits texts, by tokenizer.ggml.pre.

    Attributes:
      pattern: pattern of the parts; '' for GPT-2's.
      splits_digits: whether each digit is split off first.
      ignores_merges: whether a part that is in the vocabulary is one token without merges.
      is_composed: whether texts are normalized to NFC.
      adds_bos: whether the begin token is added if the file does not say it.
    """

    pattern: str = ''
    splits_digits: bool = False
    ignores_merges: bool = False
    is_composed: bool = False
    adds_bos: bool = False


_LLAMA3 = _Rule(_LLAMA3_PATTERN, ignores_merges=True, adds_bos=True)
# From llama.cpp's llama-vocab.cpp, and the tokenizer.json of the models.
RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(('gpt-2', 'olmo', 'mellum', 'trillion'), _Rule()),
    **dict.fromkeys(('smollm', 'starcoder', 'refact', 'codeshell'), _Rule(splits_digits=True)),
    **dict.fromkeys(('llama3', 'llama-v3', 'llama-bpe', 'falcon3', 'pixtral', 'lfm2'), _LLAMA3),
    **dict.fromkeys(('dbrx', 'smaug-bpe'), _Rule(_LLAMA3_PATTERN)),
    'qwen2': _Rule(QWEN2_PATTERN, is_composed=True),
    **dict.fromkeys(('deepseek-r1-qwen', 'megrez'), _Rule(QWEN2_PATTERN)),
    'tekken': _Rule(_make_cased_pattern('', r'\p{N}'), ignores_merges=True, adds_bos=True),
    **dict.fromkeys(('gpt-4o', 'llama4'), _Rule(_make_cased_pattern(_ENDING, r'\p{N}{1,3}'))),
}


class _Vocabulary(NamedTuple):
    """The tokens of a file.

    Attributes:
      tokens: content of each token, by id.
      types: type of each token, by id.
      scores: score of each token, by id; empty if the file has none.
      merges: pairs of tokens that are merged, in order; None if the file has none.
    """

    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    merges: Sequence[tuple[str, str]] | None

    @property
    def ids(self) -> dict[str, int]:
        """Id of each token."""
        return {token: i for i, token in enumerate(self.tokens)}


def open_gguf_tokenizer(path: Path, metadata: Mapping[str, Any]) -> PretrainedTokenizer:
    """Returns the tokenizer of a GGUF file.

    Args:
      path: the file, for messages.
      metadata: its metadata, by key.

    Raises:
      UserError: the file has no tokenizer, or one that is damaged or not supported.
    """
    try:
        data, ids = _build_json(metadata)
        model = HuggingFaceJson(data)
    except UserError as error:
        raise UserError(f'{path}: {error}') from None
    except Exception as error:  # the tokenizers library raises bare exceptions
        reason = str(error).splitlines()[0]
        raise UserError(f'{path}: its tokenizer cannot be read: {reason}') from None
    tokens = metadata[f'{_PREFIX}tokens']
    end = next((ids[role] for role in ('eos', 'bos', 'padding') if role in ids), 0)
    padding = tokens[ids['padding']] if 'padding' in ids else ''
    return PretrainedTokenizer(
        path.name,
        model,
        {'x': '', 'y': ''},
        lower=False,
        end=end,
        bos_ids=[ids['bos']] if 'bos' in ids else (),
        padding=padding,
    )


def _build_json(metadata: Mapping[str, Any]) -> tuple[bytes, dict[str, int]]:
    """Returns the content of tokenizer.json, and the ids of special tokens by role.

    Raises:
      UserError: the tokenizer is damaged or not supported; the message lacks the file's name.
    """
    kind = metadata.get(f'{_PREFIX}model')
    if kind is None or f'{_PREFIX}tokens' not in metadata:
        raise UserError(
            f'has no tokenizer ({_PREFIX}model, {_PREFIX}tokens): convert the model again, without '
            f'--no-vocab'
        )
    vocabulary = _read_vocabulary(metadata)
    if kind == 'gpt2':
        rule = _find_rule(metadata)
        tokenizer = _build_byte_level(vocabulary, rule)
        ids = _read_special_ids(metadata, {})
        adds_bos = rule.adds_bos
    elif kind == 'llama':
        ids = _read_special_ids(metadata, {'bos': 1, 'eos': 2, 'unknown': 0})
        if str(metadata.get('general.architecture')).startswith('gemma'):
            vocabulary = _restore_gemma(vocabulary)
        has_prefix = bool(metadata.get(f'{_PREFIX}add_space_prefix', True))
        tokenizer = _build_sentencepiece(vocabulary, ids.get('unknown'), has_prefix)
        adds_bos = True
    else:
        raise UserError(
            f'{_PREFIX}model={format_value(kind)} is not supported; supported are gpt2 (byte-level '
            f'BPE) and llama (sentencepiece)'
        )
    _add_tokens(tokenizer, vocabulary)
    around = {
        role: metadata.get(f'{_PREFIX}add_{role}_token', default) and role in ids
        for role, default in (('bos', adds_bos), ('eos', False))
    }
    contents = {role: vocabulary.tokens[ids[role]] for role in around if around[role]}
    if contents:
        parts = [contents.get('bos'), '$A', contents.get('eos')]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[part for part in parts if part],
            special_tokens=[*{content: ids[role] for role, content in contents.items()}.items()],
        )
    return tokenizer.to_str().encode(), ids


def _read_vocabulary(metadata: Mapping[str, Any]) -> _Vocabulary:
    tokens = metadata[f'{_PREFIX}tokens']
    types = metadata.get(f'{_PREFIX}token_type')
    scores = metadata.get(f'{_PREFIX}scores', ())
    merges = metadata.get(f'{_PREFIX}merges')
    if not isinstance(tokens, list) or len(set(tokens)) != len(tokens):
        raise UserError(f'{_PREFIX}tokens is not a list of different texts')
    if types is None:
        types = np.full(len(tokens), _NORMAL)
    for name, values in (('token_type', types), ('scores', scores)):
        is_numeric = isinstance(values, np.ndarray | tuple)
        if not is_numeric or len(values) not in (len(tokens), 0):
            raise UserError(f'{_PREFIX}{name} has no number for each of {len(tokens):,} tokens')
    if merges is not None and not isinstance(merges, list):
        raise UserError(f'{_PREFIX}merges is not a list of texts')
    return _Vocabulary(
        tokens,
        types.tolist(),
        [*map(float, scores)],
        None if merges is None else [_split_merge(merge) for merge in merges],
    )


def _split_merge(merge: str) -> tuple[str, str]:
    # A first piece may begin with a space, in vocabularies that do not replace it.
    cut = merge.find(' ', 1)
    if cut < 0:
        raise UserError(f'{_PREFIX}merges: {format_value(merge)} is not a pair')
    return merge[:cut], merge[cut + 1 :]


def _read_special_ids(metadata: Mapping[str, Any], defaults: Mapping[str, int]) -> dict[str, int]:
    """Returns the ids of special tokens by role: bos, eos, unknown, padding.

    Raises:
      UserError: an id is not one of a token.
    """
    ids = {}
    count = len(metadata[f'{_PREFIX}tokens'])
    for role in ('bos', 'eos', 'unknown', 'padding'):
        name = f'{_PREFIX}{role}_token_id'
        value = metadata.get(name, defaults.get(role))
        if value is None:
            continue
        if type(value) is not int or not 0 <= value < count:
            raise UserError(f'{name}={format_value(value)} is not the id of one of {count} tokens')
        ids[role] = value
    return ids


def _find_rule(metadata: Mapping[str, Any]) -> _Rule:
    name = metadata.get(f'{_PREFIX}pre')
    if name not in [*RULES]:
        raise UserError(
            f'{_PREFIX}pre={format_value(name)}: this way to split texts is not supported; '
            f'supported are {", ".join(RULES)}'
        )
    return RULES[name]


def _build_byte_level(vocabulary: _Vocabulary, rule: _Rule) -> tokenizers.Tokenizer:
    if vocabulary.merges is None:
        raise UserError(f'has no {_PREFIX}merges: convert the model again')
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocabulary.ids, list(vocabulary.merges), ignore_merges=rule.ignores_merges
        )
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not rule.pattern)
    steps: list[Any] = [byte_level]
    if rule.pattern:
        steps.insert(0, pre_tokenizers.Split(Regex(rule.pattern), behavior='isolated'))
    if rule.splits_digits:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if rule.is_composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _restore_gemma(vocabulary: _Vocabulary) -> _Vocabulary:
    """Returns the vocabulary as in Gemma's own tokenizer.json.

    llama.cpp writes tokens of several spaces as real spaces, to be found in texts. In Gemma, they
    are the results of merges, as other tokens. Its merges are in the order of the tokens, also
    where their scores are not.
    """
    tokens = []
    types = []
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        is_spaces = not token.strip(' ')
        tokens.append(SPACE * len(token) if is_spaces else token)
        types.append(_NORMAL if is_spaces else kind)
    return vocabulary._replace(
        tokens=tokens, types=types, scores=[float(-i) for i in range(len(tokens))]
    )


def _build_sentencepiece(
    vocabulary: _Vocabulary, unknown: int | None, has_prefix: bool
) -> tokenizers.Tokenizer:
    """Returns the BPE of a sentencepiece model.

    Args:
      vocabulary: the tokens.
      unknown: id of unknown characters, if there is one.
      has_prefix: whether a space is put before each text.
    """
    merges = vocabulary.merges
    if merges is None:
        if not vocabulary.scores:
            raise UserError(f'has neither {_PREFIX}scores nor {_PREFIX}merges: convert it again')
        merges = _list_merges(vocabulary)
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocabulary.ids,
            list(merges),
            unk_token=None if unknown is None else vocabulary.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    replace = normalizers.Replace(' ', SPACE)
    prefix = [normalizers.Prepend(SPACE)] if has_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, replace])
    strip = [decoders.Strip(' ', 1, 0)] if has_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, ' '), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _list_merges(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """Returns the merges of a sentencepiece BPE, which stores scores of tokens instead.

    Every split of a token into two tokens is a merge. The merges into the token with the highest
    score come first, and of the same score those with the longest first part.
    """
    scores = {
        token: score
        for token, kind, score in zip(
            vocabulary.tokens, vocabulary.types, vocabulary.scores, strict=True
        )
        if kind in (_NORMAL, _USER_DEFINED)
    }
    merges = [
        (score, cut, len(token) - cut, token)
        for token, score in scores.items()
        for cut in range(1, len(token))
        if token[:cut] in scores and token[cut:] in scores
    ]
    merges.sort(key=lambda merge: merge[:3], reverse=True)
    return [(token[:cut], token[cut:]) for _, cut, _, token in merges]


def _add_tokens(tokenizer: tokenizers.Tokenizer, vocabulary: _Vocabulary) -> None:
    """Adds the tokens that are one id wherever they occur in a text, in place."""
    kinds = (_UNKNOWN, _CONTROL, _USER_DEFINED)
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False, special=kind != _USER_DEFINED)
            for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
            if kind in kinds
        ]
    )

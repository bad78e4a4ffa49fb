"""Classes of transformers 5.23 that rebuild a tokenizer from parts of its tokenizer.json.

PreTrainedTokenizerFast and TokenizersBackend read the whole file. The classes below read the
vocabulary and the merges, and make the normalizer and the pre-tokenizer themselves, some of them
the post-processor too.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import normalizers, pre_tokenizers, processors

from cpt_jax.runtime.errors import UserError
from cpt_jax.text.byte_level import QWEN2_PATTERN, read_tokenizer_class
from cpt_jax.text.special_tokens import read_special_tokens

Part = dict[str, Any] | None  # a normalizer, pre-tokenizer or post-processor as in tokenizer.json


class _Class(NamedTuple):
    """Which parts a class makes.

    Attributes:
      model: type of the model in tokenizer.json.
      around: role -> default of the tokens before and after each text; {} for none, None if the
        post-processor of tokenizer.json is read.
    """

    model: str
    around: Mapping[str, str] | None = None


_CLS_SEP = {'cls_token': '[CLS]', 'sep_token': '[SEP]'}
_ANGLED = {'cls_token': '<s>', 'sep_token': '</s>'}
_BERT_CLASSES = ('BertTokenizer', 'DistilBertTokenizer', 'MPNetTokenizer', 'ElectraTokenizer')
_CLASSES = {
    **dict.fromkeys(_BERT_CLASSES, _Class('WordPiece', _CLS_SEP)),
    'MPNetTokenizer': _Class('WordPiece', _ANGLED),
    'RobertaTokenizer': _Class('BPE', _ANGLED),
    'XLMRobertaTokenizer': _Class('Unigram', {'bos_token': '<s>', 'eos_token': '</s>'}),
    'GPT2Tokenizer': _Class('BPE'),
    'CodeGenTokenizer': _Class('BPE'),
    'GPTNeoXTokenizer': _Class('BPE', {}),
    'Qwen2Tokenizer': _Class('BPE'),
}
# Classes of families, if no file names a class.
_CLASS_BY_FAMILY = {
    **dict.fromkeys(('bert', 'distilbert', 'nomic_bert'), 'BertTokenizer'),
    'mpnet': 'MPNetTokenizer',
    'roberta': 'RobertaTokenizer',
    **dict.fromkeys(('xlm-roberta', 'gte'), 'XLMRobertaTokenizer'),
    **dict.fromkeys(('gpt2', 'gptj', 'opt', 'codegen'), 'GPT2Tokenizer'),
    'gpt_neox': 'GPTNeoXTokenizer',
    **dict.fromkeys(('qwen2', 'qwen3'), 'Qwen2Tokenizer'),
}
_ADVICE = (
    'to read tokenizer.json as it is, set tokenizer_class in tokenizer_config.json to '
    'PreTrainedTokenizerFast'
)


def rebuild_tokenizer_json(
    directory: Path, config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]
) -> bytes:
    """Returns the content of tokenizer.json with the parts that transformers replaces.

    A part that has the same effect is kept as it is. So are several pre-tokenizers in a row for
    GPT-2's and RoBERTa's byte-level BPE: SmolLM2 and StarCoder split digits, which the class of
    transformers omits.

    Args:
      directory: directory of the pretrained model.
      config: content of config.json.
      tokenizer_config: content of tokenizer_config.json.

    Raises:
      UserError: the class has another model than tokenizer.json, or adds a token that it lacks.
    """
    data = (directory / 'tokenizer.json').read_bytes()
    name = _find_class(config, tokenizer_config)
    if name not in _CLASSES:
        return data
    content = json.loads(data)
    model = content['model'].get('type') or _CLASSES[name].model
    if model != _CLASSES[name].model:
        raise UserError(
            f'{directory}/tokenizer.json: has a {model} model, and the {name} of transformers a '
            f'{_CLASSES[name].model} model: {_ADVICE}'
        )
    parts = _load_parts(content)
    made = {
        'normalizer': _make_normalizer(name, parts['normalizer'], tokenizer_config),
        'pre_tokenizer': _make_pre_tokenizer(name, parts['pre_tokenizer'], tokenizer_config),
    }
    changes = {key: part for key, part in made.items() if not _is_same(part, parts[key])}
    around = _CLASSES[name].around
    if around is not None:
        tokens = _find_tokens_around(directory, name, content, tokenizer_config)
        if [i for _, i in tokens] != _list_added_ids(content):
            changes['post_processor'] = _make_post_processor(tokens)
    return json.dumps(content | changes, ensure_ascii=False).encode() if changes else data


def make_bert_normalizer(tokenizer_config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the normalizer of transformers' classes for BERT, as in tokenizer.json."""
    return {
        'type': 'BertNormalizer',
        'clean_text': True,
        'handle_chinese_chars': tokenizer_config.get('tokenize_chinese_chars') is not False,
        'strip_accents': tokenizer_config.get('strip_accents'),
        'lowercase': tokenizer_config.get('do_lower_case') is not False,
    }


def _find_class(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> str:
    """Returns the name of transformers' class for a tokenizer.json; '' if it is not known.

    For Qwen2, transformers 5.23 replaces every class, such as the LlamaTokenizer of DeepSeek's
    models. It replaces generic classes too; here they read the file as it is, as exports need it.
    """
    if config.get('model_type') == 'qwen2' and read_tokenizer_class(config, tokenizer_config):
        return 'Qwen2Tokenizer'
    name = tokenizer_config.get('tokenizer_class') or config.get('tokenizer_class')
    if name:
        return name.removesuffix('Fast')
    return _CLASS_BY_FAMILY.get(config.get('model_type', ''), '')


def _make_normalizer(name: str, given: Part, tokenizer_config: Mapping[str, Any]) -> Part:
    if name in _BERT_CLASSES:
        return make_bert_normalizer(tokenizer_config)
    if name in ('GPTNeoXTokenizer', 'Qwen2Tokenizer'):
        return _describe(normalizers.NFC())
    if name != 'XLMRobertaTokenizer' or given is None:
        return None
    steps = given['normalizers'] if given['type'] == 'Sequence' else [given]
    return next((step for step in steps if step['type'] == 'Precompiled'), None)


def _make_pre_tokenizer(name: str, given: Part, tokenizer_config: Mapping[str, Any]) -> Part:
    if name in _BERT_CLASSES:
        return _describe(pre_tokenizers.BertPreTokenizer())
    has_prefix = tokenizer_config.get('add_prefix_space')
    if name == 'XLMRobertaTokenizer':
        scheme = 'never' if has_prefix is False else 'always'
        metaspace = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        return _describe(pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace]))
    if name == 'Qwen2Tokenizer':
        split = pre_tokenizers.Split(tokenizers.Regex(QWEN2_PATTERN), behavior='isolated')
        byte_level = pre_tokenizers.ByteLevel(bool(has_prefix), use_regex=False)
        return _describe(pre_tokenizers.Sequence([split, byte_level]))
    if given and given['type'] == 'Sequence' and len(given['pretokenizers']) > 1:
        return given
    return _describe(pre_tokenizers.ByteLevel(bool(has_prefix)))


def _describe(part: Any) -> dict[str, Any]:
    """Returns an object of the tokenizers library as in tokenizer.json."""
    return json.loads(part.__getstate__())


def _load_parts(content: Mapping[str, Any]) -> dict[str, Part]:
    """Returns the parts of a tokenizer.json as the installed tokenizers library writes them."""
    loaded = _load_without_vocabulary(content)
    return {
        key: None if part is None else _describe(part)
        for key in ('normalizer', 'pre_tokenizer')
        for part in [getattr(loaded, key)]
    }


def _load_without_vocabulary(content: Mapping[str, Any], *omitted: str) -> tokenizers.Tokenizer:
    changes = dict.fromkeys(('truncation', 'padding', 'decoder', *omitted))
    model = {'type': 'WordLevel', 'vocab': {'[UNK]': 0}, 'unk_token': '[UNK]'}
    minimal = {**content, **changes, 'added_tokens': [], 'model': model}
    return tokenizers.Tokenizer.from_str(json.dumps(minimal))


def _list_added_ids(content: Mapping[str, Any]) -> list[int]:
    """Returns the ids that the post-processor of a tokenizer.json puts around a text."""
    return _load_without_vocabulary(content, 'normalizer', 'pre_tokenizer').encode('').ids


def _is_same(one: Any, other: Any) -> bool:
    """Whether two parts give the same ids: `trim_offsets` has no effect on them."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = (one.keys() | other.keys()) - {'trim_offsets'}
        return all(_is_same(one.get(key), other.get(key)) for key in keys)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other)


def _find_tokens_around(
    directory: Path, name: str, content: Mapping[str, Any], tokenizer_config: Mapping[str, Any]
) -> list[tuple[str, int]]:
    """Returns (token, id) of the token before and of the one after each text; [] for none.

    Raises:
      UserError: tokenizer.json lacks one of them.
    """
    around = _CLASSES[name].around or {}
    special = read_special_tokens(directory, tokenizer_config, around)
    tokens = [special.named[role].content for role in around]
    vocabulary = content['model']['vocab']
    if isinstance(vocabulary, list):
        vocabulary = {token: i for i, (token, _) in enumerate(vocabulary)}
    added = {token['content']: token['id'] for token in content.get('added_tokens', [])}
    vocabulary = vocabulary | added
    for role, token in zip(around, tokens, strict=True):
        if token not in vocabulary:
            raise UserError(
                f'{directory}/tokenizer.json: has no token {token!r} ({role}), which the {name} of '
                f'transformers puts around texts: {_ADVICE}'
            )
    return [(token, vocabulary[token]) for token in tokens]


def _make_post_processor(tokens: Sequence[tuple[str, int]]) -> Part:
    if not tokens:
        return None
    (first, _), (last, _) = tokens
    return _describe(
        processors.TemplateProcessing(
            single=[first, '$A', last], special_tokens=[*dict(tokens).items()]
        )
    )

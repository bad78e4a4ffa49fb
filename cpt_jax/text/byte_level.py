"""Byte-level BPE built from vocab.json and merges.txt, with the same ids as in transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers, pre_tokenizers

from cpt_jax.runtime.errors import UserError
from cpt_jax.text.special_tokens import read_special_tokens

# Qwen2's pre-tokenization pattern, copied from its tokenizer. It splits numbers into digits.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| "
    r'?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
# Values of `tokenizer_class` that do not identify the tokenizer. The model family decides then, and
# families that are not listed use GPT-2's tokenizer.
_GENERIC_CLASSES = ('', 'TokenizersBackend', 'PreTrainedTokenizer', 'PreTrainedTokenizerFast')
_CLASS_BY_FAMILY = {
    'gpt_neox': 'GPTNeoXTokenizer',
    'qwen2': 'Qwen2Tokenizer',
    'qwen3': 'Qwen2Tokenizer',
    'roberta': 'RobertaTokenizer',
}
_END = '<|endoftext|>'
_DEFAULT_TOKENS = {
    'GPT2Tokenizer': {'bos_token': _END, 'eos_token': _END, 'unk_token': _END},
    'CodeGenTokenizer': {'bos_token': _END, 'eos_token': _END, 'unk_token': _END},
    'GPTNeoXTokenizer': {
        'bos_token': _END,
        'eos_token': _END,
        'unk_token': _END,
        'pad_token': '<|padding|>',
    },
    'Qwen2Tokenizer': {'eos_token': _END, 'unk_token': _END, 'pad_token': _END},
}


def build_byte_level_json(
    directory: Path, config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]
) -> bytes:
    """Returns the tokenizer.json that transformers builds from vocab.json and merges.txt.

    Args:
      directory: directory of the pretrained model.
      config: content of config.json.
      tokenizer_config: content of tokenizer_config.json.

    Raises:
      UserError: the tokenizer class is not supported, or two files disagree about an id.
    """
    kind = _find_tokenizer_class(config, tokenizer_config)
    if kind not in _DEFAULT_TOKENS:
        raise UserError(
            f'{directory}: a {kind} from vocab.json and merges.txt is not supported (supported: '
            f'{", ".join(_DEFAULT_TOKENS)}); write a tokenizer.json with '
            f'`AutoTokenizer.from_pretrained(...).save_pretrained(...)`'
        )
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE.from_file(
            str(directory / 'vocab.json'), str(directory / 'merges.txt')
        )
    )
    byte_level = pre_tokenizers.ByteLevel(
        add_prefix_space=bool(tokenizer_config.get('add_prefix_space')),
        use_regex=kind != 'Qwen2Tokenizer',
    )
    if kind == 'Qwen2Tokenizer':
        split = pre_tokenizers.Split(tokenizers.Regex(QWEN2_PATTERN), behavior='isolated')
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    else:
        tokenizer.pre_tokenizer = byte_level
    if kind in ('Qwen2Tokenizer', 'GPTNeoXTokenizer'):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    special = read_special_tokens(directory, tokenizer_config, _DEFAULT_TOKENS[kind])
    for given_id, token in special.iterate_tokens():
        tokenizer.add_tokens([token])
        actual_id = tokenizer.token_to_id(token.content)
        if given_id not in (None, actual_id):
            raise UserError(
                f'{directory}: {token.content} has id {given_id} among the added tokens and id '
                f'{actual_id} in vocab.json'
            )
    added = {
        part: special.named[part].content
        for part in ('bos_token', 'eos_token')
        if tokenizer_config.get(f'add_{part}') and part in special.named
    }
    if added:
        template = [added.get('bos_token'), '$A', added.get('eos_token')]
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=[part for part in template if part],
            special_tokens=[(name, tokenizer.token_to_id(name)) for name in set(added.values())],
        )
    return tokenizer.to_str().encode()


def read_tokenizer_class(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> str:
    """Returns the slow tokenizer's class name in the config files; '' if it is generic or none."""
    name = tokenizer_config.get('tokenizer_class') or config.get('tokenizer_class') or ''
    name = name.removesuffix('Fast')
    return '' if name in _GENERIC_CLASSES else name


def _find_tokenizer_class(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> str:
    """Returns the slow tokenizer's class name, from the config files or else from the family."""
    by_family = _CLASS_BY_FAMILY.get(config.get('model_type', ''), 'GPT2Tokenizer')
    return read_tokenizer_class(config, tokenizer_config) or by_family

"""Byte-level BPE from vocab.json and merges.txt, as transformers makes it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers, pre_tokenizers

from cpt_jax.runtime.errors import UserError
from cpt_jax.text.special_tokens import read_special_tokens

# How Qwen2 cuts texts before it merges: its tokenizer's own, digit by digit.
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| "
    r'?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
# Names of tokenizers that say nothing, and what they then are by the family; GPT-2's for all
# others.
_UNSAID = ('', 'TokenizersBackend', 'PreTrainedTokenizer', 'PreTrainedTokenizerFast')
_BY_FAMILY = {'gpt_neox': 'GPTNeoXTokenizer', 'qwen2': 'Qwen2Tokenizer', 'qwen3': 'Qwen2Tokenizer'}
_END = '<|endoftext|>'
_DEFAULTS = {
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


def byte_level_json(directory: Path, config: Mapping[str, Any], own: Mapping[str, Any]) -> bytes:
    """The tokenizer.json that transformers makes of vocab.json and merges.txt."""
    kind = (own.get('tokenizer_class') or config.get('tokenizer_class') or '').removesuffix('Fast')
    kind = (
        _BY_FAMILY.get(config.get('model_type', ''), 'GPT2Tokenizer') if kind in _UNSAID else kind
    )
    if kind not in _DEFAULTS:
        raise UserError(
            f'{directory}: a {kind} of vocab.json and merges.txt is not supported; known are '
            f'{", ".join(_DEFAULTS)}.'
            ' `AutoTokenizer.from_pretrained(...).save_pretrained(...)` writes a tokenizer.json'
        )
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE.from_file(
            str(directory / 'vocab.json'), str(directory / 'merges.txt')
        )
    )
    prefix = bool(own.get('add_prefix_space'))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=prefix, use_regex=kind != 'Qwen2Tokenizer'
    )
    if kind == 'Qwen2Tokenizer':
        cut = pre_tokenizers.Split(tokenizers.Regex(_QWEN2), behavior='isolated')
        made.pre_tokenizer = pre_tokenizers.Sequence([cut, made.pre_tokenizer])
    if kind in ('Qwen2Tokenizer', 'GPTNeoXTokenizer'):
        made.normalizer = normalizers.NFC()
    made.decoder = tokenizers.decoders.ByteLevel()
    special = read_special_tokens(directory, own, _DEFAULTS[kind])
    for number, token in special.entries():
        made.add_tokens([token])
        if number not in (None, made.token_to_id(token.content)):
            raise UserError(
                f'{directory}: {token.content} is id {number} by its added tokens, and '
                f'{made.token_to_id(token.content)} by vocab.json'
            )
    around = {
        part: special.named[part].content
        for part in ('bos_token', 'eos_token')
        if own.get(f'add_{part}') and part in special.named
    }
    if around:
        template = [around.get('bos_token'), '$A', around.get('eos_token')]
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single=[part for part in template if part],
            special_tokens=[(name, made.token_to_id(name)) for name in set(around.values())],
        )
    return made.to_str().encode()

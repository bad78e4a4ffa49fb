"""Builds a tokenizer.json from BERT's vocab.txt, as transformers does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from cpt_jax.runtime.errors import UserError
from cpt_jax.text.special_tokens import read_special_tokens
from cpt_jax.text.tokenizer_classes import make_bert_normalizer

_DEFAULT_TOKENS = {
    'unk_token': '[UNK]',
    'sep_token': '[SEP]',
    'pad_token': '[PAD]',
    'cls_token': '[CLS]',
    'mask_token': '[MASK]',
}


def build_wordpiece_json(directory: Path, tokenizer_config: Mapping[str, Any]) -> bytes:
    """Returns the tokenizer.json that transformers builds from BERT's vocab.txt.

    Args:
      directory: directory of the pretrained model.
      tokenizer_config: content of tokenizer_config.json.

    Raises:
      UserError: vocab.txt lacks a special token.
    """
    path = directory / 'vocab.txt'
    lines = path.read_text('utf-8').split('\n')
    vocabulary = {line.rstrip('\r'): i for i, line in enumerate(lines) if line}
    special = read_special_tokens(directory, tokenizer_config, _DEFAULT_TOKENS)
    names = {part: token.content for part, token in special.named.items()}
    for part in ('unk_token', 'cls_token', 'sep_token'):
        if names[part] not in vocabulary:
            raise UserError(f'{path}: has no line {names[part]!r} ({part})')
    model = tokenizers.models.WordPiece(vocabulary, unk_token=names['unk_token'])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    for _, token in special.iterate_tokens():
        tokenizer.add_tokens([token])
    cls, sep = names['cls_token'], names['sep_token']
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f'{cls} $A {sep}', special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])]
    )
    content = json.loads(tokenizer.to_str())
    content['normalizer'] = make_bert_normalizer(tokenizer_config)
    return json.dumps(content, ensure_ascii=False).encode()

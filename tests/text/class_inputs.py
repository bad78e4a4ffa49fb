"""Directories whose tokenizer.json differs from what the class of transformers makes of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = ['<s>', '<pad>', '</s>', '<unk>', '<mask>', '[CLS]', '[SEP]', '[UNK]', '<|endoftext|>']
TEXTS = ['list file', ' List  file', 'Über e\u0301 ﬁle 12', '<s> file </s>', '', '▁list']
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
_LETTERS = ['l', 'i', 's', 't', 'f', 'e', 'L', 'Ü', 'b', 'r', 'ü', 'u', 'é', 'ﬁ', '1', '2']


class Case(NamedTuple):
    """A tokenizer.json with its config files.

    Attributes:
      family: model_type in config.json.
      parts: normalizer, pre_tokenizer and post_processor in tokenizer.json.
      tokenizer_config: content of tokenizer_config.json.
    """

    family: str
    parts: Mapping[str, Any]
    tokenizer_config: Mapping[str, Any] = {}


def _put(*tokens: str) -> processors.TemplateProcessing:
    """Returns a post-processor that puts tokens around texts: one before, or one and one after."""
    return processors.TemplateProcessing(
        single=[tokens[0], '$A', *tokens[1:]],
        special_tokens=[(token, SPECIAL.index(token)) for token in dict.fromkeys(tokens)],
    )


def _split(prefix: bool) -> dict[str, Any]:
    return {'pre_tokenizer': pre_tokenizers.ByteLevel(add_prefix_space=prefix)}


_PREFIX = {'add_prefix_space': True}
_END = {'bos_token': '</s>', 'eos_token': '</s>', 'unk_token': '</s>', 'add_bos_token': True}
_AROUND = {'post_processor': _put('<s>', '</s>')}
_WORDS = {'pre_tokenizer': pre_tokenizers.BertPreTokenizer()}
_METASPACE = {'pre_tokenizer': pre_tokenizers.Metaspace()}
_NFC = {'normalizer': normalizers.NFC()}
CASES = {
    'gpt2, prefix in the config': Case('gpt2', _split(False), _PREFIX),
    'gpt2, prefix in the file': Case('gpt2', _split(True)),
    'gpt2, normalizer': Case('gptj', _split(False) | _NFC),
    'gpt2, own begin token': Case(
        'gpt2', _split(False) | {'post_processor': _put('<|endoftext|>')}
    ),
    'codegen': Case('codegen', _split(True), {'tokenizer_class': 'CodeGenTokenizer'}),
    'opt': Case('opt', _split(True) | {'post_processor': _put('</s>')}, _END),
    'llama, class of gpt2': Case('llama', _split(True), {'tokenizer_class': 'GPT2TokenizerFast'}),
    'llama': Case('llama', _split(True)),
    'generic': Case('gpt2', _split(True), {'tokenizer_class': 'PreTrainedTokenizerFast'}),
    'neox': Case('gpt_neox', _split(False), _PREFIX),
    'neox, begin token': Case('gpt_neox', _split(False) | {'post_processor': _put('<s>')}),
    'qwen3': Case('qwen3', _split(True)),
    'roberta, prefix in the config': Case('roberta', _split(False) | _AROUND, _PREFIX),
    'roberta, prefix in the file': Case('roberta', _split(True) | _AROUND),
    'roberta, nothing around': Case('roberta', _split(False)),
    'roberta, other around': Case('roberta', _split(False) | {'post_processor': _put('<pad>')}),
    'roberta, other tokens': Case('roberta', _split(False), {'cls_token': '<pad>'}),
    'xlm-roberta, nothing around': Case('xlm-roberta', _METASPACE),
    'xlm-roberta, lower': Case(
        'xlm-roberta', _METASPACE | _AROUND | {'normalizer': normalizers.Lowercase()}
    ),
    'xlm-roberta, spaces': Case(
        'bert',
        _METASPACE | _AROUND | {'normalizer': normalizers.Replace(Regex(' {2,}'), ' ')},
        {'tokenizer_class': 'XLMRobertaTokenizer', 'add_prefix_space': False},
    ),
    'bert, nothing around': Case('bert', _WORDS),
    'bert, only before': Case('distilbert', _WORDS | {'post_processor': _put('[CLS]')}),
    'bert, pre-tokenizer': Case('bert', {'pre_tokenizer': pre_tokenizers.WhitespaceSplit()}),
    'mpnet': Case('mpnet', _WORDS),
}


def write_case(case: Case, folder: Path) -> Path:
    """Writes the directory of a case."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(_make_model(case))
    tokenizer.add_special_tokens(SPECIAL)
    for name, part in case.parts.items():
        setattr(tokenizer, name, part)
    tokenizer.save(str(folder / 'tokenizer.json'))
    (folder / 'config.json').write_text(json.dumps({'model_type': case.family}))
    (folder / 'tokenizer_config.json').write_text(json.dumps(case.tokenizer_config))
    return folder


def _make_model(case: Case) -> models.Model:
    split = case.parts['pre_tokenizer']
    if isinstance(split, pre_tokenizers.ByteLevel | pre_tokenizers.Sequence):
        tokens = [*SPECIAL, *_BYTES, 'Ġl', 'li']
        vocabulary = {token: i for i, token in enumerate(tokens)}
        return models.BPE(vocabulary, [('Ġ', 'l'), ('l', 'i')])
    if isinstance(split, pre_tokenizers.Metaspace):
        pieces = [*SPECIAL, '▁', *_LETTERS, '▁list', '▁file', '▁ﬁ']
        return models.Unigram([(piece, -float(len(piece) < 3)) for piece in pieces], unk_id=3)
    words = [*SPECIAL, 'list', 'file', 'List', 'uber', '##s', ',']
    return models.WordPiece({word: i for i, word in enumerate(words)}, unk_token='[UNK]')

"""A tokenizer.json file, encoded with Hugging Face's tokenizers library."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

# Classes of transformers 5.23 that make the normalizer of BERT from tokenizer_config.json, and
# families that have one of them if tokenizer_config.json names no class.
_BERT_CLASSES = ('BertTokenizer', 'DistilBertTokenizer', 'MPNetTokenizer', 'ElectraTokenizer')
_BERT_MODEL_TYPES = ('bert', 'distilbert', 'mpnet')


def apply_tokenizer_config(
    data: bytes, config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]
) -> bytes:
    """Returns the content of tokenizer.json with the normalizer that transformers gives it.

    transformers' classes for BERT read letter case, accents and Chinese characters from
    tokenizer_config.json, and ignore the normalizer in tokenizer.json.

    Args:
      data: content of tokenizer.json.
      config: content of config.json.
      tokenizer_config: content of tokenizer_config.json.
    """
    if not is_bert_tokenizer(config, tokenizer_config):
        return data
    content = json.loads(data)
    normalizer = make_bert_normalizer(tokenizer_config)
    if content.get('normalizer') == normalizer:
        return data
    return json.dumps(content | {'normalizer': normalizer}, ensure_ascii=False).encode()


def is_bert_tokenizer(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> bool:
    """Whether transformers reads the tokenizer with a class for BERT."""
    if name := tokenizer_config.get('tokenizer_class'):
        return name.removesuffix('Fast') in _BERT_CLASSES
    return config.get('model_type') in _BERT_MODEL_TYPES


def make_bert_normalizer(tokenizer_config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the normalizer of transformers' classes for BERT, as in tokenizer.json."""
    return {
        'type': 'BertNormalizer',
        'clean_text': True,
        'handle_chinese_chars': tokenizer_config.get('tokenize_chinese_chars') is not False,
        'strip_accents': tokenizer_config.get('strip_accents'),
        'lowercase': tokenizer_config.get('do_lower_case') is not False,
    }


def truncates_left(data: bytes, tokenizer_config: Mapping[str, Any]) -> bool:
    """Whether long texts lose their beginning, as in transformers.

    Args:
      data: content of tokenizer.json.
      tokenizer_config: content of tokenizer_config.json.
    """
    side = tokenizer_config.get('truncation_side')
    if side is None:
        truncation = tokenizers.Tokenizer.from_buffer(data).truncation or {}
        side = truncation.get('direction', 'right')
    return side == 'left'


class HuggingFaceJson:
    """A tokenizer.json file with the special tokens that its post-processor adds."""

    def __init__(self, data: bytes, truncates_left: bool = False):
        """Loads a tokenizer.

        Args:
          data: content of tokenizer.json.
          truncates_left: whether long texts lose their beginning and not their end.
        """
        self.file = ('tokenizer.json', data)
        self.identity = data + b'left' if truncates_left else data
        self.truncates_left = truncates_left
        # A tokenizer for each truncation length, because the length is a setting of the tokenizer,
        # and threads of the input pipeline encode both sides at once.
        self._truncating: dict[int, tokenizers.Tokenizer] = {}
        self._tokenizer = self._load()
        self._tokenizer.no_truncation()
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        encoded = self._tokenizer.encode('a')
        is_special = encoded.special_tokens_mask
        self.before = encoded.ids[: is_special.index(0)] if 0 in is_special else []

    def encode(self, texts: Sequence[str], max_tokens: int | None) -> list[list[int]]:
        if max_tokens is None:
            found = self._tokenizer.encode_batch_fast(list(texts))
            return [encoded.ids for encoded in found]
        if max_tokens not in self._truncating:
            tokenizer = self._load()
            side = 'left' if self.truncates_left else 'right'
            tokenizer.enable_truncation(max_tokens, direction=side)
            self._truncating[max_tokens] = tokenizer
        found = self._truncating[max_tokens].encode_batch_fast(list(texts))
        return [encoded.ids for encoded in found]

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoded.ids for encoded in found]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def _load(self) -> tokenizers.Tokenizer:
        tokenizer = tokenizers.Tokenizer.from_buffer(self.file[1])
        tokenizer.no_padding()
        return tokenizer

"""A tokenizer.json file, encoded with Hugging Face's tokenizers library."""

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers


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

"""A tokenizer.json file, encoded with Hugging Face's tokenizers library."""

from collections.abc import Sequence

import tokenizers


class HuggingFaceJson:
    """A tokenizer.json file with the special tokens that its post-processor adds."""

    def __init__(self, data: bytes):
        """Loads a tokenizer from the content of tokenizer.json."""
        self.file = ('tokenizer.json', data)
        self.identity = data
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
            tokenizer.enable_truncation(max_tokens)
            self._truncating[max_tokens] = tokenizer
        found = self._truncating[max_tokens].encode_batch_fast(list(texts))
        return [encoded.ids for encoded in found]

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoded.ids for encoded in found]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def _load(self) -> tokenizers.Tokenizer:
        tokenizer = tokenizers.Tokenizer.from_buffer(self.identity)
        tokenizer.no_padding()
        return tokenizer

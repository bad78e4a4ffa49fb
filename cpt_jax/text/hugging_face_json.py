"""A tokenizer.json, encoded by Hugging Face's tokenizers."""

from collections.abc import Sequence

import tokenizers


class HuggingFaceJson:
    """A tokenizer.json, with the special tokens of its post-processor."""

    def __init__(self, data: bytes):
        self.file, self.identity = ('tokenizer.json', data), data
        self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        around = self._tokenizer.encode('a')
        self.before = (
            around.ids[: around.special_tokens_mask.index(0)]
            if 0 in around.special_tokens_mask
            else []
        )

    def encode(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        self._tokenizer.enable_truncation(max_tokens)
        return [found.ids for found in self._tokenizer.encode_batch_fast(list(texts))]

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        self._tokenizer.no_truncation()
        return [
            found.ids
            for found in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

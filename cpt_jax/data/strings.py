"""A memory-efficient sequence of strings, stored in two arrays."""

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class Strings(Sequence[str]):
    """A read-only sequence of strings that takes their UTF-8 bytes plus 8 bytes per string; a list
    of str takes 50 or more per string.

    Attributes:
      bytes: uint8[total], the strings in UTF-8, concatenated.
      starts: int64[n + 1]; string i is `bytes[starts[i] : starts[i + 1]]`.
    """

    def __init__(self, bytes_: np.ndarray, starts: np.ndarray):
        self.bytes = bytes_
        self.starts = starts

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> 'Strings':
        """Stores texts. Lone surrogates, which UTF-8 cannot encode, become question marks."""
        encoded = [text.encode('utf-8', 'replace') for text in texts]
        starts = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return cls(np.frombuffer(b''.join(encoded), np.uint8), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return StringSelection(self, np.arange(len(self))[index])
        if not 0 <= index < len(self):
            raise IndexError(f'text {index} of {len(self)}')
        return self.bytes[self.starts[index] : self.starts[index + 1]].tobytes().decode('utf-8')


class StringSelection(Sequence[str]):
    """The strings at the given indices; the strings are not copied.

    Args:
      texts: all strings.
      indices: int64[n], indices into `texts`.
    """

    def __init__(self, texts: Strings, indices: np.ndarray):
        self._texts = texts
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return StringSelection(self._texts, self._indices[index])
        if not 0 <= index < len(self):
            raise IndexError(f'text {index} of {len(self)}')
        return self._texts[int(self._indices[index])]

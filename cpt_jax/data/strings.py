"""Many texts in two arrays."""

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class Strings(Sequence[str]):
    """A read-only sequence of texts that costs their bytes and 8 more each, where a list of str
    costs 50 and more.

    Attributes:
      bytes: uint8[total], the texts in UTF-8, one after the other.
      starts: int64[n + 1]; text i is `bytes[starts[i] : starts[i + 1]]`.
    """

    def __init__(self, bytes_: np.ndarray, starts: np.ndarray):
        self.bytes, self.starts = bytes_, starts

    @classmethod
    def of(cls, texts: Iterable[str]) -> 'Strings':
        """Lone surrogates, which a Python literal may hold and UTF-8 cannot, become question
        marks.
        """
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
            return Chosen(self, np.arange(len(self))[index])
        if not 0 <= index < len(self):
            raise IndexError(f'text {index} of {len(self)}')
        return self.bytes[self.starts[index] : self.starts[index + 1]].tobytes().decode('utf-8')


class Chosen(Sequence[str]):
    """Some of the texts, by number: int64[n]."""

    def __init__(self, texts: Strings, numbers: np.ndarray):
        self._texts, self._numbers = texts, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return Chosen(self._texts, self._numbers[index])
        if not 0 <= index < len(self):
            raise IndexError(f'text {index} of {len(self)}')
        return self._texts[int(self._numbers[index])]

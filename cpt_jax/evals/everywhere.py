"""Evaluation on several processes, one a host: process 0 leads, and the others compute with it.

Only process 0 reads benchmarks, scores and writes. What it does on the devices of all, it tells the others before, and they do the same in
the same order: embed texts, and search blocks of documents. What it computes on its own devices alone, such as probes, they never hear of.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cpt_jax.evals import exact_search
from cpt_jax.evals.ranking import Hits
from cpt_jax.evals.task import Embed
from cpt_jax.processes import await_call, call

_EMBED, _SEARCH, _BLOCK, _BLOCKS_END, _END = 'embed', 'search', 'block', 'end of blocks', 'end'
# Bytes are sent in pieces, each padded to a power of two, or else each length would be a program of its own; a device holds a piece twice.
_LEAST, _MOST = 1 << 16, 1 << 26
_calls = count()  # of this process: as many as of any other


def embedding(embed: Embed) -> Embed:
    """The function on every process; to be called on process 0, while the others are in `assist` with the same."""

    def everywhere(texts: Sequence[str], side: str) -> np.ndarray:
        _tell(_EMBED, [list(texts), side])
        return embed(texts, side)

    return everywhere


def search(queries_QxD: np.ndarray, blocks: Iterable[tuple[np.ndarray, np.ndarray]], k: int, memory: float = 2.0) -> Hits:
    """`exact_search.search` on every device of every process; to be called on process 0, while the others are in `assist`."""
    _tell(_SEARCH, [k, memory], queries_QxD)
    return exact_search.search(queries_QxD, _told_of(blocks), k, memory)


def assist(embed: Embed) -> None:
    """On the other processes: does what process 0 does on all devices, until `dismiss`."""
    for _ in _commands(embed, _END):
        pass


def dismiss() -> None:
    """On process 0: no more is to come."""
    _tell(_END, [])


def _told_of(blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The blocks; what makes them may itself be done everywhere."""
    for block in blocks:
        _tell(_BLOCK, [], *block)
        yield block
    _tell(_BLOCKS_END, [])


def _commands(embed: Embed, end: str) -> Iterator[list[np.ndarray]]:
    """Does what is told, until `end` is. Yields the arrays of each block of documents."""
    while True:
        kind, content, arrays = _hear()
        if kind == end:
            return
        if kind == _BLOCK:
            yield arrays
        elif kind == _EMBED:
            embed(*content)
        elif kind == _SEARCH:
            # It computes each block as it gets it, and so in the order in which process 0 does.
            exact_search.search(arrays[0], (tuple(block) for block in _commands(embed, _BLOCKS_END)), *content)
        else:
            raise ValueError(f'process 0 says {kind!r}, which is not to come here')


def _tell(kind: str, content: list[Any], *arrays: np.ndarray) -> None:
    if jax.process_count() == 1:
        return
    call(next(_calls))
    head = json.dumps([kind, content, [[array.dtype.str, array.shape] for array in arrays]]).encode()
    _broadcast(np.array([len(head), *(array.nbytes for array in arrays), *[0] * (2 - len(arrays))], np.int64).tobytes(), 24)
    for part in (head, *(np.ascontiguousarray(array).tobytes() for array in arrays)):
        _broadcast(part, len(part))


def _hear() -> tuple[str, list[Any], list[np.ndarray]]:
    await_call(next(_calls))
    size, *sizes = np.frombuffer(_broadcast(b'', 24), np.int64).tolist()
    kind, content, forms = json.loads(_broadcast(b'', size))
    arrays = [np.frombuffer(_broadcast(b'', count), dtype).reshape(shape) for (dtype, shape), count in zip(forms, sizes, strict=False)]
    return kind, content, arrays


def _broadcast(given: bytes, size: int) -> bytes:
    """The bytes that process 0 gives, on every process."""
    return b''.join(_broadcast_piece(given[start : start + _MOST], min(_MOST, size - start)) for start in range(0, size, _MOST))


def _broadcast_piece(given: bytes, size: int) -> bytes:
    padded = np.zeros(max(1 << (size - 1).bit_length(), _LEAST), np.uint8)
    padded[: len(given)] = np.frombuffer(given, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded))[:size].tobytes()

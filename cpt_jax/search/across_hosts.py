"""Evaluation on several processes, one a host: process 0 leads, and the workers compute with it.

Only process 0, the leader, reads benchmarks, scores and writes. Before it computes on the devices
of all processes, it sends the workers a command, and they do the same in the same order: embed
texts, and search blocks of documents. What it computes on its own devices, such as probes, is not
sent.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cpt_jax.embed.function import Embed
from cpt_jax.runtime.multihost import await_call, call
from cpt_jax.search import exact
from cpt_jax.search.ranking import Hits

_EMBED, _SEARCH, _BLOCK, _BLOCKS_END, _END = 'embed', 'search', 'block', 'end of blocks', 'end'
# Bytes are sent in pieces, each padded to a power of two, or else each length would be a program of
# its own; a device holds a piece twice.
_LEAST, _MOST = 1 << 16, 1 << 26
_calls = count()  # of this process: as many as of any other


def embed_everywhere(embed: Embed) -> Embed:
    """Returns `embed` as a function that runs on every process; for the leader, while the workers
    are in `work_for_leader` with the same `embed`.
    """

    def everywhere(texts: Sequence[str], side: str) -> np.ndarray:
        _send(_EMBED, [list(texts), side])
        return embed(texts, side)

    return everywhere


def search_everywhere(
    queries_QxD: np.ndarray,
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    k: int,
    memory: float = 2.0,
) -> Hits:
    """Runs `exact.search_exactly` on every device of every process; for the leader, while the
    workers are in `work_for_leader`.
    """
    _send(_SEARCH, [k, memory], queries_QxD)
    return exact.search_exactly(queries_QxD, _send_blocks(blocks), k, memory)


def work_for_leader(embed: Embed) -> None:
    """Runs the leader's commands, until it calls `release_workers`."""
    for _ in _obey(embed, _END):
        pass


def release_workers() -> None:
    """Ends `work_for_leader` on all workers."""
    _send(_END, [])


def _send_blocks(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the blocks, and sends each first. Making them may itself be a command."""
    for block in blocks:
        _send(_BLOCK, [], *block)
        yield block
    _send(_BLOCKS_END, [])


def _obey(embed: Embed, end: str) -> Iterator[list[np.ndarray]]:
    """Runs commands until `end`. Yields the arrays of each block of documents."""
    while True:
        kind, content, arrays = _receive()
        if kind == end:
            return
        if kind == _BLOCK:
            yield arrays
        elif kind == _EMBED:
            embed(*content)
        elif kind == _SEARCH:
            blocks = ((block[0], block[1]) for block in _obey(embed, _BLOCKS_END))
            # It computes each block as it gets it, and so in the leader's order.
            exact.search_exactly(arrays[0], blocks, *content)
        else:
            raise ValueError(f'the leader sent {kind!r}, which is not expected here')


def _send(kind: str, content: list[Any], *arrays: np.ndarray) -> None:
    if jax.process_count() == 1:
        return
    call(next(_calls))
    head = json.dumps(
        [kind, content, [[array.dtype.str, array.shape] for array in arrays]]
    ).encode()
    _broadcast(
        np.array(
            [len(head), *(array.nbytes for array in arrays), *[0] * (2 - len(arrays))], np.int64
        ).tobytes(),
        24,
    )
    for part in (head, *(np.ascontiguousarray(array).tobytes() for array in arrays)):
        _broadcast(part, len(part))


def _receive() -> tuple[str, list[Any], list[np.ndarray]]:
    await_call(next(_calls))
    size, *sizes = np.frombuffer(_broadcast(b'', 24), np.int64).tolist()
    kind, content, forms = json.loads(_broadcast(b'', size))
    arrays = [
        np.frombuffer(_broadcast(b'', count), dtype).reshape(shape)
        for (dtype, shape), count in zip(forms, sizes, strict=False)
    ]
    return kind, content, arrays


def _broadcast(given: bytes, size: int) -> bytes:
    """The bytes that process 0 gives, on every process."""
    return b''.join(
        _broadcast_piece(given[start : start + _MOST], min(_MOST, size - start))
        for start in range(0, size, _MOST)
    )


def _broadcast_piece(given: bytes, size: int) -> bytes:
    padded = np.zeros(max(1 << (size - 1).bit_length(), _LEAST), np.uint8)
    padded[: len(given)] = np.frombuffer(given, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded))[:size].tobytes()

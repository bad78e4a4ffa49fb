"""Evaluation on several processes, one per host: process 0 leads, and the workers compute with it.

Only process 0, the leader, reads benchmarks, scores and writes. Before it computes on the devices
of all processes, it sends the workers a command, and they execute the same computations in the same
order: embedding texts, and searching blocks of documents. Computations on its own devices, such as
probes, are not sent.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cpt_jax.embed.function import Embed
from cpt_jax.runtime.multihost import announce_exchange, await_exchange
from cpt_jax.search import exact
from cpt_jax.search.ranking import Hits

_EMBED, _SEARCH, _BLOCK, _BLOCKS_END, _END = 'embed', 'search', 'block', 'end of blocks', 'end'
# Bytes are broadcast in chunks, each padded to a power of two, because every new length compiles a
# new program. The maximum bounds device memory, which holds a chunk twice.
_MIN_CHUNK, _MAX_CHUNK = 1 << 16, 1 << 26
_SIZES = 3  # numbers in the first broadcast of a message: sizes in bytes of the head and two arrays
_calls = count()  # index of the next message; equal on all processes


def embed_everywhere(embed: Embed) -> Embed:
    """Returns a version of `embed` that runs on all processes.

    Only the leader may call it, while the workers are in `work_for_leader` with the same `embed`.
    """

    def embed_on_all(texts: Sequence[str], side: str) -> np.ndarray:
        _send(_EMBED, [list(texts), side])
        return embed(texts, side)

    return embed_on_all


def search_everywhere(
    queries_QxD: np.ndarray,
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    k: int,
    memory: float = 2.0,
) -> Hits:
    """Runs `exact.search_exactly` on the devices of all processes.

    Only the leader may call it, while the workers are in `work_for_leader`.
    """
    _send(_SEARCH, [k, memory], queries_QxD)
    return exact.search_exactly(queries_QxD, _send_blocks(blocks), k, memory)


def work_for_leader(embed: Embed) -> None:
    """Executes the leader's commands until it calls `release_workers`."""
    for _ in _execute_commands(embed, _END):
        pass


def release_workers() -> None:
    """Ends `work_for_leader` on all workers."""
    _send(_END, [])


def _send_blocks(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Sends and yields each block. Computing a block may itself send a command."""
    for block in blocks:
        _send(_BLOCK, [], *block)
        yield block
    _send(_BLOCKS_END, [])


def _execute_commands(embed: Embed, end: str) -> Iterator[list[np.ndarray]]:
    """Executes commands until the command `end`; yields the arrays of each block of documents."""
    while True:
        kind, content, arrays = _receive()
        if kind == end:
            return
        if kind == _BLOCK:
            yield arrays
        elif kind == _EMBED:
            embed(*content)
        elif kind == _SEARCH:
            blocks = ((block[0], block[1]) for block in _execute_commands(embed, _BLOCKS_END))
            # The search requests one block at a time, so the commands run in the leader's order.
            exact.search_exactly(arrays[0], blocks, *content)
        else:
            raise ValueError(f'the leader sent {kind!r}, which is not expected here')


def _send(kind: str, content: list[Any], *arrays: np.ndarray) -> None:
    """Sends a command to all workers.

    A message is three broadcasts: the byte sizes, a JSON head, and the arrays.

    Args:
      kind: kind of the command.
      content: JSON arguments.
      *arrays: at most two arrays.
    """
    if jax.process_count() == 1:
        return
    announce_exchange(next(_calls))
    shapes = [[array.dtype.str, array.shape] for array in arrays]
    head = json.dumps([kind, content, shapes]).encode()
    sizes = np.zeros(_SIZES, np.int64)
    sizes[: 1 + len(arrays)] = [len(head), *(array.nbytes for array in arrays)]
    _broadcast(sizes.tobytes(), sizes.nbytes)
    _broadcast(head, len(head))
    for array in arrays:
        _broadcast(np.ascontiguousarray(array).tobytes(), array.nbytes)


def _receive() -> tuple[str, list[Any], list[np.ndarray]]:
    """Receives a command from the leader: its kind, JSON arguments and arrays."""
    await_exchange(next(_calls))
    sizes_bytes = _broadcast(b'', _SIZES * np.dtype(np.int64).itemsize)
    head_size, *sizes = np.frombuffer(sizes_bytes, np.int64).tolist()
    kind, content, shapes = json.loads(_broadcast(b'', head_size))
    arrays = [
        np.frombuffer(_broadcast(b'', size), dtype).reshape(shape)
        for (dtype, shape), size in zip(shapes, sizes, strict=False)
    ]
    return kind, content, arrays


def _broadcast(given: bytes, size: int) -> bytes:
    """Returns the bytes of process 0 on every process.

    Args:
      given: the bytes on process 0; b'' on the others.
      size: number of bytes, known to all processes.
    """
    return b''.join(
        _broadcast_chunk(given[start : start + _MAX_CHUNK], min(_MAX_CHUNK, size - start))
        for start in range(0, size, _MAX_CHUNK)
    )


def _broadcast_chunk(given: bytes, size: int) -> bytes:
    padded = np.zeros(max(1 << (size - 1).bit_length(), _MIN_CHUNK), np.uint8)
    padded[: len(given)] = np.frombuffer(given, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded))[:size].tobytes()

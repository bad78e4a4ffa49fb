"""Exact search by Hamming distance: the documents whose vectors differ in the fewest signs."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

# Signs are compared 16 at a time: XLA counts the bits of 16-bit words four times as fast as those
# of 32-bit words on a CPU with AVX-512 (1.0 and 3.9 ms per query and million documents of dimension
# 384; the sum of 8-bit words overflows).
_WORD = np.dtype(np.uint16)
# Documents per tile, which stays in the caches of a core; tiles per block, one computation.
_TILE, _TILES = 8_192, 16
_QUERIES_AT_ONCE = 64
# Distance and row of a hit form one key, which sorts by distance and then by row.
_ROW_BITS = np.uint64(32)


class HammingIndex:
    """The signs of all documents, arranged for comparison: word w of all documents of a tile lies
    together, so that one instruction compares many documents.

    Attributes:
      documents: number of documents.
    """

    def __init__(self, bits_NxB: np.ndarray):
        """Arranges the documents.

        Args:
          bits_NxB: uint8, signs as bits, from `vector_codes.pack_signs`.
        """
        self.documents = len(bits_NxB)
        self._blocks = [*_arrange_blocks(bits_NxB)]

    def search(self, queries_QxB: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k nearest documents of each query.

        Args:
          queries_QxB: uint8, signs of the queries as bits.
          k: number of documents per query, at most that of all documents.

        Returns:
          Distances int64 [Q, k], nearest first, and rows int64 [Q, k] of the documents. Of equal
          distances, the lower row is first.
        """
        found = [np.zeros((0, k), np.uint64)]
        for start in range(0, len(queries_QxB), _QUERIES_AT_ONCE):
            tile_QxB = queries_QxB[start : start + _QUERIES_AT_ONCE]
            # All tiles have the same number of queries, so that one program is compiled.
            padding = min(_QUERIES_AT_ONCE, len(queries_QxB)) - len(tile_QxB)
            words_QxW = jnp.asarray(_to_words(np.pad(tile_QxB, ((0, padding), (0, 0)))))
            found.append(self._search_tile(words_QxW, len(tile_QxB), k))
        keys_Qxk = np.concatenate(found)
        rows_Qxk = keys_Qxk & np.uint64((1 << 32) - 1)
        return (keys_Qxk >> _ROW_BITS).astype(np.int64), rows_Qxk.astype(np.int64)

    def _search_tile(self, words_QxW: jax.Array, queries: int, k: int) -> np.ndarray:
        """Returns the sorted keys uint64 [Q, k] of the first `queries` queries."""
        best = [np.zeros(0, np.uint64)] * queries
        # Distance of the k-th best document so far.
        limits_Q = np.full(queries, np.iinfo(_WORD).max, np.int64)
        # The next block is computed while hits are selected in this one.
        computed = _compute_distances(words_QxW, self._blocks[0]) if self._blocks else None
        for number in range(len(self._blocks)):
            distances_TxQxC = np.asarray(computed)
            if number + 1 < len(self._blocks):
                computed = _compute_distances(words_QxW, self._blocks[number + 1])
            first = number * _TILE * _TILES
            count = min(_TILE * _TILES, self.documents - first)
            for query in range(queries):
                distances_TxC = distances_TxQxC[:, query]
                best[query] = _merge_hits(
                    best[query], distances_TxC, first, count, limits_Q[query], k
                )
                if len(best[query]) == k:
                    limits_Q[query] = best[query].max() >> _ROW_BITS
        return np.sort(np.stack(best), axis=1) if best else np.zeros((0, k), np.uint64)


def _merge_hits(
    best: np.ndarray, distances_TxC: np.ndarray, first: int, count: int, limit: int, k: int
) -> np.ndarray:
    """Returns the keys of the k nearest documents of those found so far and of a block.

    Args:
      best: keys of the nearest documents so far.
      distances_TxC: uint16, distances of the documents of the block, tile by tile.
      first: row of the first document of the block.
      count: number of documents in the block; the rest is padding.
      limit: distance above which a document is none of the k nearest.
      k: number of documents to keep.
    """
    if len(best) < k < count:
        limit = min(limit, np.partition(distances_TxC.reshape(-1)[:count], k - 1)[k - 1])
    # Only the comparison reads the whole block.
    rows = np.flatnonzero(distances_TxC <= _WORD.type(limit))
    rows = rows[: np.searchsorted(rows, count)]
    distances = distances_TxC[rows // _TILE, rows % _TILE]
    keys = (distances.astype(np.uint64) << _ROW_BITS) | (rows + first).astype(np.uint64)
    keys = np.concatenate([best, keys])
    return np.partition(keys, k - 1)[:k] if len(keys) > k else keys


def _arrange_blocks(bits_NxB: np.ndarray) -> Iterator[jax.Array]:
    """Yields blocks of documents, uint16 [T, W, C]; the last one is padded with zeros."""
    size = _TILE * _TILES
    for start in range(0, len(bits_NxB), size):
        words_NxW = _to_words(bits_NxB[start : start + size])
        words_NxW = np.pad(words_NxW, ((0, -len(words_NxW) % size), (0, 0)))
        tiles_TxCxW = words_NxW.reshape(_TILES, _TILE, -1)
        yield jnp.asarray(np.ascontiguousarray(tiles_TxCxW.transpose(0, 2, 1)))


def _to_words(bits_NxB: np.ndarray) -> np.ndarray:
    """Returns the bits as 16-bit words; an odd number of bytes is padded with zeros."""
    padded_NxB = np.pad(bits_NxB, ((0, 0), (0, bits_NxB.shape[1] % _WORD.itemsize)))
    return np.ascontiguousarray(padded_NxB).view(_WORD)


@jax.jit
def _compute_distances(queries_QxW: jax.Array, tiles_TxWxC: jax.Array) -> jax.Array:
    """Returns the Hamming distances, uint16 [T, Q, C]."""

    def compare(tile_WxC: jax.Array) -> jax.Array:
        distances_QxC = jnp.zeros((len(queries_QxW), tile_WxC.shape[1]), _WORD)
        # One fused loop over the documents; a reduction over an axis of words would not be
        # vectorized.
        for word in range(len(tile_WxC)):
            differing_QxC = queries_QxW[:, word, None] ^ tile_WxC[word][None]
            distances_QxC += jax.lax.population_count(differing_QxC)
        return distances_QxC

    return jax.lax.map(compare, tiles_TxWxC)

import numpy as np
import pytest

from cpt_jax.search import hamming
from cpt_jax.search.hamming import HammingIndex


@pytest.mark.parametrize(('width', 'k'), [(3, 50), (4, 7)])
def test_nearest_documents_are_found_in_any_blocks(monkeypatch, width, k):
    monkeypatch.setattr(hamming, '_TILE', 8)
    monkeypatch.setattr(hamming, '_TILES', 2)
    monkeypatch.setattr(hamming, '_QUERIES_AT_ONCE', 4)
    rng = np.random.default_rng(0)
    # 50 documents in 4 blocks, 6 queries in 2 tiles; few bits, so that distances are often equal.
    bits_NxB = rng.integers(0, 4, (50, width)).astype(np.uint8)
    queries_QxB = rng.integers(0, 4, (6, width)).astype(np.uint8)
    distances_Qxk, rows_Qxk = HammingIndex(bits_NxB).search(queries_QxB, k)
    for query_B, distances_k, rows_k in zip(queries_QxB, distances_Qxk, rows_Qxk, strict=True):
        reference_N = np.bitwise_count(bits_NxB ^ query_B).sum(axis=1)
        order_N = np.argsort(reference_N, kind='stable')[:k]
        np.testing.assert_array_equal(rows_k, order_N)
        np.testing.assert_array_equal(distances_k, reference_N[order_N])

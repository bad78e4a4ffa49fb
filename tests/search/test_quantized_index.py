import numpy as np
import pytest

from cpt_jax.runtime.errors import UserError
from cpt_jax.search.exact import search_exactly
from cpt_jax.search.quantized_index import BinaryIndex, Int8Index
from cpt_jax.search.searcher import Searcher
from cpt_jax.storage.vector_codes import compute_ranges, dequantize, quantize

RNG = np.random.default_rng(0)
DOCUMENTS_NxD = RNG.standard_normal((60, 20)).astype(np.float32)
QUERIES_QxD = RNG.standard_normal((5, 20)).astype(np.float32)
POSITIONS_N = RNG.permutation(60)
BLOCKS = [(POSITIONS_N[:40], DOCUMENTS_NxD[:40]), (POSITIONS_N[40:], DOCUMENTS_NxD[40:])]


def find_best(scores_QxN: np.ndarray, k: int) -> np.ndarray:
    """Returns the positions of the best documents."""
    return POSITIONS_N[np.argsort(-scores_QxN, axis=1)[:, :k]]


def test_int8_documents_are_compared_with_float_queries():
    index = Int8Index(search_exactly)
    assert [*index.add_blocks(BLOCKS)] == BLOCKS  # yields the same blocks
    found = index.search(QUERIES_QxD, 6)
    ranges_2xD = compute_ranges(DOCUMENTS_NxD[:40])
    decoded_NxD = dequantize(quantize(DOCUMENTS_NxD, 'int8', ranges_2xD), ranges_2xD)
    np.testing.assert_array_equal(found.documents_Qxk, find_best(QUERIES_QxD @ decoded_NxD.T, 6))
    assert index.settings == {'calibration': 'minimum and maximum over the first 40 documents'}


@pytest.mark.parametrize('rescore', [0, 2])
def test_binary_documents_are_rescored_by_float_queries(rescore):
    index = BinaryIndex(rescore)
    assert len([*index.add_blocks(BLOCKS)]) == 2
    found = index.search(QUERIES_QxD, 6)
    distances_QxN = ((QUERIES_QxD > 0)[:, None] != (DOCUMENTS_NxD > 0)).sum(axis=2)
    # Of equal distances, the smaller position is first.
    keys_QxN = distances_QxN + POSITIONS_N / 1000
    if rescore:
        # Of the 12 nearest documents, those with the largest products.
        products_QxN = QUERIES_QxD @ (DOCUMENTS_NxD > 0).astype(np.float32).T
        is_near_QxN = keys_QxN <= np.sort(keys_QxN, axis=1)[:, 11:12]
        keys_QxN = np.where(is_near_QxN, -products_QxN, np.inf)
    np.testing.assert_array_equal(found.documents_Qxk, find_best(-keys_QxN, 6))


def test_empty_collection_has_no_hits():
    index = BinaryIndex()
    assert [*index.add_blocks([])] == []
    assert index.search(QUERIES_QxD, 6).documents_Qxk.shape == (5, 0)


def test_an_index_of_float_vectors_is_refused(monkeypatch):
    monkeypatch.setattr('cpt_jax.search.faiss_index.find_spec', lambda name: name)
    with pytest.raises(UserError, match='--precision int8: the index hnsw holds float32 vectors'):
        Searcher('hnsw', precision='int8')

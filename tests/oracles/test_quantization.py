"""Codes and search results of sentence-transformers' quantization."""

import numpy as np
import pytest
from sentence_transformers.util.quantization import quantize_embeddings, semantic_search_faiss

from cpt_jax.search.quantized_index import BinaryIndex
from cpt_jax.storage.vector_codes import compute_ranges, dequantize, pack_signs, quantize


def make_vectors(count: int, width: int, seed: int = 0) -> np.ndarray:
    vectors_NxD = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    vectors_NxD /= np.linalg.norm(vectors_NxD, axis=1, keepdims=True)
    vectors_NxD[:, 3] = 0.25  # a dimension without a range
    vectors_NxD[-1] = 0  # no sign
    return vectors_NxD


@pytest.mark.parametrize('width', [384, 13])
def test_codes_are_equal_bit_for_bit(width):
    vectors_NxD = make_vectors(1000, width)
    for sample_NxD in (vectors_NxD, vectors_NxD[:100]):  # with values outside the ranges
        ours = quantize(vectors_NxD, 'int8', compute_ranges(sample_NxD))
        theirs = quantize_embeddings(vectors_NxD, 'int8', calibration_embeddings=sample_NxD)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    ours = quantize(vectors_NxD, 'binary')
    theirs = quantize_embeddings(vectors_NxD, 'binary')
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(
        pack_signs(vectors_NxD), quantize_embeddings(vectors_NxD, 'ubinary')
    )


def test_decoded_codes_score_as_theirs():
    documents_NxD, queries_QxD = make_vectors(100, 384), make_vectors(3, 384, seed=1)[:2]
    ranges_2xD = compute_ranges(documents_NxD)
    found, _ = semantic_search_faiss(
        queries_QxD,
        corpus_embeddings=quantize_embeddings(documents_NxD, 'uint8', ranges=ranges_2xD),
        corpus_precision='uint8',
        ranges=ranges_2xD,
        top_k=100,
    )
    decoded_NxD = dequantize(quantize(documents_NxD, 'int8', ranges_2xD), ranges_2xD)
    scores_QxN = queries_QxD @ decoded_NxD.T
    for row, scores_N in zip(found, scores_QxN, strict=True):
        theirs = np.array([hit['score'] for hit in sorted(row, key=lambda hit: hit['corpus_id'])])
        np.testing.assert_allclose(scores_N, theirs, atol=1e-6)


def test_rescored_results_are_equal():
    documents_NxD, queries_QxD = make_vectors(20_000, 384), make_vectors(51, 384, seed=1)[:50]
    theirs, _ = semantic_search_faiss(
        queries_QxD,
        corpus_embeddings=pack_signs(documents_NxD),
        corpus_precision='ubinary',
        top_k=10,
        rescore_multiplier=4,
    )
    index = BinaryIndex(rescore=4)
    assert len([*index.add_blocks([(np.arange(20_000), documents_NxD)])]) == 1
    ours = index.search(queries_QxD, 10)
    same = [
        np.isin([hit['corpus_id'] for hit in row], documents_k).mean()
        for row, documents_k in zip(theirs, ours.documents_Qxk, strict=True)
    ]
    # Documents at the distance of the last candidate are a tie, which FAISS breaks by their order.
    assert np.mean(same) > 0.99
    scores_Q = np.array([row[0]['score'] for row in theirs])
    np.testing.assert_allclose(ours.scores_Qxk[:, 0], scores_Q, atol=1e-5)

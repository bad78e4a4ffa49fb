"""Exact search equals numpy's sort: with ties, padding, and any blocks, memory and devices."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from cpt_jax.search.exact import search_exactly

QUERIES, DOCUMENTS, WIDTH, K = 1_027, 700, 16, 20  # two tiles of queries, the last one padded


def blocks(positions, documents, size):
    return (
        (positions[start : start + size], documents[start : start + size])
        for start in range(0, len(documents), size)
    )


@pytest.fixture(scope='module')
def vectors():
    """Random queries and documents, some equal and some zero, and positions in random order."""
    rng = np.random.default_rng(0)
    queries, documents = (
        rng.standard_normal((count, WIDTH)).astype(np.float32) for count in (QUERIES, DOCUMENTS)
    )
    documents[100:160] = documents[7]
    documents[200:230] = -0.0
    return queries, documents, rng.permutation(DOCUMENTS)


@pytest.fixture(scope='module')
def on_all_devices(vectors):
    queries, documents, positions = vectors
    return search_exactly(queries, blocks(positions, documents, 300), K)


def test_ranking_on_eight_devices_equals_numpy_sort(vectors, on_all_devices):
    queries, documents, positions = vectors
    scores = queries @ documents[np.argsort(positions)].T
    scores[:, np.sort(positions[200:230])] = 0
    found = np.take_along_axis(scores, on_all_devices.documents_Qxk, axis=1)
    np.testing.assert_allclose(
        on_all_devices.scores_Qxk, -np.sort(-scores, axis=1)[:, :K], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(on_all_devices.scores_Qxk, found, rtol=1e-5, atol=1e-6)
    equal = np.diff(on_all_devices.scores_Qxk, axis=1) == 0
    assert equal.sum() > 100 and (np.diff(on_all_devices.documents_Qxk, axis=1)[equal] > 0).all()


@pytest.mark.parametrize(
    ('devices', 'memory', 'size'), [(1, 2.0, 700), (1, 1e-6, 300), (3, 2.0, 250)]
)
def test_devices_memory_and_blocks_do_not_change_results_bitwise(
    vectors, on_all_devices, devices, memory, size
):
    queries, documents, positions = vectors
    hits = search_exactly(
        queries, blocks(positions, documents, size), K, memory, jax.devices()[:devices]
    )
    assert np.array_equal(hits.documents_Qxk, on_all_devices.documents_Qxk)
    assert np.array_equal(hits.scores_Qxk, on_all_devices.scores_Qxk)


@pytest.mark.parametrize('k', [1, 50])
def test_ties_are_broken_by_position_and_padding_is_never_found(k):
    """Of equal scores at the cut, the smaller position is kept; +0 and -0 are equal."""
    documents = np.array([[0, 1], [1, 0], [0, -1], [1, 1], [-1, 1], [1, 5], [-2, 3]], np.float32)
    hits = search_exactly(
        np.array([[1, 0]], np.float32), [(np.array([6, 5, 4, 3, 2, 1, 0]), documents)], k
    )
    assert hits.documents_Qxk.tolist() == [[1, 3, 5, 4, 6, 2, 0][:k]]
    assert hits.scores_Qxk.tolist() == [[1, 1, 1, 0, 0, -1, -2][:k]]


def test_equal_vectors_are_ranked_by_position():
    hits = search_exactly(
        np.ones((3, 7), np.float32),
        blocks(np.arange(999)[::-1], np.full((999, 7), 0.3, np.float32), 97),
        11,
    )
    assert hits.documents_Qxk.tolist() == [list(range(11))] * 3


def test_memory_does_not_grow_with_the_documents():
    """300,000 documents have 146 MiB, and blocks may use 64 MiB.

    The search before the measurement compiles the program and allocates the blocks.
    """
    code = """
import resource, sys
import numpy as np
from cpt_jax.search.exact import search_exactly
rng = np.random.default_rng(0)
def blocks(count):
    for start in range(0, count, 4096):
        drawn = rng.standard_normal((64, 128), np.float32)
        block = np.broadcast_to(drawn, (64, 64, 128)).reshape(-1, 128)
        yield np.arange(start, start + 4096), block
queries = rng.standard_normal((100, 128), np.float32)
search_exactly(queries, blocks(2 * 4096), 10, 1 / 16)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
search_exactly(queries, blocks(300_000), 10, 1 / 16)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    environment = {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, '-c', code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 64

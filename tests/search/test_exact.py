"""Exact search against numpy's sort: ties, padding, any blocks, memory and devices."""

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
    """Random ones, among them equal documents and vectors of zeros, and the documents' positions in
    any order.
    """
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


def test_eight_devices_rank_as_numpy_sorts(vectors, on_all_devices):
    queries, documents, positions = vectors
    scores = queries @ documents[np.argsort(positions)].T
    scores[:, np.sort(positions[200:230])] = 0
    found = np.take_along_axis(scores, on_all_devices.documents_QxK, axis=1)
    np.testing.assert_allclose(
        on_all_devices.scores_QxK, -np.sort(-scores, axis=1)[:, :K], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(on_all_devices.scores_QxK, found, rtol=1e-5, atol=1e-6)
    equal = np.diff(on_all_devices.scores_QxK, axis=1) == 0
    assert equal.sum() > 100 and (np.diff(on_all_devices.documents_QxK, axis=1)[equal] > 0).all()


@pytest.mark.parametrize(
    ('devices', 'memory', 'size'), [(1, 2.0, 700), (1, 1e-6, 300), (3, 2.0, 250)]
)
def test_devices_memory_and_blocks_change_no_bit(vectors, on_all_devices, devices, memory, size):
    queries, documents, positions = vectors
    hits = search_exactly(
        queries, blocks(positions, documents, size), K, memory, jax.devices()[:devices]
    )
    assert np.array_equal(hits.documents_QxK, on_all_devices.documents_QxK)
    assert np.array_equal(hits.scores_QxK, on_all_devices.scores_QxK)


@pytest.mark.parametrize('k', [1, 50])
def test_one_query_few_documents(k):
    """Ties at the cut: of equal whole numbers the smaller position is kept, +0 and -0 are equal,
    and padding is never found.
    """
    documents = np.array([[0, 1], [1, 0], [0, -1], [1, 1], [-1, 1], [1, 5], [-2, 3]], np.float32)
    hits = search_exactly(
        np.array([[1, 0]], np.float32), [(np.array([6, 5, 4, 3, 2, 1, 0]), documents)], k
    )
    assert hits.documents_QxK.tolist() == [[1, 3, 5, 4, 6, 2, 0][:k]]
    assert hits.scores_QxK.tolist() == [[1, 1, 1, 0, 0, -1, -2][:k]]


def test_one_vector_for_all_goes_by_position():
    hits = search_exactly(
        np.ones((3, 7), np.float32),
        blocks(np.arange(999)[::-1], np.full((999, 7), 0.3, np.float32), 97),
        11,
    )
    assert hits.documents_QxK.tolist() == [list(range(11))] * 3


def test_memory_does_not_grow_with_the_documents():
    """300,000 documents are 146 MiB; blocks may take 64, and a little stays for what a first larger
    search compiles and allocates.
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

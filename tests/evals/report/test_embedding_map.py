import sys
import types

import numpy as np
import pytest
from etils import epath

from cpt_jax.benchmark_data.senteval import SentEvalSet
from cpt_jax.evals.report.embedding_map import (
    compute_principal_components,
    draw_map,
    draw_task_map,
    map_to_json,
)
from tests.evals.senteval_files import write_all

RNG = np.random.default_rng(0)


@pytest.mark.parametrize('shape', [(40, 5), (7, 30), (2, 3), (1, 4), (9, 1)])
def test_principal_components_match_svd(shape):
    x = RNG.normal(size=shape) @ np.diag(np.arange(1, shape[1] + 1))
    xy, explained = compute_principal_components(x)
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    expected = np.zeros((shape[0], 2))
    expected[:, : min(2, len(s))] = (u * s)[:, :2]
    np.testing.assert_allclose(np.abs(xy), np.abs(expected), atol=1e-6)
    assert explained[0] == pytest.approx((s**2 / max((s**2).sum(), 1e-300))[0], abs=1e-9)
    assert all(column[np.abs(column).argmax()] >= 0 for column in xy.T)


def test_equal_vectors_map_to_one_point():
    xy, explained = compute_principal_components(np.full((30, 8), 0.1) / 3)
    assert not xy.any() and not explained.any()
    drawn = draw_map(
        'x', np.full((3, 8), 0.1, np.float32), np.array([0, 1, 0]), 'ab', ['s', 't', 'u']
    )
    assert drawn.planes[0].x == drawn.planes[0].y == [0, 0, 0]


def test_map_is_a_reproducible_random_sample():
    vectors, labels = RNG.normal(size=(50, 6)).astype(np.float32), np.arange(50) % 3
    texts = [f'{i} ' + 'long ' * i for i in range(50)]
    drawn = draw_map('set', vectors, labels, ('a', 'b', 'c'), texts, points=20)
    assert drawn == draw_map('set', vectors.copy(), labels, ('a', 'b', 'c'), texts, points=20)
    chosen = [int(text.split()[0]) for text in drawn.texts]
    assert len(set(chosen)) == 20 and drawn.of == 50 and chosen != sorted(chosen)
    assert drawn.labels == [i % 3 for i in chosen] and drawn.classes == ['a', 'b', 'c']
    assert max(map(len, drawn.texts)) == 120
    assert all(
        texts[i].startswith(text.rstrip('…')) for i, text in zip(chosen, drawn.texts, strict=True)
    )
    (plane,) = drawn.planes
    xy, explained = compute_principal_components(vectors[chosen].astype(np.float64))
    assert plane.explained == np.round(explained, 4).tolist()
    assert 0 < plane.explained[1] < plane.explained[0] < 1
    assert max(plane.x + plane.y) == 1000 and min(plane.x + plane.y) == 0
    assert np.corrcoef(plane.x, xy[:, 0])[0, 1] > 0.9999
    assert np.corrcoef(plane.y, xy[:, 1])[0, 1] < -0.9999  # y points downwards in SVG


def test_umap_is_drawn_if_installed(monkeypatch, capsys):
    class UMAP:
        def __init__(self, random_state):
            assert random_state == 0

        def fit_transform(self, x):
            return x[:, 2:4]

    module = types.ModuleType('umap.umap_')
    module.UMAP = UMAP
    monkeypatch.setitem(sys.modules, 'umap', types.ModuleType('umap'))
    sys.modules['umap'].__spec__ = object()
    monkeypatch.setitem(sys.modules, 'umap.umap_', module)
    vectors = RNG.normal(size=(20, 6)).astype(np.float32)
    pca, umap = draw_map('set', vectors, np.zeros(20, int), ['a'], ['t'] * 20).planes
    order = np.random.default_rng(0).permutation(20)
    assert (pca.method, umap.method, umap.explained) == ('PCA', 'UMAP', [])
    assert np.corrcoef(umap.x, vectors[order, 2])[0, 1] > 0.9999
    monkeypatch.setitem(sys.modules, 'umap.umap_', None)  # installed, but the import fails
    assert [
        plane.method
        for plane in draw_map('set', vectors, np.zeros(20, int), ['a'], ['t'] * 20).planes
    ] == ['PCA']
    assert 'no UMAP in the report' in capsys.readouterr().out


def test_task_maps_have_the_test_set_or_all_texts(tmp_path):
    write_all(tmp_path)
    calls = []

    def embed(texts, side):
        calls.append(len(texts))
        return np.array(
            [[text.count(letter) for letter in 'aeioudw'] for text in texts], np.float32
        )

    def drawn(name):
        return draw_task_map(SentEvalSet(name, epath.Path(tmp_path) / 'senteval'), embed)

    assert drawn('MRPC') is None
    sst, trec, subj = drawn('SST2'), drawn('TREC'), drawn('SUBJ')
    assert (sst.name, sst.of, sst.classes) == ('SST2, test', 80, ['negative', 'positive'])
    assert (trec.name, trec.of, len(trec.classes)) == ('TREC, test', 60, 6)
    assert (subj.name, subj.of, subj.classes) == ('SUBJ, all', 120, ['subjective', 'objective'])
    good = [text.split()[0] in ('good', 'fine', 'rich', 'warm') for text in subj.texts]
    # Label 1 is 'objective', whose file has the words of class 1.
    assert np.mean(np.array(good) == np.array(subj.labels)) > 0.5
    json = map_to_json(sst)
    assert json['SST2, test']['planes'][0]['method'] == 'PCA' and map_to_json(None) == {}

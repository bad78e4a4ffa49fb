"""The embedding cache: nothing is computed twice, reused for other inputs, or left on disk."""

import numpy as np
import pytest

from cpt_jax.embed.function import embed_texts
from cpt_jax.evals.store.embedding_cache import EmbeddingCache
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.cache import read_arrays

TEXTS = [f'text {i}' for i in range(10)]


class Model:
    """A model with distinct vectors for each text and side. It records the texts, and is killed
    after `killed_after` texts.
    """

    def __init__(self, seed: int = 0, killed_after: int = 10**9):
        self.seed, self.killed_after, self.asked = seed, killed_after, []

    def __call__(self, texts, side):
        if len(self.asked) + len(texts) > self.killed_after:
            raise KeyboardInterrupt
        self.asked += texts
        seeds = [[self.seed, ord(side), *text.encode()] for text in texts]
        return np.array(
            [np.random.default_rng(seed).normal(size=4) for seed in seeds], np.float32
        ).reshape(-1, 4)


def ask(
    folder,
    model: Model,
    texts=TEXTS,
    side='x',
    task='sts/a',
    name='run@1',
    settings=None,
    shard=3,
    keep=False,
) -> np.ndarray:
    kept = EmbeddingCache(folder, shard, keep).wrap(model, name, settings or {'step': 1})
    with kept.keep_during(task):
        return kept(texts, side)


def files(folder) -> list:
    return [path for path in folder.rglob('*') if path.is_file()]


@pytest.fixture
def killed(tmp_path):
    """The cache folder of a program that was killed after two of four shards."""
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path / 'vectors', Model(killed_after=7))
    assert len(files(tmp_path / 'vectors')) == 2
    return tmp_path / 'vectors'


def test_resumed_task_computes_missing_shards_and_removes_the_cache(killed, capsys):
    model = Model()
    np.testing.assert_array_equal(ask(killed, model), Model()(TEXTS, 'x'))
    assert model.asked == TEXTS[6:]
    assert '6 of 10 embeddings were read from the cache' in capsys.readouterr().out
    assert not killed.exists()


@pytest.mark.parametrize(
    'other',
    [
        {'side': 'y'},
        {'task': 'sts/b'},
        {'name': 'run@2'},
        {'settings': {'step': 2}},
        {'texts': TEXTS[1:]},
    ],
    ids=lambda other: next(iter(other)),
)
def test_embeddings_of_other_inputs_are_not_reused(killed, other):
    model = Model(seed=1)
    found = ask(killed, model, **other)
    np.testing.assert_array_equal(
        found, Model(seed=1)(other.get('texts', TEXTS), other.get('side', 'x'))
    )
    assert model.asked == other.get('texts', TEXTS)


def test_truncated_files_are_recomputed(killed):
    for cut, path in zip((0, 100), files(killed), strict=True):
        path.write_bytes(path.read_bytes()[:cut])
    model = Model()
    np.testing.assert_array_equal(ask(killed, model), Model()(TEXTS, 'x'))
    assert len(model.asked) == 10


def test_flipped_bits_are_noticed(killed, caplog):
    """Every seventh bit of a file, headers included."""
    path = files(killed)[0]
    content = path.read_bytes()
    expected = read_arrays(path)['arr_0']
    noticed = 0
    for position in range(0, 8 * len(content), 7):
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        found = read_arrays(path)
        noticed += found is None
        assert found is None or 'arr_0' not in found or np.array_equal(found['arr_0'], expected)
    assert noticed > 8 * expected.nbytes // 7


def test_cache_is_kept_on_request_and_read_by_shard(tmp_path):
    model = Model()
    kept = EmbeddingCache(tmp_path, 4, keep=True).wrap(model, 'run/a', {})
    with kept.keep_during('retrieval/a'):
        np.testing.assert_array_equal(
            np.concatenate([*kept.embed_shards(TEXTS, 'y')]), Model()(TEXTS, 'y')
        )
        assert [len(block_NxD) for block_NxD in kept.embed_shards(TEXTS, 'y')] == [4, 4, 2]
        assert kept([], 'y').shape == (0, 4)
    assert len(model.asked) == 10 and len(files(tmp_path)) == 3


def test_nonfinite_embeddings_are_reported_and_not_cached(tmp_path):
    def broken(texts, side):
        return np.full((len(texts), 4), np.nan, np.float32)

    kept = EmbeddingCache(tmp_path, 4).wrap(broken, 'run', {})
    for _ in range(2):
        with (
            pytest.raises(UserError, match=r'not finite \(10 of 10 texts\)'),
            kept.keep_during('sts/a'),
        ):
            embed_texts(kept, TEXTS, 'x')
    assert not files(tmp_path)


def test_evaluation_continues_without_a_writable_cache(tmp_path, caplog):
    (tmp_path / 'file').touch()
    model = Model()
    np.testing.assert_array_equal(ask(tmp_path / 'file' / 'vectors', model), Model()(TEXTS, 'x'))
    assert len(model.asked) == 10 and caplog.text.count('embeddings cannot be cached') == 1
    np.testing.assert_array_equal(ask(None, Model()), Model()(TEXTS, 'x'))

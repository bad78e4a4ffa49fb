"""Vectors of a guide or teacher, looked up by text."""

from pathlib import Path

import numpy as np
import pytest

from cpt_jax.data import text_vectors
from cpt_jax.data.pairs import Pair, compute_text_key
from cpt_jax.data.target_reader import TargetReader, Wanted
from cpt_jax.data.text_vectors import NO_VECTOR, TextVectors
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.vector_shards import VectorWriter, read_vectors
from cpt_jax.storage.vectors_meta import VectorsMeta


def write_vectors(
    directory: Path, texts, side='y', model='guide@1', shard_size=3, width=4, **settings
):
    """Writes vectors as launch/embed.py does; returns float32[N, D]."""
    random = np.random.default_rng(len(texts))
    vectors = random.normal(size=(len(texts), 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    meta = VectorsMeta(
        model, settings, side, 'texts', ' '.join(texts), len(texts), width, shard_size
    )
    writer = VectorWriter(directory, meta)
    writer.add([str(i) for i in range(len(texts))], vectors)
    writer.write_text_keys(map(compute_text_key, texts))
    return vectors


@pytest.fixture
def folder(tmp_path):
    queries = write_vectors(tmp_path / 'x', ['a query', 'both'], side='x')
    others = write_vectors(tmp_path / 'y', ['one', ' two\n', 'three', 'both', 'two'])
    return tmp_path, queries, others


def test_vectors_are_found_by_text_and_side(folder):
    path, queries, others = folder
    vectors = TextVectors('loss.guide', f'{path}/y, {path}/x')
    assert vectors.width == 4
    rows = np.array(
        [
            [vectors.find('a query', 'x'), vectors.find('both', 'x'), NO_VECTOR],
            [vectors.find('both', 'y'), vectors.find('three ', 'y'), vectors.find('one', 'x')],
        ]
    )
    expected = [[*queries, np.zeros(4)], [others[3], others[2], others[0]]]
    np.testing.assert_array_equal(vectors[rows], np.array(expected, np.float32))
    np.testing.assert_array_equal(vectors[np.array([vectors.find('two', 'y')])][0], others[1])
    assert vectors.find('four', 'y') == NO_VECTOR
    other_order = TextVectors('loss.guide', f'{path}/x,{path}/y')
    assert other_order.fingerprint == vectors.fingerprint
    assert TextVectors('loss.guide', f'{path}/x').fingerprint != vectors.fingerprint


def test_reader_finds_the_vectors_of_a_pair_without_its_prompts(folder):
    path, queries, others = folder
    guide = TextVectors('loss.guide', f'{path}/y,{path}/x')
    reader = TargetReader(4, [Wanted('pairs', guide=True)], guide)
    pair = Pair('ask: a query', 'say: one', ('say: three', 'say: two', 'unread'), 'f:1')
    found = [reader.find(0, pair._replace(prompts=('ask: ', 'say: ')))]
    found.append(reader.find(0, Pair('both', 'both')))
    guide, scores, teacher = reader.collect(found)
    assert scores is None and teacher is None
    absent = np.zeros(4)
    np.testing.assert_array_equal(guide[0], [queries[0], others[0], others[2], others[1]])
    np.testing.assert_array_equal(guide[1], np.float32([queries[1], others[3], absent, absent]))
    with pytest.raises(UserError, match="data.sources.pairs: pair f:2: its y 'four' has no vector"):
        reader.find(0, Pair('both', 'four', (), 'f:2'))


def test_unusable_directories_are_refused(folder):
    path, *_ = folder
    write_vectors(path / 'other', ['one'], model='other@1')
    write_vectors(path / 'old', ['a'], weights='1', max_tokens_x=3)
    write_vectors(path / 'new', ['b'], weights='2', max_tokens_x=4)
    TextVectors('loss.guide', f'{path}/x,{path}/new')  # an earlier version wrote the first
    for directories, expected in [
        (f'{path}/old,{path}/new', r'different models named guide@1 \(weights: 1 and 2\): embed'),
        (f'{path}/x,{path}/other', 'loss.guide=.*are vectors of different models'),
        (',', "loss.guide=',': names no directory"),
        (f'{path}', '^loss.guide: .*no meta.json: give a directory that launch/embed.py wrote'),
    ]:
        with pytest.raises(UserError, match=expected):
            TextVectors('loss.guide', directories)
    with pytest.MonkeyPatch.context() as patch:
        found = read_vectors(path / 'x')
        codes = found._replace(shards=[shard.astype(np.int8) for shard in found.shards])
        patch.setattr(text_vectors, 'read_vectors', lambda _: codes)
        with pytest.raises(UserError, match='holds codes instead of float32 vectors'):
            TextVectors('loss.guide', f'{path}/x')
    (path / 'y/text_keys.npy').unlink()
    with pytest.raises(UserError, match='text_keys.npy: is missing.*start launch/embed.py again'):
        TextVectors('loss.guide', f'{path}/y')

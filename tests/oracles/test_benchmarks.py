"""The benchmarks against peers, at toy size: both sides compute the same, and the programs run."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import probe_speed
from cpt_jax.embed.embedder import Embedder
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.runtime.mesh import make_mesh
from cpt_jax.text.tokenizer import load_tokenizer
from tests.conftest import HURRY, sentences

ROOT = Path(__file__).parents[2]
TEXTS = [
    *sentences(30, words=30),
    'list ' * 100,
    '[ ] { }',
    'Ünïcödé \U0001f389',
    'def f(x):\n    return  x\n',
    '',
]
MAX_TOKENS = 24


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A small encoder with nothing at its starting value, its tokenizer, and its twin."""
    from gpt2_twin import load_twin, save_twin, train_bpe

    folder = tmp_path_factory.mktemp('twin')
    train_bpe(TEXTS, 300, folder / 'tokenizer.json')
    tokenizer = load_tokenizer(folder / 'tokenizer.json')
    config = EncoderConfig(
        tokenizer.vocab_size, width=32, layers=3, heads=4, max_length=40, hidden=48
    ).on('cpu')
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        encoder = jax.jit(lambda: Encoder(config, nnx.Rngs(0)))()
    random = np.random.default_rng(0)
    encoder = jax.tree.map(
        lambda w: jax.device_put(w + random.normal(0, 0.2, w.shape).astype(np.float32), w.sharding),
        encoder,
    )
    save_twin(encoder, tokenizer, MAX_TOKENS, folder / 'twin')
    return (
        Embedder(encoder, tokenizer, mesh, {'x': MAX_TOKENS, 'y': MAX_TOKENS}),
        tokenizer,
        load_twin(folder / 'twin', 2),
    )


def test_the_twin_has_the_same_ids(model):
    _, tokenizer, twin = model
    ours = tokenizer.encode(TEXTS, 'y', MAX_TOKENS)
    theirs = twin.tokenizer(TEXTS, truncation=True, max_length=MAX_TOKENS)['input_ids']
    assert [ids.tolist() for ids in ours] == theirs
    assert max(map(len, ours)) == MAX_TOKENS and twin.max_seq_length == MAX_TOKENS


def test_the_twin_has_the_same_vectors(model):
    embed, _, twin = model
    ours = embed(TEXTS, 'y')
    np.testing.assert_allclose(ours, twin.encode(TEXTS, batch_size=8), atol=1e-5)
    # Each text has its own.
    assert np.abs(ours[:, None] - ours[None]).max(-1)[~np.eye(len(TEXTS), dtype=bool)].min() > 1e-3


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> dict[str, str]:
    """Pairs and a corpus of texts of very different lengths."""
    folder = tmp_path_factory.mktemp('texts')
    texts = sentences(100, seed=1, words=6)
    rows = {
        'pairs': [{'x': f'{i} {text[:30]}', 'y': f'{text} {i}'} for i, text in enumerate(texts)],
        'corpus': [{'_id': str(i), 'text': text} for i, text in enumerate(texts)],
    }
    for name, lines in rows.items():
        (folder / f'{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in lines))
    return {name: str(folder / f'{name}.jsonl') for name in rows}


SMALL = (
    '--max_tokens=32',
    '--width=32',
    '--layers=2',
    '--heads=2',
    '--vocab_size=300',
    '--rounds=1',
)


def run(folder: Path, name: str, *given: str) -> dict:
    """Starts a benchmark as a user would; returns what it writes."""
    command = [sys.executable, str(ROOT / f'benchmarks/{name}.py'), *given, '--json', 'found.json']
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': HURRY}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (folder / 'stdout').write_text(done.stdout)
    return json.loads((folder / 'found.json').read_text())


def compares_vectors(folder: Path) -> bool:
    printed = (folder / 'stdout').read_text()
    return 'sentence-transformers' in printed and 'differ by' in printed


def test_train_throughput(files, tmp_path):
    given = '--pairs', files['pairs'], '--batch=8', '--steps=2'
    found = run(tmp_path, 'train_throughput', *given, *SMALL)
    assert compares_vectors(tmp_path)
    packed, padded, peer = found['sides'].values()
    median = {name: side['pairs_per_second']['median'] for name, side in found['sides'].items()}
    assert (
        found['ratio'] == pytest.approx(median['ours, packed'] / median['sentence-transformers'])
        and found['vectors_differ_by'] < 1e-5
    )
    # The same pairs.
    assert (
        packed['turns'][0]['tokens']
        == padded['turns'][0]['tokens']
        == peer['turns'][0]['tokens']
        > 0
    )
    assert (
        packed['turns'][0]['pairs'] == peer['turns'][0]['pairs'] == 16
        and packed['dropped_pairs'] == 0
    )
    assert (
        1
        >= packed['useful_share']
        > padded['useful_share']
        == pytest.approx(padded['turns'][0]['tokens'] / (2 * 8 * 2 * 32))
    )
    assert peer['useful_share'] > padded['useful_share']  # it pads to the longest of a batch
    assert packed['loss'] == pytest.approx(padded['loss'], rel=1e-4)
    # The same function of the same pairs; then x keeps delimiters of its own on our side, and their
    # optimizer starts anew with each turn.
    for side in (padded, peer):
        assert side['first_loss'] == pytest.approx(packed['first_loss'], rel=1e-4)
    assert packed['loss'] == pytest.approx(peer['loss'], rel=0.05)


def test_encode_throughput(files, tmp_path):
    given = '--corpus', files['corpus'], '--batches=8,16', '--texts=50'
    found = run(tmp_path, 'encode_throughput', *given, *SMALL)
    assert compares_vectors(tmp_path)
    median = {name: side['texts_per_second']['median'] for name, side in found['sides'].items()}
    assert found['ratio'] == pytest.approx(
        median['ours'] / max(value for name, value in median.items() if name != 'ours')
    )
    assert found['settings']['texts'] == 50 and found['vectors_differ_by'] < 1e-5
    assert found['sides']['sentence-transformers']['batch'] == 32
    assert found['sides']['sentence-transformers, tuned']['batch'] in (8, 16)


def test_texts_are_filled_to_one_length(model):
    from benchmarks.train_throughput import lengthened

    _, tokenizer, _ = model
    texts = [lengthened(text, MAX_TOKENS, tokenizer) for text in TEXTS if text]
    assert {len(ids) for ids in tokenizer.encode(texts, 'y', MAX_TOKENS)} == {MAX_TOKENS}
    assert max(map(len, texts)) <= max(map(len, TEXTS))  # and no further than to it


def test_exact_search(tmp_path):
    given = '--documents=2000', '--width=8', '--queries=20', '--k=5', '--rounds=1'
    found = run(tmp_path, 'exact_search', *given)
    assert math.isfinite(found['ratio']) and found['ratio'] > 0
    assert len((tmp_path / 'stdout').read_text().splitlines()) >= 4


def test_probe_speed(tmp_path):
    sizes = {'train': 300, 'dev': 60, 'test': 80}
    samples = probe_speed.drawn_samples(sizes, width=64)
    fields = dict(zip(('x', 'labels', 'part'), samples, strict=True))
    np.savez(tmp_path / 'vectors.npz', **{f'SST2_{name}': a for name, a in fields.items()})
    found = run(tmp_path, 'probe_speed', '--tasks=SST2', '--vectors=vectors.npz')
    accuracy = found['tasks']['SST2']['accuracy']
    assert found['ratio']['SST2'] > 0 and found['tasks']['SST2']['fits'] == 5
    assert accuracy['ours'] == pytest.approx(accuracy['torch'], abs=1 / 80 + 1e-6)

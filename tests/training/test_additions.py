"""Extensions need one definition and one line that registers it. tests/evals/test_new_task.py adds
an evaluation task in the same way.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cpt_jax.data import mixture
from cpt_jax.data.pairs import Pair
from cpt_jax.embed.embedder import Embedder
from cpt_jax.loss.infonce import InfoNCE
from cpt_jax.loss.terms import TERMS
from cpt_jax.model.pooling import POOLINGS, Pooling
from cpt_jax.runs.config_file import load_config
from cpt_jax.runtime.mesh import AXES, BATCH
from cpt_jax.training.setup import set_up
from tests.embed.test_embedder import make_encoder
from tests.loss.test_infonce import example, place


class Numbers:
    """A data source whose pairs are a number and its digits."""

    documents = None

    def __init__(self, split: str, count: int = 64):
        self.split, self.count = split, count
        self.fingerprint = f'numbers to {count}'

    def __len__(self) -> int:
        return self.count if self.split == 'train' else 0

    def __getitem__(self, index: int) -> Pair:
        return Pair(f'number {index}', ' '.join(f'digit {digit}' for digit in str(index)))

    def summary(self) -> str:
        return f'numbers/{self.split}: {len(self)} pairs'


def test_source_is_one_class_and_one_line_in_kinds(monkeypatch, config_file, tmp_path):
    monkeypatch.setitem(mixture.KINDS, 'numbers', Numbers)
    config = load_config(config_file)
    config['data']['sources'] = {'numbers': {'kind': 'numbers', 'weight': 1.0, 'count': 48}}
    run = set_up(config, tmp_path / 'run')
    assert run.sources['numbers'].summary() == 'numbers/train: 48 pairs'
    batch = run.indices[0]
    assert len(set(batch.pairs.tolist())) == config['train']['batch_pairs'] == 32
    tokens, _ = run.reader(batch.source, batch.pairs[:1])
    first = Numbers('train')[int(batch.pairs[0])]
    assert run.tokenizer.decode(tokens[0][1].tolist()[1:-1]).strip() == first.y


def mean_cosine(e_BxTxD, ids_BxTxZ, axes):
    """A loss term: the negative mean cosine similarity of partners."""
    return -jnp.mean(jnp.sum(e_BxTxD[:, 0] * e_BxTxD[:, 1], -1))


def test_loss_term_is_one_function_and_one_line_in_terms(monkeypatch, meshes):
    monkeypatch.setitem(TERMS, 'mean_cosine', mean_cosine)
    (e, ids), mesh = example(2), meshes[8, 1, 1]
    with jax.set_mesh(mesh):
        arrays = place(e, mesh), place(ids, mesh)
        plain, _ = jax.jit(InfoNCE())(*arrays, 0.0)
        loss, metrics = jax.jit(InfoNCE(terms=(('mean_cosine', 2.0),)))(*arrays, 0.0)
    expected = -np.mean(np.sum(e[:, 0] * e[:, 1], -1))
    np.testing.assert_allclose(metrics['mean_cosine'], expected, rtol=1e-5)
    np.testing.assert_allclose(loss - plain, 2 * expected, rtol=1e-5)


@partial(jax.shard_map, in_specs=(P(BATCH), P(BATCH), P(BATCH)), out_specs=P(BATCH))
def max_of_texts(h_RxSxD, segments_RxS, eos_BxT):
    """A pooling: the elementwise maximum over the states of a text. Each device pools its own
    rows.
    """
    segments = segments_RxS.reshape(-1)
    h = h_RxSxD.reshape(len(segments), -1).astype(jnp.float32)
    return jax.ops.segment_max(h, segments, eos_BxT.size + 1)[segments[eos_BxT]]


def test_pooling_is_one_function_and_one_line_in_poolings(monkeypatch, tokenizer):
    max_pooling = Pooling('maximum over tokens', ('max',), 'max', reduce=max_of_texts)
    monkeypatch.setitem(POOLINGS, 'max', max_pooling)
    mesh = jax.make_mesh((1, 1, 1), AXES, (AxisType.Explicit,) * 3, devices=jax.devices()[:1])
    encoder = make_encoder(tokenizer.vocab_size, mesh, pooling='max')
    embed = Embedder(encoder, tokenizer, mesh, {'x': 32, 'y': 32})
    assert embed.settings['pooling'] == 'maximum over tokens'
    (ids,) = tokenizer.encode(['list of values'], 'x', 32)
    ones = np.ones((1, len(ids)), np.int32)
    with jax.set_mesh(mesh):
        states = encoder.compute_token_states(
            ids[None], ones, np.arange(len(ids), dtype=np.int32)[None]
        )
    largest = np.asarray(states)[0].max(0)
    expected = largest / np.linalg.norm(largest)
    np.testing.assert_allclose(embed(['list of values'], 'x')[0], expected, atol=1e-5)

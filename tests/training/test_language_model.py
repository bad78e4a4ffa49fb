"""Language-model training: its data, its held-out scores, a run, and a contrastive run from it."""

import json

import jax
import numpy as np
import pytest
import scipy
from flax import nnx

from cpt_jax.data.batch import Layout
from cpt_jax.data.sources.documents import DocumentSource
from cpt_jax.data.sources.text import TextSource
from cpt_jax.embed.load import load_embedder
from cpt_jax.model.config import EncoderConfig
from cpt_jax.runs import checkpoint
from cpt_jax.runs.config import flatten
from cpt_jax.runs.config_file import load_config
from cpt_jax.runs.reference import find_checkpoint
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import get_batch_sharding, make_mesh
from cpt_jax.text.tokenizer import Tokenizer, train_tokenizer
from cpt_jax.training import loop
from cpt_jax.training.language_model import HeldoutText, LanguageModel, compute_unigram_bits
from cpt_jax.training.setup import set_up
from tests.conftest import sentences
from tests.data.sources.test_text import WordTokenizer


def load_lm_config(config_file, **changes) -> dict:
    config = load_config(config_file)
    config['objective'], config['model']['init'] = 'lm', 'gpt2'
    config['train'] |= {'steps': 4, 'batch_pairs': 16}
    config['evaluation']['every_steps'] = config['checkpoint']['every_steps'] = 2
    for key, value in changes.items():
        *sections, name = key.split('__')
        (config[sections[0]] if sections else config)[name] = value
    return config


@pytest.fixture(scope='module')
def tokenizer() -> Tokenizer:
    options = {
        'model_type': 'bpe',
        'normalization': 'identity',
        'whitespace': 'prefix',
        'characters': 10**6,
        'seed': 0,
    }
    return train_tokenizer(sentences(100), vocab_size=300, bos_and_eos=True, **options)


@pytest.fixture(scope='module')
def finished(config_file, tmp_path_factory):
    """The directory of a run of four steps."""
    workdir = tmp_path_factory.mktemp('lm') / 'run'
    assert loop.train(load_lm_config(config_file), workdir) == 0
    return workdir


def load_arrays(workdir) -> dict[str, np.ndarray]:
    """Returns the arrays of the latest checkpoint, by name."""
    directory, step = find_checkpoint(str(workdir), '')
    state = checkpoint.ocp.load_checkpointables(directory / str(step), {'state': None})['state']
    return {name: np.asarray(array) for name, array in flatten(state)}


def test_each_pair_is_one_text_and_each_piece_of_prose_is_read_once(config_file, tmp_path):
    source = DocumentSource(
        set_up(
            load_lm_config(config_file) | {'objective': 'contrastive'}, tmp_path / 'run'
        ).sources['pairs']
    )
    assert source[3].x.split('\n\n')[1].startswith('def ') and not source[3].y and len(source) > 200
    lengths = {
        'objective': 'lm',
        'data': load_lm_config(config_file)['data'] | {'row_length': 4096},
    }
    with pytest.raises(
        UserError, match=r'data\.row_length=4096 must be over 2 and at most model\.max_length='
    ):
        set_up(load_lm_config(config_file) | lengths, tmp_path / 'run')
    for name in ('one', 'two', 'three'):
        (tmp_path / f'{name}.txt').write_text(' '.join(f'{name} {i}.' for i in range(30)))
    for split, names in [('all', ('one', 'three', 'two')), ('heldout', ('two',))]:
        text = TextSource(
            str(tmp_path), split, WordTokenizer(), piece_tokens=8, min_tokens=2, holdout=0.3
        )
        pieces = [DocumentSource(text)[i].x for i in range(len(DocumentSource(text)))]
        assert len(pieces) == len(text) + len(names) == len({*pieces})
        assert ' '.join(pieces) == ' '.join(f'{name} {i}.' for name in names for i in range(30))


def test_bits_per_byte_match_those_of_separate_texts(tokenizer):
    texts = [
        *sentences(9),
        'é ça — 日本',
        'a  b\n\tc ',
        '',
        'a longer text that is truncated, so that only its beginning counts',
    ]
    tokens = tokenizer.encode_language(texts, 24)
    tokens_RxS = np.zeros((16, 32), np.int32)
    for row_S, ids in zip(tokens_RxS, tokens, strict=False):
        row_S[: len(ids)] = ids
    positions_RxS = np.arange(32, dtype=np.int32) + 0 * tokens_RxS
    config = EncoderConfig(
        vocab_size=tokenizer.vocab_size, width=16, layers=1, heads=2, max_length=32, remat='none'
    ).resolve_auto('cpu')
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        params = jax.jit(lambda: LanguageModel().init(config, nnx.Rngs(0)))()
        rows = jax.device_put(
            (tokens_RxS, np.ones_like(tokens_RxS), positions_RxS), get_batch_sharding(mesh)
        )
        states_RxSxD = np.asarray(
            jax.jit(lambda encoder, *rows: encoder.compute_token_states(*rows))(
                params.encoder, *rows
            )
        )
    calls = []
    found = HeldoutText(tokens, tokenizer, Layout(8, 1, 4, 1, 1, 24), mesh).compute_scores(
        params.encoder, lambda: calls.append(1)
    )
    table_VxD = np.asarray(params.encoder.token_embedding[...])[: tokenizer.vocab_size - 4]
    nats = 0.0
    kept = ''
    for text, ids, states_SxD in zip(texts, tokens, states_RxSxD, strict=False):
        logits_SxV = states_SxD[: len(ids) - 1] @ table_VxD.T
        log_probabilities_SxV = scipy.special.log_softmax(logits_SxV, axis=1)
        nats -= log_probabilities_SxV[np.arange(len(ids) - 1), ids[1:]].sum()
        kept += text if ids[-1] == tokenizer.bos_and_eos[1] else tokenizer.decode(ids[1:])
    assert len(calls) > 1 and len(kept) < len(''.join(texts))
    np.testing.assert_allclose(
        found['heldout_bits_per_byte'], nats / np.log(2) / len(kept.encode()), rtol=1e-5
    )
    assert found['heldout_bytes'] == len(kept.encode()) and found['heldout_tokens'] == sum(
        map(len, tokens)
    ) - len(texts)


def test_unigram_bits_match_a_count_by_hand():
    training, heldout = [b'aab', b'a'], [b'ab', b'\xff']
    probabilities = {b'a': 4 / 260, b'b': 2 / 260, b'\xff': 1 / 260}
    np.testing.assert_allclose(
        compute_unigram_bits(training, heldout), -np.log2([*probabilities.values()]).mean()
    )


def test_run_records_its_bits_per_byte_and_learns(finished):
    lines = (finished / 'metrics.jsonl').read_text().splitlines()
    start, *rows = map(json.loads, lines)
    assert start['step'] == 0 and start['heldout_loss'] > rows[-1]['heldout_loss']
    assert [row['step'] for row in rows] == [1, 2, 3, 4] and [
        row['step'] for row in rows if 'heldout_bits_per_byte' in row
    ] == [2, 4]
    last = rows[-1]
    # At the start, all ids but the delimiters are about equally likely.
    np.testing.assert_allclose(rows[0]['loss'], np.log(316), rtol=0.05)
    assert (
        last['heldout_loss'] < rows[0]['loss'] - 0.1
        and 0 < last['accuracy'] < 1
        and 3 < last['unigram_bits_per_byte'] < 5
    )
    assert last['heldout_bits_per_byte'] == pytest.approx(
        last['heldout_loss'] * last['heldout_tokens'] / np.log(2) / last['heldout_bytes']
    )
    assert last['pairs'] == 16 and last['foretold'] == last['tokens'] - 16


def test_contrastive_run_inherits_encoder_and_tokenizer_and_adds_delimiters(
    finished, config_file, tmp_path
):
    """The learning rate is 0, so the final parameters are the initial ones. The sizes in the
    contrastive config are ignored.
    """
    config = load_lm_config(
        config_file,
        objective='contrastive',
        init_from=str(finished),
        model__width=8,
        model__layers=1,
        train__steps=1,
    )
    config['evaluation']['every_steps'] = 0
    config['optimizer'] |= {'peak_lr': 0.0, 'warmup_steps': 0}
    assert loop.train(config, tmp_path / 'run') == 0
    before, after = (
        {n: a for n, a in load_arrays(run).items() if n.startswith('params.encoder')}
        for run in (finished, tmp_path / 'run')
    )
    table_before, table = (
        arrays.pop('params.encoder.token_embedding') for arrays in (before, after)
    )
    assert before.keys() == after.keys()
    for name, array in after.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    tokenizer = load_embedder(str(tmp_path / 'run'))._tokenizer
    size = tokenizer.vocab_size - 4
    assert tokenizer.bos_and_eos == (1, 2)
    np.testing.assert_array_equal(table[:size], table_before[:size])
    np.testing.assert_allclose(
        table[size : size + 4],
        np.tile(table_before[:size].mean(0), (4, 1)),
        atol=6 * 0.1 * table_before.std(),
    )
    assert (
        len(np.unique(table[size : size + 4], axis=0)) == 4
        and not np.isin(table[size : size + 4], table_before).any()
    )
    (finished / 'checkpoints').rename(finished / 'elsewhere')
    try:
        # A run resumes without its origin.
        assert set_up(config, tmp_path / 'run').encoder_config.layers == 2
    finally:
        (finished / 'elsewhere').rename(finished / 'checkpoints')


def test_language_model_cannot_be_loaded_as_an_embedder(finished):
    with pytest.raises(UserError, match=r'a language model \(objective=lm\).*--config.init_from='):
        load_embedder(str(finished))


@pytest.mark.parametrize(
    ('changes', 'line'),
    [
        ({'objective': 'mlm'}, "objective='mlm': choose one of contrastive, lm"),
        ({'data__negatives': 2}, 'data.negatives=2: objective=lm has no negatives'),
        ({'loss__symmetric': False}, 'loss.symmetric=False: objective=lm has no contrastive loss'),
        ({'model__causal': False}, 'need a causal model'),
    ],
)
def test_inconsistent_config_is_refused(config_file, tmp_path, changes, line):
    with pytest.raises(UserError, match=line):
        set_up(load_lm_config(config_file, **changes), tmp_path / 'run')


def test_tokenizer_without_an_end_of_text_is_refused(config_file, tmp_path):
    options = {
        'model_type': 'bpe',
        'normalization': 'identity',
        'whitespace': 'prefix',
        'characters': 10**6,
        'seed': 0,
    }
    train_tokenizer(sentences(100), vocab_size=300, **options).save(tmp_path)
    with pytest.raises(UserError, match='has no id that ends a text'):
        set_up(load_lm_config(config_file, tokenizer__path=str(tmp_path)), tmp_path / 'run')

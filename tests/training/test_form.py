"""Runs that keep the form of the embedding model that they start from: its pooling, special tokens,
prompts, letter case and Dense modules.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from cpt_jax.data.batch import place_batch
from cpt_jax.embed.load import load_embedder
from cpt_jax.exporting.adapter import export_adapter
from cpt_jax.exporting.directory import export
from cpt_jax.origin.pretrained import open_pretrained
from cpt_jax.runs.config import fill_legacy_defaults
from cpt_jax.runs.config_file import load_config
from cpt_jax.runtime.errors import UserError
from cpt_jax.text.prompt_template import parse_prompt_section
from cpt_jax.training import loop
from cpt_jax.training.chunks import encode
from cpt_jax.training.form import find_begin_ids, resolve_form
from cpt_jax.training.setup import Run, set_up
from cpt_jax.training.start import make_starting_state
from tests.embed.test_embedder import write_run
from tests.exporting.conftest import one_row_length
from tests.goldens.golden import read_golden, restore
from tests.origin.test_pretrained import edit

pytestmark = pytest.mark.usefixtures('persistent_compilation_cache')

# Golden directories of sentence-transformers; their vectors are compared in tests/origin and
# tests/model/test_dense_modules.py.
CASES = ('bert mean', 'roberta cls', 'qwen3 lasttoken', 'bert dense', 'gemma3 dense')


def write_model(folder: Path, case: str) -> Path:
    return restore(read_golden('pretrained').facts['whole'][case], folder)


def make_config(config_file: Path, model: Path, **changes) -> dict:
    """Returns a config for a run from `model`; changes are keys such as mesh__fsdp=2."""
    config = load_config(config_file)
    config['init_from'] = str(model)
    config['data'] |= {'max_tokens_x': 24, 'max_tokens_y': 28}
    config['optimizer'] |= {'peak_lr': 1e-3, 'warmup_steps': 0}
    config['train']['steps'] = 1
    config['evaluation'] |= {'every_steps': 1, 'pairs': 30}
    for key, value in changes.items():
        section, _, name = key.partition('__')
        config[section][name] = value
    return config


def export_run_as_one(run: Path, out: Path):
    """Exports a run that makes one directory; returns what `export` says about it."""
    (part,) = export(str(run), out, dtype='float32', shard_bytes=10**9, license_id='mit')
    return part


def read_rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def embed_batch(run: Run, state) -> tuple[np.ndarray, np.ndarray]:
    """Returns the vectors of the run's first batch, as the loss sees them, and its content ids."""
    batches = next(run.iterate_batches_after(0))
    with jax.set_mesh(run.mesh):
        batch = place_batch(batches, run.mesh, run.layout)
        dense = getattr(state.params, 'dense', ())
        e_BxTxD = jax.jit(encode)(state.params.encoder, batch, None, dense)
        return np.asarray(e_BxTxD), np.asarray(batch.ids_JxBxTxZ)


PACKED = {'mesh__fsdp': 2, 'mesh__tensor': 2, 'train__encode_chunks': 2, 'model__remat': 'full'}
UNPACKED = {'data__packed': False}


@pytest.mark.parametrize(
    ('case', 'layout'),
    [*((case, PACKED) for case in CASES), ('bert dense', UNPACKED)],
)
@one_row_length()
def test_untrained_run_is_the_model(config_file, tmp_path, case, layout):
    """Its batch has the vectors of the model as it is, and so has its held-out score."""
    model = write_model(tmp_path / 'model', case)
    config = make_config(config_file, model, **layout)
    run = set_up(config, tmp_path / 'run')
    with jax.set_mesh(run.mesh):
        _, state = make_starting_state(run, NoCheckpoints())
    e_BxTxD, _ = embed_batch(run, state)
    found = {tuple(np.round(vector, 4)) for vector in e_BxTxD.reshape(-1, e_BxTxD.shape[-1])}
    embed = load_embedder(str(model), max_tokens=24), load_embedder(str(model), max_tokens=28)
    pairs = [source[i] for source in run.sources.values() for i in range(len(source))]
    expected_x = embed[0]([pair.x for pair in pairs], 'x')
    expected_y = embed[1]([pair.y for pair in pairs], 'y')
    assert e_BxTxD.shape[-1] == expected_x.shape[-1]
    distances = [
        np.abs(np.concatenate([expected_x, expected_y]) - np.array(vector)).max(1).min()
        for vector in found
    ]
    assert max(distances) < 1e-4
    scorer = run.objective.make_scorer(run.held_out, state.params)
    with jax.set_mesh(run.mesh):
        scores = scorer(state.params, lambda: None)
    x = embed[0]([pair.x for pair in run.heldout_pairs], 'x')
    y = embed[1]([pair.y for pair in run.heldout_pairs], 'y')
    ranks = (x @ y.T >= np.diagonal(x @ y.T)[:, None] - 1e-6).sum(1)
    assert scores['heldout_mrr'] == pytest.approx((1 / ranks).mean(), abs=1e-4)


class NoCheckpoints:
    """Checkpoints of a new run."""

    def restore(self, abstract):
        return None


@pytest.mark.parametrize(('case', 'freeze'), [('bert dense', False), ('gemma3 dense', True)])
@one_row_length()
def test_trained_run_resumes_and_is_exported_in_its_form(config_file, tmp_path, case, freeze):
    model = write_model(tmp_path / 'model', case)
    config = make_config(config_file, model, model__freeze_dense=freeze)
    assert loop.train(config, tmp_path / 'run') == 0
    config['train']['steps'] = 2
    assert loop.train(config, tmp_path / 'run') == 0
    rows = read_rows(tmp_path / 'run')
    assert [row['step'] for row in rows] == [0, 1, 2] and 'loss' not in rows[0]
    assert all('heldout_mrr' in row for row in rows)
    stored = json.loads((tmp_path / 'run' / 'config.json').read_text())
    pretrained = open_pretrained(str(model))
    assert stored['tokenizer']['delimiters'] == 'none'
    assert stored['model']['pooling'] == pretrained.shape['pooling']
    embed = load_embedder(str(tmp_path / 'run'))
    assert embed.settings['prompts'] == pretrained.tokenizer.prompts
    for layer, original in zip(embed.dense, load_embedder(str(model)).dense, strict=True):
        change = np.abs(np.asarray(layer.dense_weight[...] - original.dense_weight[...])).max()
        assert change == 0 if freeze else change > 1e-5
    part = export_run_as_one(tmp_path / 'run', tmp_path / 'out')
    assert part.difference < 1e-5 and part.shorter == {'query': 24}
    exported = load_embedder(str(tmp_path / 'out'))
    texts = ['list file', 'Upper Case', '', 'parser ' * 60]
    np.testing.assert_allclose(exported(texts, 'y'), embed(texts, 'y'), atol=1e-5)
    np.testing.assert_allclose(exported(texts[:3], 'x'), embed(texts[:3], 'x'), atol=1e-5)
    assert np.abs(exported(texts[:2], 'y') - load_embedder(str(model))(texts[:2], 'y')).max() > 1e-4
    reader = json.loads((tmp_path / 'out' / 'tokenizer_config.json').read_text())
    assert reader['pad_token']
    config['init_from'] = f'{tmp_path}/run'
    inheriting = set_up(config, tmp_path / 'next')
    assert inheriting.tokenizer.fingerprint == embed.settings['tokenizer']
    assert inheriting.encoder_config.dense == pretrained.shape['dense']
    config['tokenizer']['delimiters'] = 'paper'
    with pytest.raises(UserError, match='a run with the special tokens of a pretrained model'):
        set_up(config, tmp_path / 'next')


@one_row_length()
def test_config_replaces_prompts_and_lora_keeps_the_form(config_file, tmp_path):
    model = write_model(tmp_path / 'model', 'bert dense')
    config = make_config(config_file, model, lora__rank=2, evaluation__every_steps=0)
    config['data']['prompts'] = {'x': 'a b: ', 'y': None}
    assert loop.train(config, tmp_path / 'run') == 0
    embed = load_embedder(str(tmp_path / 'run'))
    own = open_pretrained(str(model)).tokenizer.prompts
    assert embed.settings['prompts'] == {'x': 'a b: ', 'y': own['y']}
    assert np.isfinite(embed(['list file'], 'x')).all()
    # All that an adapter cannot hold is named.
    with pytest.raises(UserError, match='trained Dense modules and other data.prompts, which an'):
        export_adapter(str(tmp_path / 'run'), tmp_path / 'adapter')
    config['data']['prompts'] = {'x': None, 'y': None}
    with pytest.raises(UserError, match=r'data\.prompts\.x was'):
        loop.train(config, tmp_path / 'run')


def test_paper_form_of_an_embedding_model_is_still_there(config_file, tmp_path):
    model = write_model(tmp_path / 'model', 'bert dense')
    run = set_up(make_config(config_file, model, tokenizer__delimiters='paper'), tmp_path / 'run')
    assert run.encoder_config.pooling == 'eos' and run.encoder_config.dense == ()
    assert len(run.tokenizer.added_ids) == 4


@pytest.mark.parametrize(
    ('changes', 'line'),
    [
        ({'tokenizer__delimiters': 'own'}, r"tokenizer\.delimiters='own': choose one of auto"),
        ({'data__max_tokens_x': 2}, r'data\.max_tokens_x=2 must be over \d+ \(special tokens and'),
        ({'tokenizer__path': 'x.json'}, r'tokenizer\.path=x\.json'),
        ({'model__pooling': 'max'}, r"model\.pooling='max': choose one of"),
        ({'data__prompts': 'query: '}, r"data\.prompts='query: ': must be a section with x and y"),
        ({'data__prompts': {'x': 3}}, r'data\.prompts\.x=3: must be a text'),
        ({'data__prompts': {'z': 'a'}}, r'unknown config key data\.prompts\.z'),
        (
            {'tokenizer__delimiters': 'paper', 'data__prompts': {'x': 'a'}},
            r'data\.prompts\.x: texts between delimiters have no prompt',
        ),
        (
            {'tokenizer__delimiters': 'paper', 'model__freeze_dense': True},
            r'model\.freeze_dense: there are no Dense modules',
        ),
    ],
)
def test_inconsistent_form_is_one_line(config_file, tmp_path, changes, line):
    model = write_model(tmp_path / 'model', 'bert dense')
    with pytest.raises(UserError, match=line):
        set_up(make_config(config_file, model, **changes), tmp_path / 'run')


def test_model_that_pools_no_prompts_is_not_trained_in_its_form(config_file, tmp_path):
    model = write_model(tmp_path / 'model', 'bert mean')
    edit(model / '1_Pooling' / 'config.json', lambda pooling: pooling.update(include_prompt=False))
    with pytest.raises(UserError, match=r'leaves its prompts out of the pooling \(include_prompt'):
        set_up(make_config(config_file, model), tmp_path / 'run')
    no_prompts = {'x': '', 'y': ''}
    set_up(make_config(config_file, model, data__prompts=no_prompts), tmp_path / 'run')


def test_begin_token_of_a_new_run_is_the_tokenizers_own(config_file, tmp_path):
    """Runs of before have the BOS of config.json, which the tokenizer does not add."""
    model = restore(read_golden('pretrained').facts['plain']['qwen3'], tmp_path / 'model')
    edit(model / 'config.json', lambda content: content.update(bos_token_id=7))
    edit(model / 'tokenizer_config.json', lambda content: content.pop('bos_token', None))
    origin = open_pretrained(str(model))
    config = load_config(config_file)
    for chosen, rule, ids in [('auto', 'tokenizer', []), ('always', 'always', [7])]:
        config['prompt']['begin_token'] = chosen
        resolved = resolve_form(config, origin)
        assert resolved['prompt']['begin_token'] == rule
        assert find_begin_ids(resolved, origin) == ids
    assert fill_legacy_defaults({})['prompt']['begin_token'] == 'always'
    config['prompt'] |= {'template': 'a {text}', 'begin_token': 'never'}
    with pytest.raises(UserError, match=r"prompt\.begin_token='never': choose one of auto"):
        parse_prompt_section(config['prompt'])


def test_delimiters_cannot_be_left_out_from_scratch(config_file, tmp_path):
    config = make_config(config_file, tmp_path, tokenizer__delimiters='none')
    config['init_from'] = ''
    with pytest.raises(UserError, match=r'tokenizer\.delimiters=none: needs init_from'):
        set_up(config, tmp_path / 'run')


def test_run_from_scratch_trains_with_mean_pooling(config_file, tmp_path):
    config = load_config(config_file)
    config['model'] |= {'pooling': 'mean', 'layers': 1}
    config['train']['steps'] = 2
    config['optimizer']['warmup_steps'] = 0
    config['model']['causal'] = False
    assert loop.train(config, tmp_path / 'run') == 0
    embed = load_embedder(str(tmp_path / 'run'))
    assert embed.encoder.config.pooling == 'mean'


def test_directory_of_one_side_keeps_no_form(config_file, tmp_path, tokenizer):
    """Its tokenizer would add the delimiters of x to y."""
    run = write_run(tmp_path / 'run', tokenizer)
    export(str(run), tmp_path / 'out', dtype='float32', shard_bytes=10**9, license_id='mit')
    config = make_config(config_file, tmp_path / 'out' / 'query')
    with pytest.raises(UserError, match='query: embeds one side only'):
        set_up(config, tmp_path / 'next')


def test_unknown_module_is_one_line(config_file, tmp_path):
    model = write_model(tmp_path / 'model', 'bert dense')
    edit(model / 'modules.json', lambda modules: modules.append({'type': 'x.CNN', 'path': '9'}))
    with pytest.raises(UserError, match=r'modules\.json: expected .* CNN'):
        set_up(make_config(config_file, model), tmp_path / 'run')

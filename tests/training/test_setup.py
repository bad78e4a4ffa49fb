"""Setting up a run: what is checked and loaded before the first step."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cpt_jax.data.pairs import Pair
from cpt_jax.exporting.transformer import make_config_json
from cpt_jax.loss.infonce import InfoNCE
from cpt_jax.model.config import EncoderConfig
from cpt_jax.origin.earlier_run import EarlierRun
from cpt_jax.origin.pretrained import read_planned_model
from cpt_jax.runs.config_file import load_config
from cpt_jax.runs.provenance import Base, Provenance
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.training import loop, setup
from cpt_jax.training.contrastive import Contrastive
from cpt_jax.training.resolve import resolve_architecture
from cpt_jax.training.sections import SECTION_FUNCTIONS, Evaluation, add_defaults, check_sections
from cpt_jax.training.startup import describe_equal_texts, describe_source
from tests.goldens.golden import read_golden


@pytest.mark.parametrize('section', SECTION_FUNCTIONS)
def test_every_section_is_checked_before_anything_is_read(config_file, tmp_path, section):
    config = load_config(config_file)
    config['data']['sources'] = {'none': {'kind': 'jsonl', 'path': f'{tmp_path}/none.jsonl'}}
    config[section]['typo'] = 1
    with pytest.raises(UserError, match=rf'unknown config key {section}\.typo: {section} has '):
        setup.set_up(config, tmp_path / 'run')


def test_missing_config_keys_take_their_defaults(config_file):
    config = load_config(config_file)
    del config['loss']['form'], config['train']['encode_chunks'], config['tokenizer']['path']
    check_sections(config)
    complete = add_defaults(config)
    assert complete['loss']['form'] == InfoNCE().form
    assert complete['train']['encode_chunks'] == 1 and complete['tokenizer']['path'] == ''
    assert complete['train']['steps'] == config['train']['steps']


def test_number_of_held_out_pairs_is_the_total_over_sources(config_file):
    config = load_config(config_file)
    (section,) = config['data']['sources'].values()
    config['data']['sources'] = {name: section for name in 'abc'}

    def load(evaluation: Evaluation) -> list[Pair]:
        objective = Contrastive(InfoNCE(), 3)
        return setup._load_heldout_pairs(evaluation, config, objective, None)

    for pairs in (1, 2, 3, 50):
        assert len(load(Evaluation(1, pairs))) == pairs
    assert load(Evaluation(1, 0)) == []


def test_init_from_a_run_with_another_number_of_temperatures_is_refused():
    loss = {'temperature_per_source': True}
    config = {'objective': 'contrastive', 'loss': {}, 'data': {'sources': {'a': {}, 'b': {}}}}
    shared = EarlierRun(Path('runs'), 1, Provenance(config, '', {}, ''), 'runs/a', 'init_from')
    Contrastive(InfoNCE(), 3).check_origin(shared)
    with pytest.raises(UserError, match='^init_from=runs/a: it trained one temperature, and'):
        Contrastive(InfoNCE(**loss), 2).check_origin(shared)
    several = dataclasses.replace(
        shared, provenance=Provenance(config | {'loss': loss}, '', {}, '')
    )
    Contrastive(InfoNCE(**loss), 2).check_origin(several)
    for other in (Contrastive(InfoNCE(**loss), 3), Contrastive(InfoNCE(), 2)):
        with pytest.raises(UserError, match='it trained a temperature for each of 2 sources, and'):
            other.check_origin(several)
    language = Provenance(config | {'objective': 'lm'}, '', {}, '')
    Contrastive(InfoNCE(), 2).check_origin(dataclasses.replace(several, provenance=language))


def test_processes_with_and_without_lora_exchange_arrays_of_equal_size(monkeypatch, tmp_path):
    """With arrays of different sizes, the processes would fail without a message."""
    sizes = []
    monkeypatch.setattr(
        setup.multihost_utils,
        'process_allgather',
        lambda ids: sizes.append(len(ids)) or np.stack([ids, ids]),
    )
    for base in (None, Base('model', 'f')):
        provenance = Provenance({}, '', {}, '', base=base)
        directory = RunDir(tmp_path)
        run = SimpleNamespace(
            provenance=provenance, directory=directory, layout=None, heldout_pairs=[]
        )
        monkeypatch.setattr(setup, 'set_up', lambda config, workdir, run=run: run)
        assert setup.set_up_on_all_processes({}, tmp_path) is run
    assert len(set(sizes)) == 1


def test_earlier_run_goes_on_with_one_row_count_on_several_processes(monkeypatch):
    monkeypatch.setattr(setup, 'plan_layout', lambda *arguments: arguments[-1])
    data = SimpleNamespace(row_length=64, rows=0, packed=True, row_choices=4)
    train = SimpleNamespace(batch_pairs=8, encode_chunks=1)
    resolved = SimpleNamespace(mesh=None, data=data, train=train)
    found = []
    for processes, agrees in [(1, False), (2, False), (2, True)]:
        monkeypatch.setattr(jax, 'process_count', lambda processes=processes: processes)
        found.append(setup._plan_rows(None, resolved, agrees))
    assert found == [4, 1, 4]


def test_equal_texts_are_counted_before_training(config_file, tmp_path):
    """The y's differ only behind the tokens that the model reads."""
    config = load_config(config_file)
    (pairs,) = config['data']['sources'].values()
    header = 'licensed under the terms of the example license ' * 9
    rows = [{'x': f'query {i // 2}', 'y': f'{header} {i}'} for i in range(300)]
    path = tmp_path / 'same_prefix.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    prefixed = {**pairs, 'path': str(path), 'holdout': 0.0}
    config['data']['sources'] = {'good': pairs, 'prefixed': prefixed}
    config['data']['negatives'] = 1
    run = setup.set_up(config, tmp_path / 'run')
    found = describe_equal_texts(run)
    good = r'good: \d+ of \d+ x, \d+ of \d+ y, \d+ of \d+ negatives; '
    assert re.match(good + r'prefixed: 300 of 300 x, 300 of 300 y \(', found['equal texts'])
    assert found['warning'].startswith(
        'data.sources.prefixed: 100% of the negatives in a batch are masked'
    )
    assert 'data.sources.good' not in found['warning']


def test_new_runs_compare_words_and_tokens(config_file, tmp_path):
    config = load_config(config_file)
    assert config['data']['equal_texts'] == 'auto'
    run = setup.set_up(config, tmp_path / 'run')
    assert run.provenance.agrees_on_rows
    assert run.provenance.config['data']['equal_texts'] == run.data.equal_texts == 'normalized'
    del config['data']['equal_texts']  # the run stores the rule also if the config does not name it
    run = setup.set_up(config, tmp_path / 'run')
    assert run.provenance.config['data']['equal_texts'] == 'normalized'
    assert run.layout.ids_per_text == 2
    config['data']['equal_texts'] = 'stripped'
    run = setup.set_up(config, tmp_path / 'run')
    assert run.layout.ids_per_text == 1 and describe_equal_texts(run) == {}
    config['data']['equal_texts'] = 'same'
    with pytest.raises(UserError, match="data.equal_texts='same': choose one of auto, normalized"):
        setup.set_up(config, tmp_path / 'run')


def test_a_run_says_how_often_it_reads_each_source(config_file, tmp_path):
    config = load_config(config_file)
    (pairs,) = config['data']['sources'].values()
    config['data']['sources'] = {'a': pairs | {'weight': 3.0}, 'b': pairs | {'weight': 1.0}}
    config['train']['steps'] = 100
    run = setup.set_up(config, tmp_path / 'run')
    batches = len(run.sources['a']) // run.train.batch_pairs
    assert run.epochs == pytest.approx({'a': 75 / batches, 'b': 25 / batches})
    assert describe_source(run, 'a').endswith(f'; read {75 / batches:.3g} times in 100 steps')
    assert loop.describe_data(run)['b']['epochs'] == run.epochs['b']
    so_far = loop.count_epochs_so_far(run, 20)
    assert so_far == pytest.approx({'epochs/a': 15 / batches, 'epochs/b': 5 / batches})


@pytest.mark.parametrize('longest', [40, 16])
def test_window_of_a_causal_origin_limits_a_bidirectional_run(config_file, tmp_path, longest):
    """transformers and the export describe such a model by the window as its maximum length."""
    config = read_golden('families').facts['configs']['mistral, window'] | {
        'max_position_embeddings': longest
    }
    (tmp_path / 'config.json').write_text(json.dumps(config))
    origin = read_planned_model(str(tmp_path))
    assert config['sliding_window'] == 16
    causal = EncoderConfig(vocab_size=99, **origin.shape)
    assert bool(causal.local_layers) == (longest > 16) and causal.max_length == longest
    ours = add_defaults(load_config(config_file))
    ours['model']['causal'] = False
    resolved, inherits = resolve_architecture(ours, origin)
    assert inherits
    both = EncoderConfig(vocab_size=99, **resolved['model'])
    assert (both.causal, both.local_layers, both.max_length) == (False, (), 16)
    make_config_json(both, config, 'float32')
    # A run that inherited the causal model passes on its sliding windows only to causal runs.
    ours['model']['causal'] = True
    inherited, _ = resolve_architecture(ours, origin)
    provenance = Provenance(inherited, '', {}, '', inherits=True, pretrained=config)
    run = EarlierRun(tmp_path, 1, provenance, 'runs/a', 'init_from')
    ours['model']['causal'] = False
    again, _ = resolve_architecture(ours, run)
    assert EncoderConfig(vocab_size=99, **again['model']) == both
    if longest > 16:
        # A run of an earlier version.
        earlier = EncoderConfig(vocab_size=99, **{**origin.shape, 'causal': False})
        with pytest.raises(UserError, match='within the sliding window of a causal mistral'):
            make_config_json(earlier, config, 'float32')

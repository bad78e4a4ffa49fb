"""configs/finetune.py: sizes from the data, prompts of sources, the best checkpoint, early stop."""

import json
import os
import signal

import numpy as np
import pytest

from cpt_jax.evals.follow import _read_last_step
from cpt_jax.runs.checkpoint import list_steps
from cpt_jax.runs.config_file import load_config
from cpt_jax.runs.reference import find_checkpoint
from cpt_jax.runtime.errors import EXIT_PREEMPTED, UserError
from cpt_jax.runtime.preemption import Preempted
from cpt_jax.training import contrastive, loop
from cpt_jax.training.heldout_scores import HeldoutScores, MainScore
from cpt_jax.training.setup import set_up
from tests.training.test_form import read_rows, write_model

pytestmark = pytest.mark.usefixtures('persistent_compilation_cache')

PAIRS = 300  # in the file of `config_file`


@pytest.fixture
def config(config_file, tmp_path):
    """The config of a user with 300 pairs and a tiny BERT with mean pooling."""
    model = write_model(tmp_path / 'model', 'bert mean')
    config = load_config(f'configs/finetune.py:{model}')
    config['data']['sources']['pairs']['path'] = str(config_file.parent / 'pairs.jsonl')
    config['train'] |= {'batch_pairs': 32, 'log_every': 1}
    return config


def test_sizes_come_from_the_data(config, tmp_path):
    config['train']['epochs'] = 2.5
    config['evaluation']['times'] = 4
    run = set_up(config, tmp_path / 'run')
    source = run.sources['pairs']
    pairs = [source[i] for i in range(len(source))]
    assert len(pairs) < PAIRS  # some are held out
    batches = len(pairs) // 32
    assert run.train.steps == int(np.ceil(2.5 * batches))
    assert run.evaluation.every_steps == int(np.ceil(run.train.steps / 4))
    for side, length in (('x', run.data.max_tokens_x), ('y', run.data.max_tokens_y)):
        texts = run.tokenizer.encode([getattr(pair, side) for pair in pairs], side, 40)
        lengths = [len(text) for text in texts]
        share = np.mean(np.array(lengths) <= length)
        assert share >= 0.99 and length - 8 < max(lengths) and (length % 8 == 0 or length == 30)
    longest = max(run.data.max_tokens_x, run.data.max_tokens_y)
    assert run.data.row_length == -(-longest // 8) * 8
    stored = run.provenance.config
    assert stored['data']['max_tokens_x'] == run.data.max_tokens_x
    assert stored['train']['steps'] == run.train.steps
    # A tenth of the steps: the learning rate is at its peak there.
    rates = [float(run.schedule(step)) for step in range(run.train.steps + 1)]
    assert np.argmax(rates) == run.train.steps // 10 and max(rates) == np.float32(2e-5)


def test_lengths_are_bounded_by_the_model_and_set_one_by_one(config, tmp_path):
    edited = json.loads((tmp_path / 'model' / 'sentence_bert_config.json').read_text())
    edited['max_seq_length'] = 12
    (tmp_path / 'model' / 'sentence_bert_config.json').write_text(json.dumps(edited))
    run = set_up(config, tmp_path / 'run')
    assert (run.data.max_tokens_x, run.data.max_tokens_y, run.data.row_length) == (12, 12, 16)
    config['data']['max_tokens_x'] = 16
    run = set_up(config, tmp_path / 'run')
    assert (run.data.max_tokens_x, run.data.max_tokens_y, run.data.row_length) == (16, 12, 16)
    config['data'] |= {'max_tokens_x': 0, 'row_length': 11}
    run = set_up(config, tmp_path / 'run')
    assert (run.data.max_tokens_x, run.data.max_tokens_y, run.data.row_length) == (11, 11, 11)


@pytest.mark.parametrize('key', ['train.steps', 'evaluation.every_steps', 'optimizer.warmup_steps'])
def test_flag_of_a_replaced_key_is_one_line(config, tmp_path, key):
    with pytest.raises(UserError, match=rf'--config\.{key} has no effect, because .* add --config'):
        loop.train(config, tmp_path / 'run', given={key})


def test_best_checkpoint_is_kept_and_the_run_stops_early(config, tmp_path, monkeypatch, capsys):
    script = iter([0.5, 0.6, 0.8, 0.7, 0.7, 0.3, 0.2, 0.1, 0.1])
    monkeypatch.setattr(
        contrastive,
        'compute_heldout_scores',
        lambda *_: {'heldout_mrr': next(script), 'heldout_first': 0.0, 'heldout_pairs': 9},
    )
    config['evaluation'] |= {'times': 8, 'patience': 2}
    workdir = tmp_path / 'run'
    assert loop.train(config, workdir) == 0
    assert [row.get('heldout_mrr') for row in read_rows(workdir)] == [0.5, 0.6, 0.8, 0.7, 0.7]
    assert list_steps(workdir / 'checkpoints') == [2, 4]  # the best and the latest
    assert find_checkpoint(f'{workdir}@best', '--model') == (workdir / 'checkpoints', 2)
    assert find_checkpoint(f'{workdir}@best:heldout', '--model')[1] == 2
    output = capsys.readouterr().out
    assert 'step 4: stopped early, because 2 evaluations brought no better score' in output
    last = output.splitlines()[-1]
    assert 'held-out MRR 0.500 -> 0.700, best 0.800 at step 2;' in last
    assert last.endswith(f'--model={workdir}@best')
    assert 'pooling mean (model)' in output and "prompt of x 'find: ' (model)" in output
    assert _read_last_step(workdir) == 4
    # The same command again has nothing to do.
    assert loop.train(config, workdir) == 0
    assert len(read_rows(workdir)) == 5 and 'stopped early' in capsys.readouterr().out
    config['evaluation']['patience'] = 0
    assert loop.train(config, workdir) == 0
    rows = read_rows(workdir)
    assert [row.get('heldout_mrr') for row in rows][5:] == [0.3, 0.2, 0.1, 0.1]
    (workdir / 'best_heldout.json').write_text('{"step": 7, "score": 0.9}')  # of a lost checkpoint
    assert loop.train(config, workdir) == 0
    assert find_checkpoint(f'{workdir}@best', '--model')[1] == 2
    assert _read_last_step(workdir) == rows[-1]['step'] == list_steps(workdir / 'checkpoints')[-1]


def test_score_that_sigterm_stopped_can_be_the_best(config, tmp_path, monkeypatch):
    script = iter([0.5, 0.6, None, 0.9, 0.7, 0.3, 0.2, 0.1, 0.1, 0.1])

    def score(*_):
        if (found := next(script)) is None:
            os.kill(os.getpid(), signal.SIGTERM)
            raise Preempted
        return {'heldout_mrr': found, 'heldout_first': 0.0, 'heldout_pairs': 9}

    monkeypatch.setattr(contrastive, 'compute_heldout_scores', score)
    config['evaluation'] |= {'times': 8}
    workdir = tmp_path / 'run'
    assert loop.train(config, workdir) == EXIT_PREEMPTED
    assert list_steps(workdir / 'checkpoints')[-1] == 2
    # Step 2 is evaluated again, and has the best score also for the third start.
    for _ in range(2):
        assert loop.train(config, workdir) == 0
        assert find_checkpoint(f'{workdir}@best', '--model')[1] == 2
        steps = list_steps(workdir / 'checkpoints')
        assert steps[0] == 2 and steps[-1] == read_rows(workdir)[-1]['step']


def test_scores_of_an_earlier_start_count_and_lower_can_be_better():
    main = MainScore('bits', 'bits per byte', -1)
    rows = [{'step': 0, 'bits': 3.0}, {'step': 1, 'loss': 9.0}, {'step': 2, 'bits': 2.0}]
    scores = HeldoutScores(main, 2, rows)
    assert scores.best_step == 2 and not scores.should_stop
    scores.add(4, {'bits': 2.0})
    scores.add(6, {'bits': 2.5})
    assert scores.best_step == 4 and scores.should_stop  # equal is not better
    assert scores.describe() == 'held-out bits per byte 3.000 -> 2.500, best 2.000 at step 4'
    lost = HeldoutScores(main, 0, [*rows, {'step': 3, 'bits': 2.5}], kept=[3])
    assert lost.best_step == 3  # the checkpoint of step 2 is gone
    worse = HeldoutScores(main, 0, [{'step': 0, 'bits': 1.0}, {'step': 2, 'bits': 2.0}])
    assert worse.describe().endswith('1.000 -> 2.000, never better than at the start')


def test_prompts_of_a_source_replace_those_of_the_run(config, tmp_path):
    """Texts of all sources, trained on or held out, have the ids that the embedder gives them."""
    sources = config['data']['sources']
    plain_sources = {'own': sources['pairs'], 'pairs': sources['pairs']}
    sources['own'] = sources['pairs'] | {'prompt_x': 'file: ', 'prompt_y': ''}
    config['data']['prompts'] = {'x': 'query: ', 'y': 'list '}
    run = set_up(config, tmp_path / 'run')
    unprompted = set_up(config | {'data': config['data'] | {'sources': plain_sources}}, tmp_path)
    prompts = {'own': ('file: ', ''), 'pairs': ('query: ', 'list ')}
    plain = run.tokenizer.with_prompts({'x': '', 'y': ''})
    for i, name in enumerate(run.sources):
        (tokens, *_), _ = run.reader(i, np.array([0]))
        pair = unprompted.sources[name][0]
        for side, prompt, ids in zip('xy', prompts[name], tokens, strict=True):
            expected = plain.encode([prompt + getattr(pair, side)], side, 999)[0]
            np.testing.assert_array_equal(ids, expected[: len(ids)])
    assert {pair.x[:6] for pair in run.heldout_pairs} == {'file: ', 'query:'}
    assert run.tokenizer.prompts == {'x': 'query: ', 'y': 'list '}
    sources['own']['prompt_x'] = 'list file ' * 40
    with pytest.raises(UserError, match='special tokens and prompt of data.sources.own'):
        set_up(config, tmp_path / 'run')
    config['tokenizer']['delimiters'] = 'paper'
    config['data']['prompts'] = {'x': None, 'y': None}
    with pytest.raises(UserError, match=r'data\.sources\.own\.prompt_x: texts between delimiters'):
        set_up(config, tmp_path / 'run')


@pytest.mark.parametrize('section', ['checkpoint', 'evaluation'])
def test_best_checkpoint_needs_heldout_pairs(config, tmp_path, section):
    config['data']['sources']['pairs']['holdout'] = 0.0
    config['checkpoint']['keep_best'] = section == 'checkpoint'
    with pytest.raises(UserError, match=rf'{section}\.\w+=.*needs held-out pairs'):
        set_up(config, tmp_path / 'run')

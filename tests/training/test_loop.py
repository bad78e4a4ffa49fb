"""What the training loop does between two steps, tested in this process."""

import json
import signal

import jax
import numpy as np
import pytest
from etils import epath

from cpt_jax.data.pairs import Pair
from cpt_jax.evals.report.curves import read_metrics
from cpt_jax.runs import checkpoint
from cpt_jax.runs.config_file import load_config
from cpt_jax.runtime.errors import EXIT_PREEMPTED, UserError
from cpt_jax.runtime.preemption import Preempted, Preemption
from cpt_jax.training import loop
from cpt_jax.training.contrastive import compute_heldout_scores


class SignalWithinEvaluation(Preemption):
    """Simulates a SIGTERM after the first batch of texts of the first evaluation."""

    after_step = 1  # 0: within the evaluation before the first step
    step = 0

    def should_stop_after(self, step: int) -> bool:
        self.step = step
        return self.requested

    def check(self) -> None:
        self.requested |= self.step >= self.after_step
        super().check()


def test_sigterm_during_an_evaluation_stops_it_and_saves_its_step(
    config_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, 'Preemption', SignalWithinEvaluation)
    config = load_config(config_file)
    config['model']['layers'] = 1
    config['evaluation']['every_steps'] = 3
    config['checkpoint']['every_steps'] = 100
    assert loop.train(config, tmp_path / 'run') == EXIT_PREEMPTED
    assert checkpoint.list_steps(tmp_path / 'run' / 'checkpoints') == [3]
    rows = [
        json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
    ]
    assert [row['step'] for row in rows] == [0, 1, 2, 3]
    assert [row['step'] for row in rows if 'heldout_mrr' in row] == [0]
    # The next start makes up for it.
    monkeypatch.undo()
    config['train']['steps'] = 4
    assert loop.train(config, tmp_path / 'run') == 0
    metrics = read_metrics(epath.Path(tmp_path / 'run' / 'metrics.jsonl'))
    assert metrics['heldout_mrr'][0].tolist() == [0, 3, 4]
    assert metrics['loss'][0].tolist() == [1, 2, 3, 4]


def test_sigterm_during_the_first_evaluation_stops_before_the_first_step(
    config_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, 'Preemption', SignalWithinEvaluation)
    monkeypatch.setattr(SignalWithinEvaluation, 'after_step', 0)
    config = load_config(config_file)
    config['evaluation']['every_steps'] = 3
    assert loop.train(config, tmp_path / 'run') == EXIT_PREEMPTED
    assert checkpoint.list_steps(tmp_path / 'run' / 'checkpoints') == []
    assert (tmp_path / 'run' / 'metrics.jsonl').read_text() == ''


def test_sigterm_has_its_handler_back_after_training(config_file, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError):
        loop.train({}, tmp_path / 'run')
    assert signal.getsignal(signal.SIGTERM) is before


def test_rows_include_pairs_dropped_in_steps_without_a_row(config_file, tmp_path):
    config = load_config(config_file)
    config['model']['layers'] = 1
    config['evaluation']['every_steps'] = 0
    config['train']['steps'] = 3
    config['data']['rows'] = 4  # too few for all pairs of a batch
    dropped = {}
    for log_every in (1, 100):
        config['train']['log_every'] = log_every
        assert loop.train(config, tmp_path / str(log_every)) == 0
        lines = (tmp_path / str(log_every) / 'metrics.jsonl').read_text().splitlines()
        dropped[log_every] = [json.loads(line)['dropped_pairs'] for line in lines]
    assert len(dropped[1]) == 3 and min(dropped[1]) > 0
    assert dropped[100] == [sum(dropped[1])]


# A module that stands in for wandb, and writes what it is given to a file.
WANDB = """import json

class Run:
    def __init__(self, **given):
        self.write(given)
    def write(self, line):
        with open(FILE, 'a') as file:
            print(json.dumps(line), file=file)
    def log(self, row, step):
        self.write({'step': step, **row})
    def finish(self):
        self.write('finished')

init = Run
"""


def test_trace_options_and_rows_elsewhere(config_file, tmp_path, monkeypatch):
    config = load_config(config_file)
    config['model']['layers'] = 1
    config['evaluation']['every_steps'] = 0
    config['train'] |= {'steps': 5, 'log_every': 2, 'wandb': 'mine'}
    config['checkpoint'] |= {'every_steps': 100, 'every_minutes': 1e-9, 'keep_latest': 9}
    with pytest.raises(UserError, match="train.wandb='mine': wandb is not installed"):
        loop.train(config, tmp_path / 'run')
    (tmp_path / 'modules').mkdir()
    sent = tmp_path / 'sent'
    (tmp_path / 'modules' / 'wandb.py').write_text(f'FILE = {str(sent)!r}\n' + WANDB)
    monkeypatch.syspath_prepend(tmp_path / 'modules')
    config['train'] |= {
        'profile_steps': [2, 3],
        'compiler_options': 'xla_llvm_disable_expensive_passes=true',
    }
    assert loop.train(config, tmp_path / 'run') == 0
    rows = [
        json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
    ]
    start, *lines, end = [json.loads(line) for line in sent.read_text().splitlines()]
    assert start['project'] == 'mine' and start['config'] and len(start['id']) == 8
    assert lines == rows and end == 'finished'
    assert [row['step'] for row in rows] == [2, 4, 5]
    assert checkpoint.list_steps(tmp_path / 'run' / 'checkpoints') == [2, 4, 5]
    last = rows[-1]
    parts = sum(last[f'{kind}_seconds'] for kind in ('compile', 'evaluate', 'save'))
    assert last['paused_seconds'] == pytest.approx(parts)
    assert last['compile_seconds'] > 0
    assert last['goodput'] == last['seconds'] / (last['seconds'] + last['paused_seconds'])
    assert 0 <= last['data_wait_seconds'] <= last['step_seconds_max'] <= last['seconds']
    (trace,) = (tmp_path / 'run' / 'profile').rglob('*.xplane.pb')
    planes = jax.profiler.ProfileData.from_file(str(trace)).planes
    assert any(True for plane in planes for line in plane.lines for _ in line.events)
    # Another start of the run goes on with the same run of wandb.
    config['train'] |= {'steps': 6, 'profile_steps': ()}
    assert loop.train(config, tmp_path / 'run') == 0
    again = [json.loads(line) for line in sent.read_text().splitlines()]
    assert [line['id'] for line in again if 'id' in line] == [start['id']] * 2
    with pytest.raises(UserError, match=r'train.profile_steps=.3, 2.: must be the first and'):
        loop.train(config | {'train': config['train'] | {'profile_steps': (3, 2)}}, tmp_path / 'b')


def test_callback_between_batches_can_stop_an_evaluation():
    calls = []

    def embed(texts, side, between):
        between()
        return np.eye(len(texts))

    pairs = [Pair(f'x{i}', f'y{i}') for i in range(4)]
    assert compute_heldout_scores(embed, pairs, lambda: calls.append(1))['heldout_mrr'] == 1
    assert len(calls) == 2  # the x's and the y's

    def stop():
        raise Preempted

    with pytest.raises(Preempted):
        compute_heldout_scores(embed, pairs, stop)


def test_smaller_row_counts_do_not_change_the_losses(config_file, tmp_path):
    """Each row count has its own program; the recorded padding is that of the row count used."""
    config = load_config(config_file)
    config['evaluation']['every_steps'] = 0
    config['optimizer']['epsilon'] = 1e-4  # see test_step.py
    config['mesh']['tensor'], config['data']['row_length'] = 4, 64
    config['model']['layers'] = 1  # several programs are compiled, so keep them small
    found = {}
    for choices in (1, 3):
        config['data']['row_choices'] = choices
        assert loop.train(config, tmp_path / str(choices)) == 0
        found[choices] = [
            json.loads(line)
            for line in (tmp_path / str(choices) / 'metrics.jsonl').read_text().splitlines()
        ]
    np.testing.assert_allclose(
        [row['loss'] for row in found[3]], [row['loss'] for row in found[1]], rtol=1e-4
    )
    columns = {
        choices: np.array([row['tokens'] / (1 - row['padding_share']) for row in rows])
        for choices, rows in found.items()
    }
    assert len(set(columns[1].round())) == 1 < len(set(columns[3].round()))
    assert (columns[3].round() <= columns[1].round()).all()

"""What happens between two steps, in this process."""

import json

import numpy as np
import pytest

from cpt_jax import checkpoint
from cpt_jax.data.pairs import Pair
from cpt_jax.errors import EXIT_PREEMPTED
from cpt_jax.program import load_config
from cpt_jax.train import loop
from cpt_jax.train.heldout import heldout_scores
from cpt_jax.train.stop import Preempted, Preemption


class SignalWithinEvaluation(Preemption):
    """As if SIGTERM came after the first batch of texts of the first evaluation."""

    def reached(self, step: int) -> bool:
        return self.asked

    def check(self) -> None:
        self.asked = True
        super().check()


def test_sigterm_within_an_evaluation_ends_it_and_saves_its_step(config_file, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, 'Preemption', SignalWithinEvaluation)
    config = load_config(config_file)
    config['evaluation']['every_steps'] = 3
    config['checkpoint']['every_steps'] = 100
    assert loop.train(config, tmp_path / 'run') == EXIT_PREEMPTED
    assert checkpoint.steps_in(tmp_path / 'run' / 'checkpoints') == [3]
    rows = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    assert [row['step'] for row in rows] == [1, 2, 3] and not any('heldout_mrr' in row for row in rows)


def test_what_is_called_between_the_texts_of_an_evaluation_may_end_it():
    calls = []

    def embed(texts, side, between):
        between()
        return np.eye(len(texts))

    pairs = [Pair(f'x{i}', f'y{i}') for i in range(4)]
    assert heldout_scores(embed, pairs, lambda: calls.append(1))['heldout_mrr'] == 1
    assert len(calls) == 2  # the x's and the y's

    def stop():
        raise Preempted

    with pytest.raises(Preempted):
        heldout_scores(embed, pairs, stop)

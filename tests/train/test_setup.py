"""What is read and compared before the first step."""

from types import SimpleNamespace

import numpy as np

from cpt_jax.program import load_config
from cpt_jax.train import setup


def test_held_out_pairs_are_as_many_as_asked_for_of_all_sources(config_file):
    config = load_config(config_file)
    (section,) = config['data']['sources'].values()
    config['data']['sources'] = {name: section for name in 'abc'}
    for pairs in (1, 2, 3, 50):
        assert len(setup._heldout_pairs(setup.Evaluation(1, pairs), config, None)) == pairs
    assert setup._heldout_pairs(setup.Evaluation(1, 0), config, None) == []


def test_processes_that_differ_in_lora_exchange_as_much(monkeypatch, tmp_path):
    """Arrays of two sizes would end them without a word."""
    sizes = []
    monkeypatch.setattr(setup.multihost_utils, 'process_allgather', lambda ids: sizes.append(len(ids)) or np.stack([ids, ids]))
    for about in ({'config': {}}, {'config': {}, 'base': {'path': 'model'}}):
        run = SimpleNamespace(about=about, layout=None, heldout=[])
        monkeypatch.setattr(setup, 'set_up', lambda config, workdir, run=run: run)
        assert setup.set_up_together({}, tmp_path) is run
    assert len(set(sizes)) == 1

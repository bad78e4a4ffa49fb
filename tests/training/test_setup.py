"""What is read and compared before the first step."""

from types import SimpleNamespace

import numpy as np
import pytest

from cpt_jax.data.pairs import Pair
from cpt_jax.loss.infonce import InfoNCE
from cpt_jax.runs.config_file import load_config
from cpt_jax.runs.provenance import Base, Provenance
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.training import setup
from cpt_jax.training.contrastive import Contrastive
from cpt_jax.training.sections import FUNCTIONS, Evaluation, check_sections, with_defaults


@pytest.mark.parametrize('section', FUNCTIONS)
def test_every_section_is_checked_before_anything_is_read(config_file, tmp_path, section):
    config = load_config(config_file)
    config['data']['sources'] = {'none': {'kind': 'jsonl', 'path': f'{tmp_path}/none.jsonl'}}
    config[section]['typo'] = 1
    with pytest.raises(UserError, match=rf'unknown config key {section}\.typo: {section} has '):
        setup.set_up(config, tmp_path / 'run')


def test_keys_that_a_config_lacks_take_their_defaults(config_file):
    config = load_config(config_file)
    del config['loss']['form'], config['train']['encode_chunks'], config['tokenizer']['path']
    check_sections(config)
    whole = with_defaults(config)
    assert whole['loss']['form'] == InfoNCE().form
    assert whole['train']['encode_chunks'] == 1 and whole['tokenizer']['path'] == ''
    assert whole['train']['steps'] == config['train']['steps']


def test_held_out_pairs_are_as_many_as_asked_for_of_all_sources(config_file):
    config = load_config(config_file)
    (section,) = config['data']['sources'].values()
    config['data']['sources'] = {name: section for name in 'abc'}

    def load(evaluation: Evaluation) -> list[Pair]:
        objective = Contrastive(InfoNCE(), 3)
        return setup._load_heldout_pairs(evaluation, config, objective, None)

    for pairs in (1, 2, 3, 50):
        assert len(load(Evaluation(1, pairs))) == pairs
    assert load(Evaluation(1, 0)) == []


def test_processes_that_differ_in_lora_exchange_as_much(monkeypatch, tmp_path):
    """Arrays of two sizes would end them without a word."""
    sizes = []
    monkeypatch.setattr(
        setup.multihost_utils,
        'process_allgather',
        lambda ids: sizes.append(len(ids)) or np.stack([ids, ids]),
    )
    for base in (None, Base('model', 'f')):
        provenance = Provenance({}, '', {}, '', base=base)
        directory = RunDir(tmp_path)
        run = SimpleNamespace(provenance=provenance, directory=directory, layout=None, heldout=[])
        monkeypatch.setattr(setup, 'set_up', lambda config, workdir, run=run: run)
        assert setup.set_up_together({}, tmp_path) is run
    assert len(set(sizes)) == 1

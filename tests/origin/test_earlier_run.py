"""What a run inherits from an earlier run."""

from pathlib import Path
from types import SimpleNamespace

from cpt_jax.origin.earlier_run import EarlierRun
from cpt_jax.runs.provenance import Provenance


def make_run(**stored) -> EarlierRun:
    provenance = Provenance.from_json(stored)
    return EarlierRun(Path('run/checkpoints'), 3, provenance, 'run', '--model')


def test_bos_ids_of_a_language_model_come_from_its_tokenizer(monkeypatch):
    tokenizer = SimpleNamespace(bos_and_eos=(5, 6))
    monkeypatch.setattr(EarlierRun, 'load_tokenizer', lambda self: tokenizer)
    assert make_run(config={'objective': 'lm'}, begin=None).bos_ids == [5]
    # The ids that the run itself stored do not matter if it is a language model.
    assert make_run(config={'objective': 'lm'}, begin=[]).bos_ids == [5]
    assert make_run(config={'objective': 'contrastive'}, begin=[7]).bos_ids == [7]
    assert make_run(config={}).bos_ids is None


def test_older_runs_inherit_only_from_a_pretrained_directory(tmp_path):
    (tmp_path / 'config.json').write_text('{}')
    assert make_run(config={'init_from': str(tmp_path)}).inherits_architecture
    assert not make_run(config={'init_from': 'runs/first'}).inherits_architecture
    assert make_run(config={'init_from': 'runs/first'}, inherits=True).inherits_architecture
    assert not make_run(config={'init_from': str(tmp_path)}, inherits=False).inherits_architecture

"""What an earlier run hands on."""

from pathlib import Path
from types import SimpleNamespace

from cpt_jax.origin.earlier_run import EarlierRun
from cpt_jax.runs.provenance import Provenance


def run_of(**stored) -> EarlierRun:
    provenance = Provenance.from_json(stored)
    return EarlierRun(Path('run/checkpoints'), 3, provenance, 'run', '--model')


def test_texts_of_a_language_model_begin_as_its_tokenizer_marks_them(monkeypatch):
    tokenizer = SimpleNamespace(boundaries=(5, 6))
    monkeypatch.setattr(EarlierRun, 'load_tokenizer', lambda self: tokenizer)
    assert run_of(config={'objective': 'lm'}, begin=None).bos_ids == [5]
    # As it was trained, whatever it comes from.
    assert run_of(config={'objective': 'lm'}, begin=[]).bos_ids == [5]
    assert run_of(config={'objective': 'contrastive'}, begin=[7]).bos_ids == [7]
    assert run_of(config={}).bos_ids is None


def test_older_runs_inherit_from_a_pretrained_directory_alone(tmp_path):
    (tmp_path / 'config.json').write_text('{}')
    assert run_of(config={'init_from': str(tmp_path)}).inherits_architecture
    assert not run_of(config={'init_from': 'runs/first'}).inherits_architecture
    assert run_of(config={'init_from': 'runs/first'}, inherits=True).inherits_architecture
    assert not run_of(config={'init_from': str(tmp_path)}, inherits=False).inherits_architecture

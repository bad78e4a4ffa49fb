import pytest

from cpt_jax.origin.resolve import Scratch, reference_exists, resolve_origin
from cpt_jax.runtime.errors import UserError


def test_plan_accepts_a_missing_origin_but_not_a_damaged_one(tmp_path):
    missing = f'{tmp_path}/none@3'
    assert resolve_origin(missing, must_exist=False) == Scratch()
    with pytest.raises(UserError, match='init_from'):
        resolve_origin(missing)
    damaged = tmp_path / 'run'
    damaged.mkdir()
    with pytest.raises(UserError, match='init_from'):
        resolve_origin(str(damaged), must_exist=False)


def test_origin_of_a_plan_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'run').mkdir()
    assert reference_exists('run') and reference_exists('run@5')
    for missing in ('models/gone', 'gone', 'gone@5'):
        assert not reference_exists(missing)
        assert resolve_origin(missing, must_exist=False) == Scratch()

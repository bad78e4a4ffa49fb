import pytest

from cpt_jax.origin.resolve import Scratch, resolve_origin
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

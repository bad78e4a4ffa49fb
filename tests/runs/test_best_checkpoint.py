"""The best checkpoint of a run: found by name, and kept."""

import shutil

import pytest

from cpt_jax.runs import checkpoint
from cpt_jax.runs.best_checkpoint import keep_best, write_best
from cpt_jax.runtime.errors import UserError


def save(run, step: int, content: str = '') -> None:
    """What looks like a checkpoint."""
    folder = run / 'checkpoints' / str(step)
    (folder / 'state').mkdir(parents=True)
    (folder / '_CHECKPOINT_METADATA').write_text(content or f'saved {step}')
    (folder / 'state' / 'numbers').write_text(content or f'numbers {step}')


def best(**steps: int) -> dict:
    return {f'sts/{name}': {'step': step, 'score': 0.5} for name, step in steps.items()}


def kept(run) -> list[str]:
    return sorted(path.name for path in (run / 'best').glob('*'))


@pytest.fixture
def run(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path / 'run', step)
    return tmp_path / 'run'


def test_a_reference_names_the_best_checkpoint(run):
    write_best(run, best(a=2))
    assert (
        checkpoint.find(f'{run}@best', '--model')
        == checkpoint.find(f'{run}@best:sts/a', '--model')
        == (run / 'checkpoints', 2)
    )
    write_best(run, best(a=2, b=3))
    assert checkpoint.find(f'{run}@best:sts/b', '--model') == (run / 'checkpoints', 3)
    keep_best(run, best(a=2, b=3))
    assert checkpoint.find(f'{run}@best:sts/b', '--model') == (run / 'best', 3)


def test_a_wrong_reference_is_one_line(run):
    def error(reference: str) -> str:
        with pytest.raises(UserError) as caught:
            checkpoint.find(f'{run}@{reference}', '--model')
        assert str(caught.value).startswith(f'--model {run}@{reference}: ')
        return str(caught.value)

    assert 'best.json: launch/evaluate.py --follow writes it' in error('best')
    write_best(run, best(a=2, b=9))
    assert error('best').endswith('say by which task; there are @best:sts/a, @best:sts/b')
    assert error('best:sts/c').endswith('no scores of sts/c; there are @best:sts/a, @best:sts/b')
    assert 'the checkpoint of step 9 is gone' in error('best:sts/b')
    (run / 'best.json').write_text('{')
    assert 'best.json is not JSON' in error('best')


def test_the_best_ones_stay_when_the_trainer_deletes_its_own_and_no_others_do(run):
    assert keep_best(run, best(a=1, b=2)) == [] and kept(run) == ['1', '2']
    for step in (1, 2):
        shutil.rmtree(run / 'checkpoints' / str(step))
    assert keep_best(run, best(a=1, b=3)) == [] and kept(run) == ['1', '3']
    assert (run / 'best' / '1' / 'state' / 'numbers').read_text() == 'numbers 1'
    write_best(run, best(a=1))
    assert checkpoint.find(f'{run}@best', '--model') == (run / 'best', 1)
    assert keep_best(run, {}) == [] and kept(run) == []


def test_what_is_held_stays_too_and_may_become_the_best(run):
    assert keep_best(run, best(a=1), held=[3, 9]) == [] and kept(run) == ['1', '3']
    shutil.rmtree(run / 'checkpoints' / '3')
    assert keep_best(run, best(a=3)) == [] and kept(run) == ['3']


def test_what_is_gone_is_told_and_what_is_half_there_is_not_taken(run, monkeypatch):
    assert keep_best(run, best(a=7)) == [7] and kept(run) == []
    (run / 'best' / '2.part').mkdir(parents=True)  # of a program that was killed

    def deleted_meanwhile(source, target):
        shutil.copy(source, target)
        shutil.rmtree(run / 'checkpoints' / '2' / 'state', ignore_errors=True)

    monkeypatch.setattr('cpt_jax.runs.best_checkpoint._link_or_copy', deleted_meanwhile)
    assert keep_best(run, best(a=2)) == [2] and kept(run) == []


def test_without_links_files_are_copied(run, monkeypatch):
    def no_links(*_):
        raise PermissionError('no links here')

    monkeypatch.setattr('cpt_jax.runs.best_checkpoint.os.link', no_links)
    # A copy of each would cost too much.
    assert keep_best(run, best(a=2), held=[3]) == [] and kept(run) == ['2']
    assert (run / 'best' / '2' / 'state' / 'numbers').read_text() == 'numbers 2'


def test_another_checkpoint_of_the_same_step_takes_its_place(run):
    keep_best(run, best(a=2))
    shutil.rmtree(run / 'checkpoints' / '2')
    save(run, 2, 'of another training')
    assert keep_best(run, best(a=2)) == []
    assert (run / 'best' / '2' / 'state' / 'numbers').read_text() == 'of another training'

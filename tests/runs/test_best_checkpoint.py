"""The best checkpoints of a run: references to them, and their copies in best/."""

import shutil

import pytest

from cpt_jax.runs.best_checkpoint import keep_best, write_best
from cpt_jax.runs.reference import find_checkpoint
from cpt_jax.runtime.errors import UserError


def write_checkpoint(run, step: int, content: str = '') -> None:
    """Writes a folder that looks like a checkpoint."""
    folder = run / 'checkpoints' / str(step)
    (folder / 'state').mkdir(parents=True)
    (folder / '_CHECKPOINT_METADATA').write_text(content or f'saved {step}')
    (folder / 'state' / 'numbers').write_text(content or f'numbers {step}')
    (folder / 'commit_success.txt').touch()


def make_best(**steps: int) -> dict:
    return {f'sts/{name}': {'step': step, 'score': 0.5} for name, step in steps.items()}


def list_kept(run) -> list[str]:
    return sorted(path.name for path in (run / 'best').glob('*'))


@pytest.fixture
def run(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path / 'run', step)
    return tmp_path / 'run'


def test_reference_names_the_best_checkpoint(run):
    write_best(run, make_best(a=2))
    assert (
        find_checkpoint(f'{run}@best', '--model')
        == find_checkpoint(f'{run}@best:sts/a', '--model')
        == (run / 'checkpoints', 2)
    )
    write_best(run, make_best(a=2, b=3))
    assert find_checkpoint(f'{run}@best:sts/b', '--model') == (run / 'checkpoints', 3)
    keep_best(run, make_best(a=2, b=3))
    assert find_checkpoint(f'{run}@best:sts/b', '--model') == (run / 'best', 3)


def test_wrong_reference_is_a_one_line_error(run):
    def error_of(reference: str) -> str:
        with pytest.raises(UserError) as caught:
            find_checkpoint(f'{run}@{reference}', '--model')
        assert str(caught.value).startswith(f'--model {run}@{reference}: ')
        return str(caught.value)

    assert 'the best checkpoint is not known: launch/evaluate.py --follow' in error_of('best')
    write_best(run, make_best(a=2, b=9))
    assert error_of('best').endswith('name the task; there are @best:sts/a, @best:sts/b')
    assert error_of('best:sts/c').endswith('no scores of sts/c; there are @best:sts/a, @best:sts/b')
    assert 'the checkpoint of step 9 is gone' in error_of('best:sts/b')
    (run / 'best.json').write_text('{')
    assert 'best.json is not JSON' in error_of('best')


def test_best_checkpoints_survive_their_deletion_by_training(run):
    assert keep_best(run, make_best(a=1, b=2)) == [] and list_kept(run) == ['1', '2']
    for step in (1, 2):
        shutil.rmtree(run / 'checkpoints' / str(step))
    assert keep_best(run, make_best(a=1, b=3)) == [] and list_kept(run) == ['1', '3']
    assert (run / 'best' / '1' / 'state' / 'numbers').read_text() == 'numbers 1'
    write_best(run, make_best(a=1))
    assert find_checkpoint(f'{run}@best', '--model') == (run / 'best', 1)
    assert keep_best(run, {}) == [] and list_kept(run) == []


def test_held_checkpoint_is_kept_and_can_become_the_best(run):
    assert keep_best(run, make_best(a=1), held=[3, 9]) == [] and list_kept(run) == ['1', '3']
    shutil.rmtree(run / 'checkpoints' / '3')
    assert keep_best(run, make_best(a=3)) == [] and list_kept(run) == ['3']


def test_missing_and_partly_deleted_checkpoints_are_reported(run, monkeypatch):
    assert keep_best(run, make_best(a=7)) == [7] and list_kept(run) == []
    (run / 'best' / '2.part').mkdir(parents=True)  # left by a program that was killed

    def copy_and_delete_source(source, target):
        shutil.copy(source, target)
        shutil.rmtree(run / 'checkpoints' / '2' / 'state', ignore_errors=True)

    monkeypatch.setattr('cpt_jax.runs.best_checkpoint._link_or_copy', copy_and_delete_source)
    assert keep_best(run, make_best(a=2)) == [2] and list_kept(run) == []


def test_without_hard_links_only_the_best_checkpoint_is_copied(run, monkeypatch):
    def no_links(*_):
        raise PermissionError('no hard links')

    monkeypatch.setattr('cpt_jax.runs.best_checkpoint.os.link', no_links)
    # Held checkpoints are not copied: that would take too much space.
    assert keep_best(run, make_best(a=2), held=[3]) == [] and list_kept(run) == ['2']
    assert (run / 'best' / '2' / 'state' / 'numbers').read_text() == 'numbers 2'


def test_new_checkpoint_of_the_same_step_replaces_the_copy(run):
    keep_best(run, make_best(a=2))
    shutil.rmtree(run / 'checkpoints' / '2')
    write_checkpoint(run, 2, 'from another training')
    assert keep_best(run, make_best(a=2)) == []
    assert (run / 'best' / '2' / 'state' / 'numbers').read_text() == 'from another training'

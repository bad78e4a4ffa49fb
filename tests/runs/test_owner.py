"""One training owns a run's directory."""

import pytest

from cpt_jax.runs.owner import own_run
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage import lease, locks
from cpt_jax.storage.paths import as_path


@pytest.mark.parametrize('storage', ['disk', 'bucket'])
def test_second_training_is_refused(tmp_path, request, monkeypatch, storage, capsys):
    run = RunDir(tmp_path / 'run')
    if storage == 'bucket':
        monkeypatch.setattr(lease, 'RENEW_SECONDS', 0.2)
        run = RunDir(as_path(request.getfixturevalue('gs_bucket')) / 'run')
    with own_run(run):
        run.metrics.write_text('')
        line = rf'--workdir {run.path}: is being trained by process \d+ on \S+ \(since .*\): wait '
        with pytest.raises(UserError, match=line), own_run(run):
            pass
    assert ('if that was killed' in capsys.readouterr().out) == (storage == 'bucket')
    with own_run(run):
        assert run.owner.exists()
    assert not run.owner.exists()


def test_training_that_fails_at_once_leaves_no_directory(tmp_path):
    with pytest.raises(KeyError), own_run(RunDir(tmp_path / 'run')):
        raise KeyError
    assert not (tmp_path / 'run').exists()


def test_directory_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='--workdir .*file: cannot be written'):
        with own_run(RunDir(tmp_path / 'file')):
            pass


def test_file_system_without_locks_is_reported(tmp_path, monkeypatch, capsys):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(38, 'Function not implemented')

    monkeypatch.setattr(locks.fcntl, 'flock', refuse)
    with own_run(RunDir(tmp_path)):
        assert 'its file system has no locks' in capsys.readouterr().out

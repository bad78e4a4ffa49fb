"""Following a run: which checkpoints are scored, when it ends, and kills and deletions."""

import json
import shutil

import numpy as np
import pytest

from cpt_jax.benchmark_data.senteval import SentEvalSet
from cpt_jax.embed.function import embed_texts
from cpt_jax.evals import follow as follow_module
from cpt_jax.evals.follow import Follower, follow
from cpt_jax.evals.run import make_claim_path
from cpt_jax.evals.store.embedding_cache import EmbeddingCache
from cpt_jax.evals.store.history import find_remeasured_tasks, read_rows
from cpt_jax.evals.task import Result
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.locks import try_lock
from tests.storage.test_event_files import events


class Score:
    """A task whose score is the first number of a text's vector."""

    __hash__ = None  # like tasks with lists as attributes

    def __init__(self, name: str):
        self.name = name

    def fingerprint(self) -> str:
        return f'{self.name} with the options of the command'

    def run(self, embed) -> Result:
        score = float(embed_texts(embed, ['a text'], 'x')[0, 0])
        return Result('spearman', {'spearman': score, 'pearson': -score}, 7, {'libraries': {}})


class Run:
    """The directory of a run whose checkpoints are files with one number.

    Attributes:
      loaded: steps of the loaded checkpoints, in order.
      settings: settings of the embedder.
    """

    def __init__(self, path, steps: int = 3):
        self.path, self.loaded, self.settings = path, [], {'dtype': 'float32'}
        path.mkdir()
        self.write_config(steps)

    def write_config(self, steps: int) -> None:
        (self.path / 'config.json').write_text(json.dumps({'train': {'steps': steps}}))

    def save(self, step: int, score: float | None = None) -> None:
        folder = self.path / 'checkpoints' / str(step)
        folder.mkdir(parents=True)
        (folder / 'number').write_text(str(step / 10 if score is None else score))
        (folder / 'commit_success.txt').touch()

    def delete(self, step: int) -> None:
        shutil.rmtree(self.path / 'checkpoints' / str(step))

    def _number(self, step: int) -> float:
        try:
            return float((self.path / 'checkpoints' / str(step) / 'number').read_text())
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f'{step} is damaged') from error

    def read_step_settings(self, step: int) -> dict:
        return self.settings | {
            'step': step,
            'saved': f'2026-{step:02d} {self._number(step)}',
            'code': str(step),
        }

    def load(self, step: int):
        number = self._number(step)
        self.loaded.append(step)
        cache = EmbeddingCache(self.path / 'vectors')
        return cache.wrap(
            lambda texts, side: np.full((len(texts), 2), number, np.float32),
            f'run@{step}',
            self.read_step_settings(step),
        )

    def follower(self, *names: str, **changes) -> Follower:
        names = names or ('sts/a', 'sts/b')
        prints = dict.fromkeys(names, 'f')
        return Follower(
            self.path,
            lambda settings: [Score(name) for name in names],
            prints,
            self.read_step_settings,
            self.load,
            **changes,
        )

    def rows(self) -> list[tuple]:
        return [
            (row['step'], row['task'], round(row['main_score'], 6))
            for row in read_rows(self.path / 'results.jsonl')
        ]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run without reports, which take a second each and have their own tests."""
    monkeypatch.setattr(follow_module, 'write_report', lambda output, metrics: None)
    return Run(tmp_path / 'run')


ALL = [(step, task, step / 10) for step in (1, 2, 3) for task in ('sts/a', 'sts/b')]


def test_each_checkpoint_is_scored_once_until_training_ends(run, capsys):
    run.save(1)
    upcoming = [lambda: run.save(2), lambda: None, lambda: run.save(3)]
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        upcoming.pop(0)()

    assert follow(run.follower(), 0, sleep) == 'training ended at step 3'
    assert run.rows() == ALL
    assert run.loaded == [1, 2, 3]
    assert slept == [follow_module.POLL_SECONDS] * 3
    row = json.loads((run.path / 'results.json').read_text())['tasks']['sts/a']
    assert row['fingerprint'] == 'sts/a with the options of the command'
    assert json.loads((run.path / 'best.json').read_text()) == dict.fromkeys(
        ('sts/a', 'sts/b'), {'step': 3, 'score': pytest.approx(0.3)}
    )
    assert [path.name for path in (run.path / 'best').iterdir()] == ['3']
    found = events(RunDir(run.path).evaluation_events.read_bytes())[1:]
    assert [(event.step, [value.tag for value in event.summary.value]) for event in found] == [
        (step, [f'{task}/spearman', f'{task}/pearson']) for step, task, _ in ALL
    ]
    results = json.loads((run.path / 'results.json').read_text())
    assert results['model'] == 'run@3'
    assert results['settings']['step'] == 3
    assert list(results['tasks']) == ['sts/a', 'sts/b']
    assert not (run.path / 'vectors').exists()
    assert [path.name for path in (run.path / '.claims').iterdir()] == ['results']


def test_repeated_command_scores_only_what_is_new(run):
    for step in (1, 2, 3):
        run.save(step)
    follow(run.follower(), 0)
    before = {path: path.read_bytes() for path in run.path.rglob('*') if path.is_file()}
    again = run.follower()
    again.tasks = lambda settings: pytest.fail('searches for data without anything to score')
    follow(again, 0)
    assert {path: path.read_bytes() for path in run.path.rglob('*') if path.is_file()} == before
    assert run.loaded == [1, 2, 3]
    run.write_config(4)
    run.save(4)
    follow(run.follower('sts/b', 'sts/c'), 0)
    assert set(run.rows()) == {
        *ALL,
        (4, 'sts/b', 0.4),
        *((step, 'sts/c', step / 10) for step in (1, 2, 3, 4)),
    }
    assert run.loaded == [1, 2, 3, 1, 2, 3, 4]


def test_changed_settings_or_checkpoints_make_new_rows(run):
    run.save(3)
    follow(run.follower('sts/a'), 0)
    run.settings = {'dtype': 'bfloat16'}
    other = run.follower('sts/a')
    follow(other, 0)
    run.settings, first = {'dtype': 'float32'}, run.follower('sts/a')
    follow(first, 0)  # already scored, so its rows come before those of the other
    assert find_remeasured_tasks(first.rows, first.row_fingerprints) == ['sts/a']
    assert not find_remeasured_tasks(other.rows, other.row_fingerprints)
    run.settings = {'dtype': 'bfloat16'}
    run.delete(3)
    run.save(3, 0.9)  # another training in the same directory
    follow(run.follower('sts/a'), 0)
    assert run.rows() == [(3, 'sts/a', 0.3), (3, 'sts/a', 0.3), (3, 'sts/a', 0.9)]


def test_deleted_checkpoints_are_reported_and_skipped(run, capsys):
    """Deletes a checkpoint before its turn, one while it is loaded, and one between two passes."""
    for step in (1, 2, 3):
        run.save(step)
    (run.path / 'checkpoints' / '4.orbax-checkpoint-tmp-9').mkdir()  # still being written
    load, follower = run.load, run.follower('sts/a')

    def deleted(step: int):
        if step == 2:
            run.delete(2)
        if step == 1:
            run.delete(3)
            (run.path / 'checkpoints' / '1' / 'number').write_text('')  # half deleted
        return load(step)

    follower.load = deleted
    assert follower.score_new_checkpoints()
    run.delete(1)
    run.save(3)
    follower.load = load
    assert not follower.score_new_checkpoints()
    out = capsys.readouterr().out
    assert [
        out.count(f'checkpoint {step} was deleted before it was scored') for step in (1, 2, 3)
    ] == [1, 1, 1]
    assert run.rows() == [(3, 'sts/a', 0.3)]


def test_last_checkpoint_saved_during_a_deletion_is_scored(run):
    run.save(2)
    load, follower = run.load, run.follower('sts/a')

    def replaced(step: int):
        if step == 2:
            run.delete(2)
            run.save(3)
        return load(step)

    follower.load = replaced
    assert follow(follower, 0, lambda seconds: None) == 'training ended at step 3'
    assert run.rows() == [(3, 'sts/a', 0.3)]


def test_unreadable_checkpoint_is_tried_twice_and_skipped(run, capsys):
    run.save(1)
    run.save(3)
    (run.path / 'checkpoints' / '1' / 'number').write_text('damaged')
    assert follow(run.follower('sts/a'), 0, lambda seconds: None) == 'training ended at step 3'
    assert run.rows() == [(3, 'sts/a', 0.3)]
    assert capsys.readouterr().out.count('1 is damaged; not scored') == 1


def test_task_of_a_killed_program_is_taken_over(run):
    run.save(3)
    claim = try_lock(make_claim_path(run.path, 'run@3', 'sts/a'))
    assert claim.__enter__()
    released = []

    def sleep(seconds: float) -> None:
        assert run.rows() == [(3, 'sts/b', 0.3)]  # training has ended, but a row is missing
        claim.__exit__(None, None, None)
        released.append(True)

    follow(run.follower(), 0, sleep)
    assert released == [True]
    assert run.rows() == [(3, 'sts/b', 0.3), (3, 'sts/a', 0.3)]
    assert run.loaded == [3, 3]


@pytest.mark.parametrize(
    'place', ['Task.run', 'store_result', 'add_row', 'write_points', 'write_best', 'keep_best']
)
def test_kill_at_any_point_leaves_the_same_results(run, tmp_path, monkeypatch, place):
    """Simulates a kill with an exception that is not caught. Finally, all files are equal to those
    of a program that was not killed.
    """
    for step in (1, 2, 3):
        run.save(step)
    whole = Run(tmp_path / 'whole' / 'run') if (tmp_path / 'whole').mkdir() is None else None
    shutil.copytree(run.path / 'checkpoints', whole.path / 'checkpoints')
    follow(whole.follower(), 0)
    owner, name = (Score, 'run') if place == 'Task.run' else (follow_module, place)
    done, calls = getattr(owner, name), []
    for before_or_after in ('before', 'after'):
        for kill_at in (1, 2, 3):
            calls.clear()

            def killed(*arguments, when=before_or_after, kill_at=kill_at, **named):
                calls.append(1)
                if len(calls) == kill_at and when == 'before':
                    raise KeyboardInterrupt
                result = done(*arguments, **named)
                if len(calls) == kill_at:
                    raise KeyboardInterrupt
                return result

            with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, StopIteration)):
                patch.setattr(owner, name, killed)
                follow(run.follower(), 0)
                raise StopIteration  # everything was done before the kill
    follow(run.follower(), 0)
    assert sorted(run.rows()) == sorted(whole.rows()) == ALL
    assert (run.path / 'best.json').read_bytes() == (whole.path / 'best.json').read_bytes()
    assert len(events(RunDir(run.path).evaluation_events.read_bytes())) == 1 + len(ALL)
    assert [path.name for path in (run.path / 'best').iterdir()] == ['3']
    assert not (run.path / 'vectors').exists()


def test_checkpoints_do_not_share_embeddings(run, tmp_path):
    """Tasks on the same sentences share their embeddings, but only for the same model."""
    (tmp_path / 'senteval' / 'SUBJ').mkdir(parents=True)
    for name in ('subj.objective', 'subj.subjective'):
        (tmp_path / 'senteval' / 'SUBJ' / name).write_text('a text\n')
    data = SentEvalSet('SUBJ', tmp_path / 'senteval')

    class Shared(Score):
        def run(self, embed) -> Result:
            return Result(
                'accuracy', {'accuracy': float(data.compute_vectors(embed, 'all')[0][0, 0])}, 1, {}
            )

    for step in (1, 2, 3):
        run.save(step)
    follower = run.follower()
    tasks = [Shared('sts/a'), Shared('sts/b')]
    follower.tasks = lambda settings: tasks
    follow(follower, 0)
    assert run.rows() == ALL


def test_follower_reports_waiting_and_ends_after_the_timeout(run, capsys):
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += 60
        if now[0] == 120:
            run.save(1)

    why = follow(run.follower('sts/a'), 600, sleep, lambda: now[0])
    assert why == 'stopped following: no new checkpoint for 10 min, at step 1 of 3'
    assert run.rows() == [(1, 'sts/a', 0.1)]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('waiting')]
    assert [line.split(':')[0] for line in lines] == [
        f'waiting for {minutes} min' for minutes in (1, 1, 2, 4, 8)
    ]
    activity = 'the trainer has not written any metrics yet'
    assert f'no checkpoint after step 1 of 3 yet; {activity}' in lines[-1]
    (run.path / 'metrics.jsonl').touch()
    follow(run.follower('sts/a'), 120, sleep, lambda: now[0])
    assert 'the trainer wrote its last row 0 min ago' in capsys.readouterr().out


def test_unusable_data_end_the_program_with_a_message(run):
    run.save(1)
    follower = run.follower('sts/a')

    def broken(embed):
        raise UserError('corpus.jsonl:3: not JSON')

    task = Score('sts/a')
    task.run = broken
    follower.tasks = lambda settings: [task]
    with pytest.raises(UserError, match='corpus.jsonl:3'):
        follow(follower, 0)
    (run.path / 'config.json').write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match='config.json: not the config of a run'):
        follow(run.follower('sts/a'), 0)


def test_best_checkpoint_survives_deletion_while_scored(run):
    """A checkpoint that another program is scoring is kept as well, until that program ends."""
    other = try_lock(run.path / '.claims' / 'scoring-1-elsewhere-7')
    assert other.__enter__()
    run.save(1)
    run.save(2, 0.9)
    follower, kept = run.follower('sts/a'), []

    class Deleted(Score):
        def run(self, embed) -> Result:
            shutil.rmtree(run.path / 'checkpoints')
            kept.extend(sorted(path.name for path in (run.path / 'best').iterdir()))
            return super().run(embed)

    run_2 = run.follower('sts/a')
    run_2.tasks = lambda settings: [Deleted('sts/a') if settings['step'] == 2 else Score('sts/a')]
    run_2.score_new_checkpoints()
    assert kept == ['1', '2'] and run.rows() == [(1, 'sts/a', 0.1), (2, 'sts/a', 0.9)]
    other.__exit__(None, None, None)
    follower.update_derived_files()
    assert [path.name for path in (run.path / 'best').iterdir()] == ['2']


def test_lost_best_checkpoint_is_reported_once(run, capsys):
    run.save(1, 0.9)
    run.save(2)
    follower = run.follower('sts/a', keep=False)
    follower.score_new_checkpoints()
    run.delete(1)
    run.save(3)
    follower.score_new_checkpoints()
    out = capsys.readouterr().out
    assert out.count('the best checkpoint by sts/a, step 1, is not kept') == 1
    assert not (run.path / 'best').exists()

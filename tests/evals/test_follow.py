"""Following a run: what is scored, when it ends, and what a kill or a deletion leaves."""

import json
import shutil

import numpy as np
import pytest

from cpt_jax.benchmark_data.senteval import SentEvalSet
from cpt_jax.embed.function import embed_texts
from cpt_jax.evals import follow as follow_module
from cpt_jax.evals.follow import Follower, follow
from cpt_jax.evals.run import claim_path
from cpt_jax.evals.store.embedding_cache import EmbeddingCache
from cpt_jax.evals.store.history import measured_otherwise, read_rows
from cpt_jax.evals.task import Result
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.locks import claimed
from tests.storage.test_event_files import events


class Score:
    """A task whose score is the first number of a text's vector."""

    __hash__ = None  # as of tasks with lists in them

    def __init__(self, name: str):
        self.name = name

    def run(self, embed) -> Result:
        score = float(embed_texts(embed, ['a text'], 'x')[0, 0])
        return Result('spearman', {'spearman': score, 'pearson': -score}, 7, {'libraries': {}})


class Run:
    """A run's directory whose checkpoints are files with one number, and programs that follow it.

    Attributes:
      loaded: steps in the order in which their checkpoints were.
      settings: of the embedder.
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

    def delete(self, step: int) -> None:
        shutil.rmtree(self.path / 'checkpoints' / str(step))

    def _number(self, step: int) -> float:
        try:
            return float((self.path / 'checkpoints' / str(step) / 'number').read_text())
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f'{step} is damaged') from error

    def settings_of(self, step: int) -> dict:
        return self.settings | {
            'step': step,
            'saved': f'2026-{step:02d} {self._number(step)}',
            'code': str(step),
        }

    def load(self, step: int):
        number = self._number(step)
        self.loaded.append(step)
        cache = EmbeddingCache(self.path / 'vectors')
        return cache.of_model(
            lambda texts, side: np.full((len(texts), 2), number, np.float32),
            f'run@{step}',
            self.settings_of(step),
        )

    def follower(self, *names: str, **changes) -> Follower:
        names = names or ('sts/a', 'sts/b')
        prints = dict.fromkeys(names, 'f')
        return Follower(
            self.path,
            lambda settings: [Score(name) for name in names],
            prints,
            self.settings_of,
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
    """Reports take a second each, and have tests of their own."""
    monkeypatch.setattr(follow_module, 'write_report', lambda output, metrics: None)
    return Run(tmp_path / 'run')


ALL = [(step, task, step / 10) for step in (1, 2, 3) for task in ('sts/a', 'sts/b')]


def test_each_checkpoint_is_scored_once_as_it_comes_until_the_last(run, capsys):
    run.save(1)
    upcoming = [lambda: run.save(2), lambda: None, lambda: run.save(3)]
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        upcoming.pop(0)()

    assert follow(run.follower(), 0, sleep) == 'training ended at step 3'
    assert (
        run.rows() == ALL and run.loaded == [1, 2, 3] and slept == [follow_module.POLL_SECONDS] * 3
    )
    assert json.loads((run.path / 'best.json').read_text()) == dict.fromkeys(
        ('sts/a', 'sts/b'), {'step': 3, 'score': pytest.approx(0.3)}
    )
    assert [path.name for path in (run.path / 'best').iterdir()] == ['3']
    found = events(RunDir(run.path).evaluation_events.read_bytes())[1:]
    assert [(event.step, [value.tag for value in event.summary.value]) for event in found] == [
        (step, [f'{task}/spearman', f'{task}/pearson']) for step, task, _ in ALL
    ]
    results = json.loads((run.path / 'results.json').read_text())
    assert (
        results['model'] == 'run@3'
        and results['settings']['step'] == 3
        and list(results['tasks']) == ['sts/a', 'sts/b']
    )
    assert not (run.path / 'vectors').exists() and [
        path.name for path in (run.path / '.claims').iterdir()
    ] == ['results']


def test_the_same_command_again_adds_nothing_and_more_steps_add_theirs(run):
    for step in (1, 2, 3):
        run.save(step)
    follow(run.follower(), 0)
    before = {path: path.read_bytes() for path in run.path.rglob('*') if path.is_file()}
    again = run.follower()
    again.tasks = lambda settings: pytest.fail('looks for data, and has nothing to score')
    follow(again, 0)
    assert {
        path: path.read_bytes() for path in run.path.rglob('*') if path.is_file()
    } == before and run.loaded == [1, 2, 3]
    run.write_config(4)
    run.save(4)
    follow(run.follower('sts/b', 'sts/c'), 0)
    assert set(run.rows()) == {
        *ALL,
        (4, 'sts/b', 0.4),
        *((step, 'sts/c', step / 10) for step in (1, 2, 3, 4)),
    }
    assert run.loaded == [1, 2, 3, 1, 2, 3, 4]


def test_what_a_score_depends_on_makes_another_row(run):
    run.save(3)
    follow(run.follower('sts/a'), 0)
    run.settings = {'dtype': 'bfloat16'}
    other = run.follower('sts/a')
    follow(other, 0)
    run.settings, first = {'dtype': 'float32'}, run.follower('sts/a')
    follow(first, 0)  # measured already: its rows stand before those of the other
    assert measured_otherwise(first.rows, first.asked) == ['sts/a'] and not measured_otherwise(
        other.rows, other.asked
    )
    run.settings = {'dtype': 'bfloat16'}
    run.delete(3)
    run.save(3, 0.9)  # another training in the same directory
    follow(run.follower('sts/a'), 0)
    assert run.rows() == [(3, 'sts/a', 0.3), (3, 'sts/a', 0.3), (3, 'sts/a', 0.9)]


def test_checkpoints_that_disappear_are_told_and_passed_over(run, capsys):
    """One between the list and its turn, one while it is loaded, one between two looks."""
    for step in (1, 2, 3):
        run.save(step)
    (run.path / 'checkpoints' / '4.orbax-checkpoint-tmp-9').mkdir()  # being written
    load, follower = run.load, run.follower('sts/a')

    def deleted(step: int):
        if step == 2:
            run.delete(2)
        if step == 1:
            run.delete(3)
            (run.path / 'checkpoints' / '1' / 'number').write_text('')  # half deleted
        return load(step)

    follower.load = deleted
    assert follower.go_through()
    run.delete(1)
    run.save(3)
    follower.load = load
    assert not follower.go_through()
    out = capsys.readouterr().out
    assert [
        out.count(f'checkpoint {step} was deleted before it was scored') for step in (1, 2, 3)
    ] == [1, 1, 1]
    assert run.rows() == [(3, 'sts/a', 0.3)]


def test_the_last_checkpoint_that_comes_while_one_before_it_goes_is_scored(run):
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


def test_a_checkpoint_that_cannot_be_read_is_tried_twice_told_and_left(run, capsys):
    run.save(1)
    run.save(3)
    (run.path / 'checkpoints' / '1' / 'number').write_text('damaged')
    assert follow(run.follower('sts/a'), 0, lambda seconds: None) == 'training ended at step 3'
    assert run.rows() == [(3, 'sts/a', 0.3)]
    assert capsys.readouterr().out.count('1 is damaged; not scored') == 1


def test_what_another_program_is_scoring_is_left_to_it_and_taken_over_when_it_is_killed(run):
    run.save(3)
    claim = claimed(claim_path(run.path, 'run@3', 'sts/a'))
    assert claim.__enter__()
    released = []

    def sleep(seconds: float) -> None:
        assert run.rows() == [(3, 'sts/b', 0.3)]  # the training has ended, but a row is missing
        claim.__exit__(None, None, None)
        released.append(True)

    follow(run.follower(), 0, sleep)
    assert (
        released == [True]
        and run.rows() == [(3, 'sts/b', 0.3), (3, 'sts/a', 0.3)]
        and run.loaded == [3, 3]
    )


@pytest.mark.parametrize(
    'place', ['Task.run', 'store', 'add_row', 'write_points', 'write_best', 'keep_best']
)
def test_killed_anywhere_it_ends_as_if_it_was_not(run, tmp_path, monkeypatch, place):
    """A kill looks like an exception that nothing catches. Afterwards all files are as of a program
    that was left alone.
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
                raise StopIteration  # all was done before it could be killed
    follow(run.follower(), 0)
    assert sorted(run.rows()) == sorted(whole.rows()) == ALL
    assert (run.path / 'best.json').read_bytes() == (whole.path / 'best.json').read_bytes()
    assert len(events(RunDir(run.path).evaluation_events.read_bytes())) == 1 + len(ALL)
    assert [path.name for path in (run.path / 'best').iterdir()] == ['3'] and not (
        run.path / 'vectors'
    ).exists()


def test_a_new_checkpoint_never_gets_the_vectors_of_the_one_before(run, tmp_path):
    """Tasks on the same sentences share their vectors, as long as they are of one model."""
    (tmp_path / 'senteval' / 'SUBJ').mkdir(parents=True)
    for name in ('subj.objective', 'subj.subjective'):
        (tmp_path / 'senteval' / 'SUBJ' / name).write_text('a text\n')
    data = SentEvalSet('SUBJ', tmp_path / 'senteval')

    class Shared(Score):
        def run(self, embed) -> Result:
            return Result(
                'accuracy', {'accuracy': float(data.vectors(embed, 'all')[0][0, 0])}, 1, {}
            )

    for step in (1, 2, 3):
        run.save(step)
    follower = run.follower()
    tasks = [Shared('sts/a'), Shared('sts/b')]
    follower.tasks = lambda settings: tasks
    follow(follower, 0)
    assert run.rows() == ALL


def test_it_waits_says_so_and_ends_after_the_time_out(run, capsys):
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += 60
        if now[0] == 120:
            run.save(1)

    why = follow(run.follower('sts/a'), 600, sleep, lambda: now[0])
    assert (
        why == 'no new checkpoint for 10 min, at step 1 of 3: not followed any longer'
        and run.rows() == [(1, 'sts/a', 0.1)]
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('waiting')]
    assert [line.split(':')[0] for line in lines] == [
        f'waiting for {minutes} min' for minutes in (1, 1, 2, 4, 8)
    ]
    assert 'a checkpoint after step 1 of 3; the trainer has written nothing yet' in lines[-1]
    (run.path / 'metrics.jsonl').touch()
    follow(run.follower('sts/a'), 120, sleep, lambda: now[0])
    assert 'the trainer wrote its last row 0 min ago' in capsys.readouterr().out


def test_what_the_user_gave_wrong_ends_it_with_its_line(run):
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
    with pytest.raises(UserError, match='config.json: not of a run'):
        follow(run.follower('sts/a'), 0)


def test_the_best_checkpoint_stays_when_it_is_deleted_while_it_is_scored(run):
    """And one that somebody else is scoring stays as well, until that program is killed."""
    other = claimed(run.path / '.claims' / 'scoring-1-elsewhere-7')
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
    run_2.go_through()
    assert kept == ['1', '2'] and run.rows() == [(1, 'sts/a', 0.1), (2, 'sts/a', 0.9)]
    other.__exit__(None, None, None)
    follower.bring_up_to_date()
    assert [path.name for path in (run.path / 'best').iterdir()] == ['2']


def test_a_best_checkpoint_that_is_gone_is_told_once(run, capsys):
    run.save(1, 0.9)
    run.save(2)
    follower = run.follower('sts/a', keep=False)
    follower.go_through()
    run.delete(1)
    run.save(3)
    follower.go_through()
    out = capsys.readouterr().out
    assert (
        out.count('the best checkpoint by sts/a, step 1, is not kept') == 1
        and not (run.path / 'best').exists()
    )

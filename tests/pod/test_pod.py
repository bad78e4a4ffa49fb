"""The commands for TPU pods, and what is made of their answers. tests/launch/test_tpu.py runs the
programs.
"""

import pytest

from cpt_jax.pod import commands, workers
from cpt_jax.pod.gcloud import GcloudError
from cpt_jax.pod.record import Pod
from cpt_jax.pod.resume import resume
from cpt_jax.runtime.errors import UserError


def test_several_slices_a_topology_and_further_flags():
    further = {'create_flags': ['--network=n'], 'ssh_flags': ['--tunnel-through-iap']}
    pod = Pod(
        'pod', 'z', 'p', type='v4', topology='4x4x4', runtime_version='r', slices=2, **further
    )
    words = commands.create(pod)
    assert words[:8] == [
        'gcloud',
        'compute',
        'tpus',
        'queued-resources',
        'create',
        'pod',
        '--zone=z',
        '--project=p',
    ]
    assert words[9:] == [
        '--node-count=2',
        '--node-prefix=pod',
        '--type=v4',
        '--topology=4x4x4',
        '--runtime-version=r',
        '--network=n',
    ]
    copy = commands.install(pod, 'checkout', 'jax')[2]
    assert all(
        '--tunnel-through-iap' in command
        for command in (commands.state(pod), commands.log(pod, True), copy)
    )


@pytest.mark.parametrize(
    ('states', 'expected'),
    [
        (['exited 0', 'exited 0'], 'exited 0'),
        (['exited 0', 'running', 'exited 1'], 'running'),
        (['exited 134', 'exited 42', 'gone'], 'exited 42'),
        (['exited 134', 'exited 1', 'exited 42'], 'exited 1'),
        (['exited 0', 'exited 134', 'gone'], 'exited 134'),
        (['idle', 'exited 0'], 'idle'),
        (['not installed', 'gone'], 'gone'),
    ],
)
def test_the_workers_together(states, expected):
    assert workers.together(dict(enumerate(states))) == expected


class Scripted:
    """A cloud that answers what it is told to, and keeps what is asked of it."""

    dry_run, reason = False, 'no quota'

    def __init__(self, *answers: str | None):
        self.pod = Pod('pod', 'z', commit='c', train_flags=[])
        self.answers, self.done = [*answers], []

    def state(self) -> str | None:
        """Of the resource; what a worker says means that it is there."""
        if self.answers[0] == 'broken':
            self.answers.pop(0)
            raise GcloudError('broken')
        there = self.answers[0] is None or self.answers[0].isupper()
        return self.answers.pop(0) if there else 'ACTIVE'

    def workers(self) -> dict[str, str]:
        return {'worker': self.answers.pop(0)}

    def __getattr__(self, name: str):
        return lambda: self.done.append(name)


AGAIN = ['install', 'start']


@pytest.mark.parametrize(
    ('answers', 'status', 'done'),
    [
        (['exited 0'], 0, []),
        (['running', 'exited 0'], 0, []),
        (['idle', 'running', 'gone', 'exited 0'], 0, AGAIN * 2),
        (['exited 1', 'exited 42', 'not installed', 'exited 0'], 0, AGAIN * 3),
        (
            [
                'running',
                'SUSPENDING',
                'SUSPENDED',
                None,
                'PROVISIONING',
                'not installed',
                'exited 0',
            ],
            0,
            ['delete', 'create', *AGAIN],
        ),
        # Other hosts fail with 1 when one is taken away, before gcloud says so; only an end that
        # stays is believed.
        (
            ['running', 'exited 1', 'exited 1', 'SUSPENDED', None, 'idle', 'exited 0'],
            0,
            ['delete', 'create', *AGAIN],
        ),
        (['running', 'exited 1', 'exited 1', 'exited 1'], 1, []),
        (['exited 139', *['exited 139'] * 12], 139, AGAIN * 4),
        (['broken'] * 9 + ['running'] + ['broken'] * 9 + ['exited 0'], 0, []),
    ],
)
def test_a_run_is_brought_to_its_end(answers, status, done):
    cloud = Scripted(*answers)
    assert resume(cloud, forever=True, poll_seconds=0) == status
    assert cloud.done == done and not cloud.answers


def test_what_will_not_come_is_an_error():
    with pytest.raises(UserError, match='pod FAILED .no quota.'):
        resume(Scripted('FAILED', None, 'FAILED'), forever=True, poll_seconds=0)
    with pytest.raises(GcloudError):
        resume(Scripted(*['broken'] * 10), forever=True, poll_seconds=0)


def test_resume_once():
    cloud = Scripted(None, 'WAITING_FOR_RESOURCES', 'idle')
    assert resume(cloud, forever=False, poll_seconds=0) == 0 and cloud.done == ['create', *AGAIN]
    with pytest.raises(GcloudError):
        resume(Scripted('broken'), forever=False, poll_seconds=0)

"""Tests of the commands for TPU pods and of resuming a run.

tests/launch/test_tpu.py runs the programs.
"""

import pytest

from cpt_jax.pod import commands, workers
from cpt_jax.pod.gcloud import GcloudError
from cpt_jax.pod.record import Pod, load_record
from cpt_jax.pod.resume import resume
from cpt_jax.runtime.errors import UserError


@pytest.mark.parametrize('name', ['../../x', '--help', '', 'a/b', 'Pod', 'a-', '1a', 'x' * 64])
def test_name_that_is_a_path_or_a_flag_is_refused(name):
    with pytest.raises(UserError, match='--name .*: must be lowercase letters'):
        load_record(name)


def test_commands_contain_slices_topology_and_extra_flags():
    pod = Pod(
        'pod',
        'z',
        'p',
        type='v4',
        topology='4x4x4',
        runtime_version='r',
        slices=2,
        create_flags=['--network=n'],
        ssh_flags=['--tunnel-through-iap'],
    )
    command = commands.make_create_command(pod)
    assert command[:8] == [
        'gcloud',
        'compute',
        'tpus',
        'queued-resources',
        'create',
        'pod',
        '--zone=z',
        '--project=p',
    ]
    assert command[9:] == [
        '--node-count=2',
        '--node-prefix=pod',
        '--type=v4',
        '--topology=4x4x4',
        '--runtime-version=r',
        '--network=n',
    ]
    copy = commands.make_install_commands(pod, 'checkout', 'jax')[2]
    for command in (
        commands.make_state_query_command(pod),
        commands.make_show_log_command(pod, True),
        copy,
    ):
        assert '--tunnel-through-iap' in command


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
def test_most_serious_worker_state_is_the_state_of_the_run(states, expected):
    assert workers.combine_states(dict(enumerate(states))) == expected


class FakeCloud:
    """A Cloud that returns prepared states and records the actions taken.

    Attributes:
      states: the states that are left, in order: of the queued resource (upper case, or None), of
        a worker (lower case), or 'broken' for a failure of gcloud.
      actions: names of the methods called.
    """

    dry_run = False
    reason = 'no quota'

    def __init__(self, *states: str | None):
        self.pod = Pod('pod', 'z', commit='c', train_flags=[])
        self.states = [*states]
        self.actions = []

    def read_state(self) -> str | None:
        """Returns the next state, or ACTIVE if the next one is a worker's."""
        if self.states[0] == 'broken':
            self.states.pop(0)
            raise GcloudError('broken')
        is_resource_state = self.states[0] is None or self.states[0].isupper()
        return self.states.pop(0) if is_resource_state else 'ACTIVE'

    def read_worker_states(self) -> dict[str, str]:
        return {'worker': self.states.pop(0)}

    def __getattr__(self, name: str):
        return lambda: self.actions.append(name)


RESTART = ['install', 'start']


@pytest.mark.parametrize(
    ('states', 'status', 'actions'),
    [
        (['exited 0'], 0, []),
        (['running', 'exited 0'], 0, []),
        (['idle', 'running', 'gone', 'exited 0'], 0, RESTART * 2),
        (['exited 1', 'exited 42', 'not installed', 'exited 0'], 0, RESTART * 3),
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
            ['delete', 'create', *RESTART],
        ),
        # When a host is preempted, the others exit with 1 before gcloud reports the preemption. A
        # failed exit is final only after three polls.
        (
            ['running', 'exited 1', 'exited 1', 'SUSPENDED', None, 'idle', 'exited 0'],
            0,
            ['delete', 'create', *RESTART],
        ),
        (['running', 'exited 1', 'exited 1', 'exited 1'], 1, []),
        (['exited 139', *['exited 139'] * 12], 139, RESTART * 4),
        (['broken'] * 9 + ['running'] + ['broken'] * 9 + ['exited 0'], 0, []),
    ],
)
def test_run_is_resumed_until_it_ends(states, status, actions):
    cloud = FakeCloud(*states)
    assert resume(cloud, forever=True, poll_seconds=0) == status
    assert cloud.actions == actions
    assert not cloud.states


def test_failed_request_and_repeated_failures_are_errors():
    with pytest.raises(UserError, match='pod FAILED .no quota.'):
        resume(FakeCloud('FAILED', None, 'FAILED'), forever=True, poll_seconds=0)
    with pytest.raises(GcloudError):
        resume(FakeCloud(*['broken'] * 10), forever=True, poll_seconds=0)


def test_resuming_once_ends_when_the_run_runs():
    cloud = FakeCloud(None, 'WAITING_FOR_RESOURCES', 'idle')
    assert resume(cloud, forever=False, poll_seconds=0) == 0
    assert cloud.actions == ['create', *RESTART]
    with pytest.raises(GcloudError):
        resume(FakeCloud('broken'), forever=False, poll_seconds=0)

"""Tests of the commands for TPU pods and of resuming a run.

tests/launch/test_tpu.py runs the programs.
"""

import shlex
import time

import numpy as np
import pytest

from cpt_jax.pod import commands, workers
from cpt_jax.pod.gcloud import Cloud, GcloudError
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
    copy = commands.make_install_commands(pod, 'checkout')[2]
    for command in (
        commands.make_state_query_command(pod),
        commands.make_show_log_command(pod, True),
        copy,
    ):
        assert '--tunnel-through-iap' in command


def test_arguments_of_install_are_those_of_older_scripts():
    """resume.py installs the pod's commit again, so on_worker.sh can be older than this code.

    Since the first of them: install REQUIREMENT [BUCKET FOLDER].
    """
    for mount, expected in (({}, []), ({'bucket': 'b', 'mount': '/m'}, ['b', '/m'])):
        command = commands.make_install_commands(Pod('pod', 'z', **mount), 'checkout')[-1][-1]
        assert command.endswith(f' install {shlex.join(["jax[tpu]", *expected])}')


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
    reason_code = '3'

    def __init__(self, *states: str | None):
        self.pod = Pod('pod', 'z', commit='c', program_flags=[])
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
        # first crash is believed after three polls.
        (
            ['running', 'exited 1', 'exited 1', 'SUSPENDED', None, 'idle', 'exited 0'],
            0,
            ['delete', 'create', *RESTART],
        ),
        (['running', 'exited 1', 'exited 1', 'exited 1'], 1, []),
        (['exited 139'] * (1 + 3 + 7 + 19 + 19), 139, RESTART * 4),
        (['broken'] * 30 + ['running'] + ['broken'] * 30 + ['exited 0'], 0, []),
    ],
)
def test_run_is_resumed_until_it_ends(states, status, actions):
    cloud = FakeCloud(*states)
    assert resume(cloud, forever=True, poll_seconds=0) == status
    assert cloud.actions == actions
    assert not cloud.states


def test_failed_request_is_an_error_if_its_reason_is_permanent():
    with pytest.raises(UserError, match='pod FAILED .no quota.: check the request'):
        resume(FakeCloud('FAILED', None, 'FAILED'), forever=True, poll_seconds=0)
    cloud = FakeCloud(None, 'FAILED', None, 'FAILED', None, 'idle', 'exited 0')
    cloud.reason_code = '14'
    assert resume(cloud, forever=True, poll_seconds=0) == 0


class SimulatedCloud:
    """A pod over months of simulated time.

    Every night, gcloud cannot be reached for nine hours. Every day, the run crashes once. Every
    third day, the machines are preempted: their run fails at once, and gcloud reports the
    preemption ten minutes later. The next requests then FAIL for two hours, because no machines
    are free.

    Attributes:
      now: simulated time in seconds.
      refused_at: time from which gcloud refuses every command.
      starts: times at which the run was started.
    """

    dry_run = False
    reason = 'no capacity'
    reason_code = '8'

    def __init__(self, refused_at: float = np.inf):
        self.pod = Pod('pod', 'z', commit='c', program_flags=[])
        self.now = 0.0
        self.refused_at = refused_at
        self.starts = [0.0]
        self._state = 'ACTIVE'
        self._run = 'running'
        self._stockout_end = 0.0
        self._days_of_crashes = set()
        self._days_of_preemptions = set()

    def read_state(self) -> str | None:
        self._pass_time()
        return self._state

    def read_worker_states(self) -> dict[str, str]:
        self._pass_time()
        return {'worker': self._run}

    def create(self) -> None:
        self._pass_time()
        self._state = 'FAILED' if self.now < self._stockout_end else 'ACTIVE'
        self._run = 'not installed'

    def delete(self) -> None:
        self._pass_time()
        self._state = None

    def install(self) -> None:
        self._pass_time()

    def start(self) -> None:
        self._pass_time()
        self._run = 'running'
        self.starts.append(self.now)

    def _pass_time(self) -> None:
        if self.now >= self.refused_at:
            raise GcloudError('ERROR: PERMISSION_DENIED: no access', is_refusal=True)
        day, second = divmod(self.now, 24 * 3600)
        if self.now >= 200 * 24 * 3600:
            self._run = 'exited 0'
        elif second >= 15 * 3600:
            raise GcloudError('no network')
        elif second >= 7200 and day not in self._days_of_crashes:
            self._days_of_crashes.add(day)
            self._run = 'exited 134'
        elif day % 3 == 2 and second >= 9 * 3600 and day not in self._days_of_preemptions:
            self._run = 'exited 134'
            if second >= 9 * 3600 + 600:
                self._days_of_preemptions.add(day)
                self._state = 'SUSPENDED'
                self._stockout_end = self.now + 7200


@pytest.fixture
def simulate(monkeypatch):
    """Returns a function that makes a SimulatedCloud and lets the program sleep in its time."""

    def make(**kwargs) -> SimulatedCloud:
        cloud = SimulatedCloud(**kwargs)

        def sleep(seconds: float) -> None:
            cloud.now += seconds

        monkeypatch.setattr(time, 'sleep', sleep)
        monkeypatch.setattr(time, 'time', lambda: cloud.now)
        return cloud

    return make


def test_run_goes_on_for_200_days(simulate):
    cloud = simulate()
    assert resume(cloud, forever=True, poll_seconds=30.0) == 0
    assert cloud.now < 200 * 24 * 3600 + 1200
    # A crash a day, and 66 preemptions: each run that fails before the preemption is reported is
    # started again on the old machines as well.
    assert 200 + 66 <= len(cloud.starts) <= 200 + 1 + 66 * 6


def test_refusal_ends_the_program_at_once(simulate):
    cloud = simulate(refused_at=10 * 24 * 3600)
    with pytest.raises(GcloudError, match='PERMISSION_DENIED: no access'):
        resume(cloud, forever=True, poll_seconds=30.0)
    assert cloud.now <= 10 * 24 * 3600 + 1200


def test_run_that_crashes_again_and_again_ends(simulate):
    cloud = simulate()
    cloud.start = lambda: cloud.starts.append(cloud.now)  # it fails again
    assert resume(cloud, forever=True, poll_seconds=30.0) == 134
    assert len(cloud.starts) == 4 and cloud.now < 3 * 3600


def test_refusals_of_gcloud_are_recognised(tmp_path, monkeypatch):
    gcloud = tmp_path / 'gcloud'
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    for line, is_refusal in (
        ('ERROR: (gcloud.compute) PERMISSION_DENIED: no access', True),
        ('ERROR: (gcloud.compute) unrecognized arguments: --spott', True),
        ('ERROR: (gcloud.compute) UNAVAILABLE: network', False),
        ('worker 1: PERMISSION_DENIED', False),
    ):
        gcloud.write_text(f'#!/bin/sh\necho "{line}" >&2\nexit 1\n')
        gcloud.chmod(0o755)
        with pytest.raises(GcloudError) as error:
            Cloud(Pod('pod', 'z')).read_state()
        assert error.value.is_refusal == is_refusal


@pytest.mark.parametrize('verb', ['read_state', 'start'])
def test_command_that_hangs_is_killed(verb, tmp_path, monkeypatch):
    (tmp_path / 'gcloud').write_text('#!/bin/sh\necho begun\nsleep 5 & sleep 5\n')
    (tmp_path / 'gcloud').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    monkeypatch.setattr('cpt_jax.pod.gcloud.QUERY_SECONDS', 0.1)
    monkeypatch.setattr('cpt_jax.pod.gcloud.ACTION_SECONDS', 0.1)
    with pytest.raises(GcloudError, match='no end after 0 s of: gcloud compute'):
        getattr(Cloud(Pod('pod', 'z', program_flags=[])), verb)()


def test_resuming_once_ends_when_the_run_runs():
    cloud = FakeCloud(None, 'WAITING_FOR_RESOURCES', 'idle')
    assert resume(cloud, forever=False, poll_seconds=0) == 0
    assert cloud.actions == ['create', *RESTART]
    with pytest.raises(GcloudError):
        resume(FakeCloud('broken'), forever=False, poll_seconds=0)

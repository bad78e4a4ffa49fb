"""Resumes a pod's run after preemptions, once or until it ends."""

import time
from collections.abc import Callable

from cpt_jax.pod import workers
from cpt_jax.pod.gcloud import ACTIVE, FAILED, SUSPENDED, Cloud, GcloudError, StatusPrinter
from cpt_jax.runtime.errors import UserError

# A crash is believed only if this many further polls also show it, because when a host is
# preempted, the other hosts fail before gcloud reports the preemption. The number is three times as
# high for each earlier crash within CRASH_WINDOW_SECONDS, up to the second one.
CONFIRMATIONS = 2
# A run is started again after this many crashes (for example by a signal) within this time, so that
# a pod that loses a host every few days goes on for months, and a run that cannot work ends.
MAX_CRASHES = 3
CRASH_WINDOW_SECONDS = 24 * 3600
# A preemption reported so soon after a crash has caused it: the crash does not count.
LATE_REPORT_SECONDS = 30 * 60
MAX_PAUSE_SECONDS = 10 * 60  # pauses between attempts double up to this length
PENDING = 'pending'  # the machines or the run are not ready yet
# google.rpc.Code of a FAILED request that will not succeed later either: INVALID_ARGUMENT,
# NOT_FOUND, PERMISSION_DENIED, FAILED_PRECONDITION, UNIMPLEMENTED and UNAUTHENTICATED.
_PERMANENT_CODES = ('3', '5', '7', '9', '12', '16')


def resume(cloud: Cloud, forever: bool, poll_seconds: float) -> int:
    """Resumes the run of a pod.

    Args:
      cloud: the pod.
      forever: whether to resume it again after each preemption until it ends, and not only until
        it runs.
      poll_seconds: seconds between two polls.

    Returns:
      The exit status of the run, or 0 if it runs.

    Raises:
      UserError: nothing was started on the pod, or its request FAILED; with `forever`, only if the
        reason is permanent.
      GcloudError: gcloud failed; with `forever`, only if it refused the command.
    """
    if cloud.pod.program_flags is None or not cloud.pod.commit:
        raise UserError(
            f'nothing was started on {cloud.pod.name} yet: run install.py, then start.py'
        )
    if cloud.dry_run:
        _print_commands(cloud)
        return 0
    show = StatusPrinter()
    supervisor = _Supervisor(cloud, show)
    pause = poll_seconds
    while True:
        try:
            state = supervisor.poll_and_act()
            pause = poll_seconds
        except GcloudError as error:
            if not forever or error.is_refusal:
                show.end()
                raise
            state = PENDING
            show(f'trying again: {error}')
            pause = min(2 * pause, max(poll_seconds, MAX_PAUSE_SECONDS))
        if state.startswith('exited '):
            show.end()
            return workers.to_exit_status(state)
        if state == workers.RUNNING and not forever:
            show.end()
            return 0
        time.sleep(pause)


class _Supervisor:
    """Takes one action per step, chosen from the current state of the pod.

    It keeps no state of its own that must survive, so the program can be stopped and started again
    at any time.
    """

    def __init__(self, cloud: Cloud, show: StatusPrinter):
        self._cloud = cloud
        self._show = show
        self._has_created = False
        # Whether this program has started the run, or has seen it running or done. An exit before
        # that is not a failure, but the reason to resume.
        self._has_run = False
        self._failed_polls = 0
        # Whether the run is to be started again, also if an attempt fails: the crash is counted.
        self._is_restart_due = False
        self._crash_times: list[float] = []

    def poll_and_act(self) -> str:
        """Polls the pod and takes the next action.

        Returns:
          PENDING, `running`, or `exited N` if the run has ended and is not to be started again.
        """
        cloud, name = self._cloud, self._cloud.pod.name
        state = cloud.read_state()
        if state == FAILED and self._has_created:
            self._handle_failed_request()
        if state != ACTIVE:
            self._forget_late_crashes()
        if state is None:
            self._run_actions(f'{name}: requested again', cloud.create)
            self._has_created = True
        elif state in (FAILED, SUSPENDED):
            self._run_actions(f'{name}: {state}, deleted', cloud.delete)
        elif state != ACTIVE:
            self._show(f'{name}: {state}')
        else:
            self._has_created = False
            return self._supervise_run()
        self._failed_polls = 0
        self._is_restart_due = False
        return PENDING

    def _supervise_run(self) -> str:
        state = workers.combine_states(self._cloud.read_worker_states())
        self._show(f'{self._cloud.pod.name}: {state}')
        if state in (workers.RUNNING, workers.DONE):
            self._has_run = True
            self._failed_polls = 0
            self._is_restart_due = False
            return state
        has_failed = state.startswith('exited ') and state != workers.PREEMPTED
        if has_failed and self._has_run and not self._is_restart_due:
            self._failed_polls += 1
            crashes = len(self._list_recent_crashes())
            if self._failed_polls <= CONFIRMATIONS * 3 ** min(crashes, 2):
                return PENDING
            if state == workers.INVALID_INPUT or crashes == MAX_CRASHES:
                return state
            self._crash_times.append(time.time())
            self._is_restart_due = True
        name = self._cloud.pod.name
        self._run_actions(f'{name}: started again', self._cloud.install, self._cloud.start)
        self._has_run = True
        self._failed_polls = 0
        self._is_restart_due = False
        return workers.RUNNING

    def _handle_failed_request(self) -> None:
        """Deletes a request of this program that FAILED and may be repeated.

        Raises:
          UserError: the reason is permanent.
          GcloudError: it is not, so the next request has to wait.
        """
        cloud = self._cloud
        text = f'{cloud.pod.name} FAILED ({cloud.reason or "no reason given"})'
        if cloud.reason_code in _PERMANENT_CODES:
            raise UserError(f'{text}: check the request in {cloud.pod.get_path(".json")}')
        self._run_actions(f'{text}, deleted', cloud.delete)
        self._has_created = False
        raise GcloudError(text)

    def _list_recent_crashes(self) -> list[float]:
        """Returns the times of the crashes within CRASH_WINDOW_SECONDS."""
        now = time.time()
        return [then for then in self._crash_times if now - then < CRASH_WINDOW_SECONDS]

    def _forget_late_crashes(self) -> None:
        """Drops the crashes that a preemption caused which gcloud reports only now."""
        now = time.time()
        self._crash_times = [then for then in self._crash_times if now - then > LATE_REPORT_SECONDS]

    def _run_actions(self, text: str, *actions: Callable[[], None]) -> None:
        self._show(text)
        self._show.end()  # because the actions print their own lines
        for action in actions:
            action()


def _print_commands(cloud: Cloud) -> None:
    cloud.print_note('the state of the queued resource')
    cloud.read_state()
    cloud.print_note('only if it is SUSPENDED or FAILED')
    cloud.delete()
    cloud.print_note('only if it was deleted, now or before; then poll until it is ACTIVE')
    cloud.create()
    cloud.print_note('only if the run is not running')
    cloud.read_worker_states()
    cloud.install()
    cloud.start()

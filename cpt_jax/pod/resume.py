"""Resumes a pod's run after preemptions, once or until it ends."""

import time
from collections.abc import Callable

from cpt_jax.pod import workers
from cpt_jax.pod.gcloud import ACTIVE, FAILED, SUSPENDED, Cloud, GcloudError, StatusPrinter
from cpt_jax.runtime.errors import UserError

# Number of consecutive failures of gcloud that end the program. With the default of 30 s between
# polls, the program ends after five minutes without network.
MAX_FAILURES = 10
# A failed exit is final only if this many further polls also show it. When a host is preempted, the
# other hosts fail before gcloud reports the preemption.
CONFIRMATIONS = 2
MAX_CRASHES = 3  # maximum crashes (for example by a signal) after which the run is restarted
PENDING = 'pending'  # the machines or the run are not ready yet


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
      UserError: nothing was started on the pod, or its request FAILED.
      GcloudError: gcloud failed; with `forever`, MAX_FAILURES times in succession.
    """
    if cloud.pod.train_flags is None or not cloud.pod.commit:
        raise UserError(
            f'nothing was started on {cloud.pod.name} yet: run install.py, then start.py'
        )
    if cloud.dry_run:
        _print_commands(cloud)
        return 0
    show = StatusPrinter()
    supervisor = _Supervisor(cloud, show)
    failures = 0
    while True:
        try:
            state = supervisor.poll_and_act()
            failures = 0
        except GcloudError as error:
            failures += 1
            if not forever or failures == MAX_FAILURES:
                raise
            state = PENDING
            show(f'trying again: {error}')
        if state.startswith('exited '):
            show.end()
            return workers.to_exit_status(state)
        if state == workers.RUNNING and not forever:
            show.end()
            return 0
        time.sleep(poll_seconds)


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
        self._crashes = 0

    def poll_and_act(self) -> str:
        """Polls the pod and takes the next action.

        Returns:
          PENDING, `running`, or `exited N` if the run has ended and is not to be started again.
        """
        cloud, name = self._cloud, self._cloud.pod.name
        state = cloud.read_state()
        if state == FAILED and self._has_created:
            raise UserError(
                f'{name} FAILED ({cloud.reason or "no reason given"}): check the request in '
                f'{cloud.pod.get_path(".json")}'
            )
        if state is None:
            self._run_actions(f'{name}: requested again', cloud.create)
            self._has_created = True
        elif state in (FAILED, SUSPENDED):
            self._run_actions(f'{name}: {state}, deleted', cloud.delete)
        elif state != ACTIVE:
            self._show(f'{name}: {state}')
        else:
            return self._supervise_run()
        self._failed_polls = 0
        return PENDING

    def _supervise_run(self) -> str:
        state = workers.combine_states(self._cloud.read_worker_states())
        self._show(f'{self._cloud.pod.name}: {state}')
        if state in (workers.RUNNING, workers.DONE):
            self._has_run = True
            self._failed_polls = 0
            return state
        has_failed = state.startswith('exited ') and state != workers.PREEMPTED
        if has_failed and self._has_run:
            self._failed_polls += 1
            if self._failed_polls <= CONFIRMATIONS:
                return PENDING
            self._crashes += 1
            if state == workers.INVALID_INPUT or self._crashes > MAX_CRASHES:
                return state
        name = self._cloud.pod.name
        self._run_actions(f'{name}: started again', self._cloud.install, self._cloud.start)
        self._has_run = True
        self._failed_polls = 0
        return workers.RUNNING

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

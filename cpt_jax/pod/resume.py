"""Brings a pod's run to its end, over preemptions."""

import time
from collections.abc import Callable

from cpt_jax.pod import workers
from cpt_jax.pod.gcloud import ACTIVE, FAILED, SUSPENDED, Cloud, GcloudError, Progress
from cpt_jax.runtime.errors import UserError

# Of gcloud in succession: with half a minute between them, five minutes without network.
FAILURES = 10
# Looks until an end that is neither 0 nor 42 is believed: when a host is preempted, others fail
# before gcloud says why.
DOUBTS = 2
CRASHES = 3  # ends by a signal and the like after which the run is started again
UNDER_WAY = 'under way'  # machines or programs are on their way to running


def resume(cloud: Cloud, forever: bool, poll_seconds: float) -> int:
    """Goes on with the run until it runs again, or forever: until it ends. Returns the run's exit
    status, 0 where it runs.
    """
    if cloud.pod.train_flags is None or not cloud.pod.commit:
        raise UserError(f'nothing was started on {cloud.pod.name} yet: install.py, then start.py')
    if cloud.dry_run:
        _dry_run(cloud)
        return 0
    show = Progress()
    keeper, failures = _Keeper(cloud, show), 0
    while True:
        try:
            state = keeper.look()
            failures = 0
        except GcloudError as error:
            failures += 1
            if not forever or failures == FAILURES:
                raise
            state = UNDER_WAY
            show(f'another try: {error}')
        if state.startswith('exited ') or (state == workers.RUNNING and not forever):
            show.end()
            return workers.exit_status(state) if state != workers.RUNNING else 0
        time.sleep(poll_seconds)


class _Keeper:
    """Looks how things stand and does the next thing, one at a time, so that it may be stopped and
    begun again anywhere.
    """

    def __init__(self, cloud: Cloud, show: Progress):
        self._cloud, self._show = cloud, show
        self._created = False
        # Has it run under these eyes? How it ended before is what this command was given for.
        self._seen = False
        self._doubts = self._crashes = 0

    def look(self) -> str:
        """UNDER_WAY, `running`, or `exited N` for good."""
        cloud, name = self._cloud, self._cloud.pod.name
        state = cloud.state()
        if state == FAILED and self._created:
            raise UserError(
                f'{name} FAILED ({cloud.reason or "no reason given"}): see what is asked for in '
                f'{cloud.pod.file(".json")}'
            )
        if state is None:
            self._do(f'{name}: asked for again', cloud.create)
            self._created = True
        elif state in (FAILED, SUSPENDED):
            self._do(f'{name}: {state}, deleted', cloud.delete)
        elif state != ACTIVE:
            self._show(f'{name}: {state}')
        else:
            return self._look_at_run()
        self._doubts = 0
        return UNDER_WAY

    def _look_at_run(self) -> str:
        state = workers.together(self._cloud.workers())
        self._show(f'{self._cloud.pod.name}: {state}')
        if state in (workers.RUNNING, workers.ENDED):
            self._seen, self._doubts = True, 0
            return state
        failed = state.startswith('exited ') and state != workers.PREEMPTED
        if failed and self._seen:
            self._doubts += 1
            if self._doubts <= DOUBTS:
                return UNDER_WAY
            self._crashes += 1
            if state == workers.WRONG or self._crashes > CRASHES:
                return state
        self._do(f'{self._cloud.pod.name}: started again', self._cloud.install, self._cloud.start)
        self._seen, self._doubts = True, 0
        return workers.RUNNING

    def _do(self, text: str, *actions: Callable[[], None]) -> None:
        self._show(text)
        self._show.end()  # what follows writes lines of its own
        for action in actions:
            action()


def _dry_run(cloud: Cloud) -> None:
    cloud.remark('how the queued resource stands')
    cloud.state()
    cloud.remark('only where it is SUSPENDED or FAILED')
    cloud.delete()
    cloud.remark(
        'only where it was deleted, now or before; then it is looked at until it is ACTIVE'
    )
    cloud.create()
    cloud.remark('only where the run does not run')
    cloud.workers()
    cloud.install()
    cloud.start()

"""Shows the end of a pod run's log (the first worker's), and how the run stands on every worker.

Example:
  python launch/tpu/watch.py --name cpt-l --follow

Ends with the run's own exit status (0 done, 1 something given is wrong, 42 preempted with
everything saved, 128 + n killed by signal n); 42 also where the machines were taken away; 3 while
it runs; 4 where nothing runs and nothing says how it ended. With --follow it shows what is added to
the log, and ends when the run does.
"""

import time

from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.pod import gcloud, workers
from cpt_jax.runtime.errors import EXIT_PREEMPTED, UserError

_CLOUD = gcloud.define_flags()
_FOLLOW = flags.DEFINE_bool('follow', False, 'Go on until the run ends.')
_POLL_SECONDS = flags.DEFINE_float(
    'poll_seconds', 30.0, 'With --follow: until another try where ssh failed.', lower_bound=0.0
)
flags.adopt_module_key_flags(gcloud)


def main() -> int:
    cloud = _CLOUD()
    try:
        while True:
            status = _look(cloud)
            if cloud.dry_run or not _FOLLOW.value or status != workers.exit_status(workers.RUNNING):
                return status
            time.sleep(_POLL_SECONDS.value)
    except KeyboardInterrupt:
        print('\nthe run goes on')
        return 130


def _look(cloud: gcloud.Cloud) -> int:
    """Shows the log and the workers once; the status to end with."""
    name, state = cloud.pod.name, cloud.state()
    if state != gcloud.ACTIVE and not cloud.dry_run:
        if state is None:
            raise UserError(
                f'there is no queued resource {name} in {cloud.pod.zone}: resume.py asks for it '
                f'again, create.py for a new one'
            )
        print(f'{name}: {state}' + (f' ({cloud.reason})' if cloud.reason else ''))
        return (
            EXIT_PREEMPTED
            if state in (gcloud.SUSPENDING, gcloud.SUSPENDED)
            else workers.exit_status(workers.GONE)
        )
    try:
        states = _show(cloud)
    except gcloud.GcloudError as error:
        if not _FOLLOW.value:
            raise
        print(f'another try in {_POLL_SECONDS.value:g} s: {error}', flush=True)
        return workers.exit_status(workers.RUNNING)
    cloud.report(workers.summary(states))
    return workers.exit_status(workers.together(states))


def _show(cloud: gcloud.Cloud) -> dict[str, str]:
    """Shows the log, with --follow for as long as the run runs; how it stands then."""
    states = cloud.workers()
    if workers.NOT_INSTALLED in states.values():
        return states
    follow = _FOLLOW.value and (cloud.dry_run or workers.together(states) == workers.RUNNING)
    cloud.show_log(follow)
    return cloud.workers() if follow else states


def run() -> None:
    """The program launch/tpu/watch.py."""
    run_program(main)

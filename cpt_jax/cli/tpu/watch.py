"""Shows the end of the log of a pod's run (from the first worker) and the state of every worker.

Example:
  python launch/tpu/watch.py --name cpt-l --follow

Exits with the status of the run: 0 (done), 1 (invalid input), 42 (preempted with everything saved),
or 128 + n (killed by signal n). Other statuses are 42 if the machines were preempted, 3 while the
run is active, and 4 if no run is active and its exit status is not known. With --follow, the
program prints new log lines and exits when the run does.
"""

import time

from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.pod import gcloud, workers
from cpt_jax.runtime.errors import EXIT_PREEMPTED, UserError

_read_cloud = gcloud.define_pod_flags()
_FOLLOW = flags.DEFINE_bool('follow', False, 'Print new log lines until the run ends.')
_POLL_SECONDS = flags.DEFINE_float(
    'poll_seconds', 30.0, 'With --follow: seconds between attempts if ssh fails.', lower_bound=0.0
)
flags.adopt_module_key_flags(gcloud)


def main() -> int:
    cloud = _read_cloud()
    try:
        while True:
            status = _show_once(cloud)
            if (
                cloud.dry_run
                or not _FOLLOW.value
                or status != workers.to_exit_status(workers.RUNNING)
            ):
                return status
            time.sleep(_POLL_SECONDS.value)
    except KeyboardInterrupt:
        print('\nthe run continues')
        return 130


def _show_once(cloud: gcloud.Cloud) -> int:
    """Shows the log and the state of the workers; returns the exit status."""
    name = cloud.pod.name
    state = cloud.read_state()
    if state != gcloud.ACTIVE and not cloud.dry_run:
        if state is None:
            raise UserError(
                f'there is no queued resource {name} in {cloud.pod.zone}: run resume.py to request '
                f'it again, or create.py for a new one'
            )
        print(f'{name}: {state}' + (f' ({cloud.reason})' if cloud.reason else ''))
        if state in (gcloud.SUSPENDING, gcloud.SUSPENDED):
            return EXIT_PREEMPTED
        return workers.to_exit_status(workers.GONE)
    try:
        states = _show_log(cloud)
    except gcloud.GcloudError as error:
        if not _FOLLOW.value:
            raise
        print(f'trying again in {_POLL_SECONDS.value:g} s: {error}', flush=True)
        return workers.to_exit_status(workers.RUNNING)
    cloud.report(workers.summarize_states(states))
    return workers.to_exit_status(workers.combine_states(states))


def _show_log(cloud: gcloud.Cloud) -> dict[str, str]:
    """Shows the log, with --follow until the run ends; returns the final state of each worker."""
    states = cloud.read_worker_states()
    if workers.NOT_INSTALLED in states.values():
        return states
    follow = _FOLLOW.value and (cloud.dry_run or workers.combine_states(states) == workers.RUNNING)
    cloud.show_log(follow)
    return cloud.read_worker_states() if follow else states


def run() -> None:
    """Runs the program launch/tpu/watch.py."""
    run_program(main)

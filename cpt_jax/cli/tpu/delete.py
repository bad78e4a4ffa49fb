"""Deletes a pod: the queued resource, its machines and their disks.

Example:
  python launch/tpu/delete.py --name cpt-l

Data in a bucket or on another disk are kept. The program refuses while a run is active, or if the
workers cannot be reached; --force skips this check. runs/pods/NAME.json is kept, so resume.py can
request the machines again.
"""

from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.pod import gcloud, workers
from cpt_jax.runtime.errors import UserError

_read_cloud = gcloud.define_pod_flags()
_FORCE = flags.DEFINE_bool('force', False, 'Delete without checking whether a run is active.')
flags.adopt_module_key_flags(gcloud)


def main() -> None:
    cloud = _read_cloud()
    if not _FORCE.value:
        _check_no_run(cloud)
    cloud.delete()
    cloud.report(f'{cloud.pod.name} is deleted')


def _check_no_run(cloud: gcloud.Cloud) -> None:
    """Raises UserError if a run is active, or if that cannot be determined."""
    name = cloud.pod.name
    state = cloud.read_state()
    if state is None and not cloud.dry_run:
        raise UserError(f'there is no queued resource {name} in {cloud.pod.zone}')
    if state != gcloud.ACTIVE and not cloud.dry_run:
        return
    try:
        running = workers.combine_states(cloud.read_worker_states()) == workers.RUNNING
    except gcloud.GcloudError as error:
        raise UserError(
            f'cannot find out from the workers whether a run is active (--force deletes all the '
            f'same): {error}'
        ) from error
    if running:
        raise UserError(
            f'a run is active on {name}: stop.py saves and ends it; --force deletes all the same'
        )


def run() -> None:
    """Runs the program launch/tpu/delete.py."""
    run_program(main)

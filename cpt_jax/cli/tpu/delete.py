"""Deletes a pod: the queued resource with its machines and their disks. What lies on a bucket or
another disk stays.

Example:
  python launch/tpu/delete.py --name cpt-l

Refuses while a run is going on, or where the workers cannot be asked; --force does not ask.
runs/pods/NAME.json stays, so resume.py can ask for the machines again.
"""

from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.pod import gcloud, workers
from cpt_jax.runtime.errors import UserError

_CLOUD = gcloud.define_flags()
_FORCE = flags.DEFINE_bool('force', False, 'Also under a run.')
flags.adopt_module_key_flags(gcloud)


def main() -> None:
    cloud = _CLOUD()
    if not _FORCE.value:
        _refuse_under_a_run(cloud)
    cloud.delete()
    cloud.report(f'{cloud.pod.name} is deleted')


def _refuse_under_a_run(cloud: gcloud.Cloud) -> None:
    name, state = cloud.pod.name, cloud.state()
    if state is None and not cloud.dry_run:
        raise UserError(f'there is no queued resource {name} in {cloud.pod.zone}')
    if state != gcloud.ACTIVE and not cloud.dry_run:
        return
    try:
        running = workers.together(cloud.workers()) == workers.RUNNING
    except gcloud.GcloudError as error:
        raise UserError(
            f'the workers cannot be asked whether a run is going on (--force deletes all the '
            f'same): {error}'
        ) from error
    if running:
        raise UserError(
            f'a run is going on on {name}: stop.py saves and ends it; --force deletes all the same'
        )


def run() -> None:
    """The program launch/tpu/delete.py."""
    run_program(main)

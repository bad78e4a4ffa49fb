r"""Starts launch/train.py on all workers of a pod, in the background, with the flags after --.

Example:
  python launch/tpu/start.py --name cpt-l -- --config=configs/cpt_l.py \
      --workdir=/mnt/bucket/runs/cpt_l

The workers find each other. Each writes its output to ~/cpt_jax/train.log and its exit status to
~/cpt_jax/exit_status. Only one run can be active on a pod.
"""

import re
import sys

from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.pod import gcloud, workers
from cpt_jax.runtime.errors import UserError

_read_cloud = gcloud.define_pod_flags()
_TRAIN_FLAGS: list[str] = []  # flags after --; filled before absl parses the others
flags.adopt_module_key_flags(gcloud)


def main() -> None:
    cloud = _read_cloud()
    pod = cloud.pod
    pod.train_flags = _TRAIN_FLAGS
    if not any(re.match('--?config(=|$)', flag) for flag in _TRAIN_FLAGS):
        raise UserError(
            'flags of launch/train.py are missing: put them after --, as in -- '
            '--config=configs/cpt_l.py'
        )
    states = cloud.read_worker_states()
    if workers.combine_states(states) == workers.RUNNING:
        raise UserError(
            f'a run is active on {pod.name}: watch.py shows it, stop.py saves and ends it'
        )
    if workers.NOT_INSTALLED in states.values():
        raise UserError(
            f'not every worker of {pod.name} has the code: run install.py --name {pod.name}'
        )
    in_bucket = any('gs://' in flag or (pod.bucket and pod.mount in flag) for flag in _TRAIN_FLAGS)
    if not in_bucket:
        cloud.report(
            'note: --workdir is not on a mounted bucket; unless it is on another shared disk, its '
            'checkpoints are deleted with the machines'
        )
    cloud.start()
    cloud.save()
    cloud.report(f'watch it with watch.py --name {pod.name} --follow')


def run() -> None:
    """Runs the program launch/tpu/start.py."""
    end = sys.argv.index('--') if '--' in sys.argv else len(sys.argv)
    _TRAIN_FLAGS.extend(sys.argv[end + 1 :])
    del sys.argv[end:]
    run_program(main)

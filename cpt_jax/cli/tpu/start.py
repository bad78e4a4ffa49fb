r"""Starts launch/train.py on all workers of a pod, in the background; what stands behind -- are its
flags.

Example:
  python launch/tpu/start.py --name cpt-l -- --config=configs/cpt_l.py \
      --workdir=/mnt/bucket/runs/cpt_l

The workers find each other. Each keeps the output in ~/cpt_jax/train.log and the exit status in
~/cpt_jax/exit_status. While one runs, a second one is refused.
"""

import re
import sys

from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.pod import gcloud, workers
from cpt_jax.runtime.errors import UserError

_CLOUD = gcloud.define_flags()
_TRAIN_FLAGS: list[str] = []  # what stands after --; filled before absl reads the other flags
flags.adopt_module_key_flags(gcloud)


def main() -> None:
    cloud = _CLOUD()
    pod = cloud.pod
    pod.train_flags = _TRAIN_FLAGS
    if not any(re.match('--?config(=|$)', flag) for flag in _TRAIN_FLAGS):
        raise UserError(
            'flags of launch/train.py are missing: put them behind --, as in -- '
            '--config=configs/cpt_l.py'
        )
    states = cloud.workers()
    if workers.together(states) == workers.RUNNING:
        raise UserError(
            f'a run is going on on {pod.name}: watch.py shows it, stop.py saves and ends it'
        )
    if workers.NOT_INSTALLED in states.values():
        raise UserError(
            f'not every worker of {pod.name} has the code: run install.py --name {pod.name}'
        )
    if not (pod.bucket and any(pod.mount in flag for flag in _TRAIN_FLAGS)):
        cloud.report(
            'note: --workdir is not on a mounted bucket; unless it is another shared disk, its '
            'checkpoints go with the machines'
        )
    cloud.start()
    cloud.save()
    cloud.report(f'watch it with watch.py --name {pod.name} --follow')


def run() -> None:
    """The program launch/tpu/start.py."""
    end = sys.argv.index('--') if '--' in sys.argv else len(sys.argv)
    _TRAIN_FLAGS.extend(sys.argv[end + 1 :])
    del sys.argv[end:]
    run_program(main)

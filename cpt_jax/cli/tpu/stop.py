"""Makes the run on a pod save a checkpoint and exit, with SIGTERM on every worker.

Example:
  python launch/tpu/stop.py --name cpt-l

The run exits with status 42, which watch.py shows. A resume.py --forever for this run would start
it again: stop that program first.
"""

from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.pod import gcloud

_read_cloud = gcloud.define_pod_flags()
flags.adopt_module_key_flags(gcloud)


def main() -> None:
    _read_cloud().stop()


def run() -> None:
    """Runs the program launch/tpu/stop.py."""
    run_program(main)

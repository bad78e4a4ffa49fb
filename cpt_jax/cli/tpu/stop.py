"""Asks the run on a pod to save and end: SIGTERM on every worker. It ends with exit status 42,
which watch.py shows.

Example:
  python launch/tpu/stop.py --name cpt-l

A resume.py --forever that is looking after the run would start it again: end that one first.
"""

from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.pod import gcloud

_CLOUD = gcloud.define_flags()
flags.adopt_module_key_flags(gcloud)


def main() -> None:
    _CLOUD().stop()


def run() -> None:
    """The program launch/tpu/stop.py."""
    run_program(main)

"""Asks the run on a pod to save and end: SIGTERM on every worker. It ends with exit status 42, which watch.py shows.

Example: python launch/tpu/stop.py --name cpt-l

A resume.py --forever that is looking after the run would start it again: end that one first.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from absl import flags

from cpt_jax.pod import gcloud
from cpt_jax.program import run_program

_CLOUD = gcloud.define_flags()
flags.adopt_module_key_flags(gcloud)


def main() -> None:
    _CLOUD().stop()


if __name__ == '__main__':
    run_program(main)

"""Resumes a pod's run after a preemption: requests the machines again, installs the same commit and
starts the same program with the same flags.

Example:
  python launch/tpu/resume.py --name cpt-l --forever

With --forever, the program keeps running and repeats this until the run exits with status 0 (done)
or 1 (invalid input), until it crashes for the fourth time within 24 hours, or until gcloud refuses
a command. Without network, it tries again at growing intervals, up to ten minutes. The program may
be stopped and started again at any time. launch/train.py resumes from its latest checkpoint, so its
--workdir must survive the machines: use a bucket or another shared disk.
"""

from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.pod import gcloud
from cpt_jax.pod.resume import resume

_read_cloud = gcloud.define_pod_flags()
_FOREVER = flags.DEFINE_bool(
    'forever', False, 'Keep resuming the run after every preemption, until it ends.'
)
_POLL_SECONDS = flags.DEFINE_float(
    'poll_seconds', 30.0, 'Seconds between queries of the state.', lower_bound=0.0
)
flags.adopt_module_key_flags(gcloud)


def main() -> int:
    try:
        return resume(_read_cloud(), _FOREVER.value, _POLL_SECONDS.value)
    except KeyboardInterrupt:
        print('\nthe run itself continues, but will not be resumed after a preemption')
        return 130


def run() -> None:
    """Runs the program launch/tpu/resume.py."""
    run_program(main)

"""Goes on with a pod's run after a preemption: asks for the machines again, installs the same
commit, starts with the same flags.

Example:
  python launch/tpu/resume.py --name cpt-l --forever

With --forever it stays, and does so again until the run ends with exit status 0 (done) or 1
(something given is wrong); an end by a crash is tried three more times. It may be stopped and begun
again at any time. launch/train.py goes on from its latest checkpoint, so its --workdir has to
outlive the machines: a bucket (install.py --bucket) or another shared disk.
"""

from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.pod import gcloud
from cpt_jax.pod.resume import resume

_CLOUD = gcloud.define_flags()
_FOREVER = flags.DEFINE_bool(
    'forever', False, 'Until the run ends, over any number of preemptions.'
)
_POLL_SECONDS = flags.DEFINE_float('poll_seconds', 30.0, 'How often to look.', lower_bound=0.0)
flags.adopt_module_key_flags(gcloud)


def main() -> int:
    try:
        return resume(_CLOUD(), _FOREVER.value, _POLL_SECONDS.value)
    except KeyboardInterrupt:
        print('\nthe run itself goes on, and nobody looks after it')
        return 130


def run() -> None:
    """The program launch/tpu/resume.py."""
    run_program(main)

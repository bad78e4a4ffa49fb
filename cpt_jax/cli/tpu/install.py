"""Installs this checkout (its HEAD) and the packages it needs on all workers of a pod.

Example:
  python launch/tpu/install.py --name cpt-l --bucket my-bucket

The code goes to ~/cpt_jax/code on every worker, a virtual environment with requirements.txt and
jax[tpu] beside it. With --bucket, a Cloud Storage bucket is mounted by gcsfuse, the same on every
worker: give launch/train.py a --workdir there. Make it with a hierarchical namespace, where
renaming a folder is atomic, as checkpoints want it. Without a bucket, --workdir has to lie on
another shared disk.
"""

from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.pod import gcloud
from cpt_jax.runtime.errors import UserError

_CLOUD = gcloud.define_flags()
_BUCKET = flags.DEFINE_string(
    'bucket', None, 'A Cloud Storage bucket to mount; by default as recorded.'
)
_MOUNT = flags.DEFINE_string('mount', '/mnt/bucket', 'Where it is mounted.')
_ALLOW_DIRTY = flags.DEFINE_bool(
    'allow_dirty', False, 'Install HEAD even where the checkout has changes, which do not go along.'
)
flags.adopt_module_key_flags(gcloud)


def main() -> None:
    cloud = _CLOUD()
    pod = cloud.pod
    if _BUCKET.value is not None:
        pod.bucket, pod.mount = _BUCKET.value.removeprefix('gs://').rstrip('/'), _MOUNT.value
    if '/' in pod.bucket or (pod.bucket and not pod.mount.startswith('/')):
        raise UserError(
            f'--bucket {pod.bucket} --mount {pod.mount}: the name of a bucket alone, and a whole '
            f'path'
        )
    pod.commit = gcloud.head_commit(_ALLOW_DIRTY.value)
    cloud.install()
    cloud.save()
    cloud.report(f'{pod.commit[:12]} is installed on all workers of {pod.name}')


def run() -> None:
    """The program launch/tpu/install.py."""
    run_program(main)

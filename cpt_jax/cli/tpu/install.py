"""Installs this checkout (its HEAD) and the packages it needs on all workers of a pod.

Example:
  python launch/tpu/install.py --name cpt-l --bucket my-bucket

On every worker, the code goes to ~/cpt_jax/code, next to a virtual environment with
requirements.txt, jax[tpu] and the packages for gs://. With --bucket, gcsfuse mounts a Cloud Storage
bucket at the same path on every worker; use a --workdir of launch/train.py on it. The program
checks that the bucket is in the pod's region and has a hierarchical namespace, and that every
worker can write to it; it prints the command that mends what it finds. Without a bucket, --workdir
must be gs://... or on another shared disk.
"""

from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.pod import gcloud
from cpt_jax.pod.bucket import check_bucket
from cpt_jax.runtime.errors import UserError

_read_cloud = gcloud.define_pod_flags()
_BUCKET = flags.DEFINE_string(
    'bucket', None, 'Cloud Storage bucket to mount. Default: the recorded bucket.'
)
_MOUNT = flags.DEFINE_string('mount', '/mnt/bucket', 'Path at which the bucket is mounted.')
_ALLOW_DIRTY = flags.DEFINE_bool(
    'allow_dirty',
    False,
    'Install HEAD even if the checkout has uncommitted changes, which are not installed.',
)
flags.adopt_module_key_flags(gcloud)


def main() -> None:
    cloud = _read_cloud()
    pod = cloud.pod
    if _BUCKET.value is not None:
        pod.bucket = _BUCKET.value.removeprefix('gs://').rstrip('/')
        pod.mount = _MOUNT.value
    if '/' in pod.bucket or (pod.bucket and not pod.mount.startswith('/')):
        raise UserError(
            f'--bucket {pod.bucket} --mount {pod.mount}: --bucket must be the name of a bucket '
            f'without a folder, and --mount an absolute path'
        )
    pod.commit = gcloud.get_head_commit(_ALLOW_DIRTY.value)
    if pod.bucket:
        cloud.print_note('check the location and the namespace of the bucket')
        check_bucket(cloud)
    cloud.install()
    cloud.save()
    cloud.report(f'{pod.commit[:12]} is installed on all workers of {pod.name}')


def run() -> None:
    """Runs the program launch/tpu/install.py."""
    run_program(main)

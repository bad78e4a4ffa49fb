r"""Starts a program on all workers of a pod, in the background, with the flags after --.

Example:
  python launch/tpu/start.py --name cpt-l -- --config=configs/cpt_l.py \
      --workdir=/mnt/bucket/runs/cpt_l

The program is launch/train.py, or with --program launch/evaluate.py, launch/embed.py or
launch/export.py. --env sets an environment variable of it on all workers, such as LIBTPU_INIT_ARGS
or CPT_JAX_CACHE; if a bucket is mounted, JAX_COMPILATION_CACHE_DIR is a folder of it by default.
resume.py starts the same program in the same environment again.

The workers find each other. Each writes its output to ~/cpt_jax/train.log and its exit status to
~/cpt_jax/exit_status. Only one run can be active on a pod.
"""

import re

from absl import flags

from cpt_jax.cli.program import run_program, take_flags_after_dashes
from cpt_jax.pod import gcloud, workers
from cpt_jax.runtime.errors import UserError

_read_cloud = gcloud.define_pod_flags()
# A flag that each program needs, and an example of it.
_REQUIRED_FLAGS = {
    'train': ('config', '--config=configs/cpt_l.py'),
    'tpu/accept': ('output', '--output=/mnt/bucket/acceptance'),
    'evaluate': ('model', '--model=gs://my-bucket/runs/cpt_l'),
    'embed': ('model', '--model=gs://my-bucket/runs/cpt_l --input=... --output=...'),
    'export': ('model', '--model=gs://my-bucket/runs/cpt_l --output=gs://my-bucket/exports/cpt_l'),
}
_PROGRAM = flags.DEFINE_enum(
    'program', 'train', list(_REQUIRED_FLAGS), 'Program in launch/ to start.'
)
_ENVIRONMENT = flags.DEFINE_multi_string(
    'env', [], 'Environment variable of the program, as NAME=VALUE; may be repeated.'
)
_PROGRAM_FLAGS: list[str] = []  # flags after --; filled before absl parses the others
flags.adopt_module_key_flags(gcloud)


def main() -> None:
    cloud = _read_cloud()
    pod = cloud.pod
    for setting in _ENVIRONMENT.value:
        if not re.match('[A-Za-z_][A-Za-z_0-9]*=', setting):
            raise UserError(f'--env {setting!r}: must be NAME=VALUE, as LIBTPU_INIT_ARGS=...')
    flag, example = _REQUIRED_FLAGS[_PROGRAM.value]
    if not any(re.match(f'--?{flag}(=|$)', given) for given in _PROGRAM_FLAGS):
        raise UserError(
            f'flags of launch/{_PROGRAM.value}.py are missing: put them after --, as in -- '
            f'{example}'
        )
    pod.program = _PROGRAM.value
    pod.environment = _ENVIRONMENT.value
    pod.program_flags = _PROGRAM_FLAGS
    states = cloud.read_worker_states()
    if workers.combine_states(states) == workers.RUNNING:
        raise UserError(
            f'a run is active on {pod.name}: watch.py shows it, stop.py saves and ends it'
        )
    if workers.NOT_INSTALLED in states.values():
        raise UserError(
            f'not every worker of {pod.name} has the code: run install.py --name {pod.name}'
        )
    places = ('gs://', pod.mount) if pod.bucket else ('gs://',)
    if not any(place in flag for flag in _PROGRAM_FLAGS for place in places):
        cloud.report(
            'note: no flag names a bucket or its mount; unless the output is on another shared '
            'disk, it is deleted with the machines'
        )
    cloud.start()
    cloud.save()
    cloud.report(f'watch it with watch.py --name {pod.name} --follow')


def run() -> None:
    """Runs the program launch/tpu/start.py."""
    _PROGRAM_FLAGS.extend(take_flags_after_dashes())
    run_program(main)

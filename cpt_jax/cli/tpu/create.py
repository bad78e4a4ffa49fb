r"""Asks Google Cloud for a TPU pod slice (a queued resource), and waits until its machines are
there.

Example:
  python launch/tpu/create.py --name cpt-l --zone us-east5-a --accelerator_type v5p-128 \
      --spot

What was asked for is kept in runs/pods/NAME.json, for the other programs here and for resume.py,
which asks again after a preemption. An accelerator type counts TensorCores for v4 and v5p, two a
chip (v5p-128: 64 chips), and chips for v5litepod and v6e. tpu7x is offered through GKE only, and
not here. Interrupted while it waits, the same command goes on waiting. These programs were tested
against a stand-in for gcloud, and never on Google Cloud.
"""

import dataclasses

from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.pod import commands, gcloud
from cpt_jax.pod.record import Pod, recorded
from cpt_jax.runtime.errors import UserError

# By the beginning of an accelerator type; cloud.google.com/tpu/docs/runtimes.
RUNTIMES = {
    **dict.fromkeys(['v2', 'v3', 'v4'], 'tpu-ubuntu2204-base'),
    'v5p': 'v2-alpha-tpuv5',
    'v5litepod': 'v2-alpha-tpuv5-lite',
    'v6e': 'v2-alpha-tpuv6e',
}

_CLOUD = gcloud.define_flags()
_ACCELERATOR_TYPE = flags.DEFINE_string(
    'accelerator_type', '', 'Kind and size of a slice: v4-64, v5p-128, v5litepod-16, v6e-16, ...'
)
_TYPE = flags.DEFINE_string(
    'type', '', 'In place of --accelerator_type, with --topology: the kind, as gcloud names it.'
)
_TOPOLOGY = flags.DEFINE_string('topology', '', 'With --type: the chips, such as 4x4x4.')
_RUNTIME_VERSION = flags.DEFINE_string(
    'runtime_version', '', "The machines' software; by default the one for JAX on that kind."
)
_SLICES = flags.DEFINE_integer(
    'slices',
    1,
    'Slices of that size, joined over the data center network (multislice).',
    lower_bound=1,
)
_SPOT = flags.DEFINE_bool('spot', False, 'Cheaper machines, which may be taken away at any time.')
_CREATE_FLAGS = flags.DEFINE_multi_string(
    'create_flag', [], 'A further flag of the create command, such as --network=mine; repeatable.'
)
_SSH_FLAGS = flags.DEFINE_multi_string(
    'ssh_flag', [], 'A flag of every ssh and scp, such as --tunnel-through-iap; repeatable.'
)
_NOWAIT = flags.DEFINE_bool('nowait', False, 'Do not wait until the machines are there.')
_POLL_SECONDS = flags.DEFINE_float('poll_seconds', 30.0, 'How often to look.', lower_bound=0.0)
flags.adopt_module_key_flags(gcloud)


def main() -> int | None:
    cloud = _CLOUD()
    before = recorded(cloud.pod.name)
    cloud.pod = _wanted(cloud.pod)
    # What was installed and started stays known.
    if before and commands.create(before) == commands.create(cloud.pod):
        cloud.pod = dataclasses.replace(before, ssh_flags=cloud.pod.ssh_flags)
    cloud.remark('is there one already?')
    state = cloud.state()
    if state is not None and (not before or commands.create(before) != commands.create(cloud.pod)):
        raise UserError(
            f'{cloud.pod.name} is there already ({state}) and was not asked for with these flags: '
            f'delete.py, or another --name'
        )
    cloud.save()
    if state is None:
        cloud.create()
    if _NOWAIT.value:
        return 0
    cloud.remark(f'every {_POLL_SECONDS.value:g} s until ACTIVE')
    try:
        gcloud.wait_until_active(cloud, _POLL_SECONDS.value)
    except KeyboardInterrupt:
        print(
            f'\n{cloud.pod.name} stays asked for; the same command waits again, delete.py takes '
            f'it back'
        )
        return 130
    return None


def _wanted(pod: Pod) -> Pod:
    """What the flags ask for."""
    kind = _ACCELERATOR_TYPE.value or _TYPE.value
    if bool(_ACCELERATOR_TYPE.value) == bool(_TYPE.value) or bool(_TYPE.value) != bool(
        _TOPOLOGY.value
    ):
        raise UserError('give --accelerator_type, such as v5p-128, or --type and --topology')
    if kind.startswith(('tpu7', 'v7')):
        raise UserError(
            f'{kind}: Google offers TPU7x through GKE only; these programs make v2 to v6e'
        )
    if kind.startswith('v5e'):
        raise UserError(f'{kind}: gcloud calls this kind v5litepod, as in v5litepod-16')
    runtime = _RUNTIME_VERSION.value or RUNTIMES.get(kind.partition('-')[0])
    if not runtime:
        raise UserError(
            f'{kind}: no runtime version is known for it; give --runtime_version, or one of '
            f'{", ".join(RUNTIMES)}'
        )
    return Pod(
        pod.name,
        pod.zone,
        pod.project,
        accelerator_type=_ACCELERATOR_TYPE.value,
        type=_TYPE.value,
        topology=_TOPOLOGY.value,
        runtime_version=runtime,
        slices=_SLICES.value,
        spot=_SPOT.value,
        create_flags=_CREATE_FLAGS.value,
        ssh_flags=_SSH_FLAGS.value,
    )


def run() -> None:
    """The program launch/tpu/create.py."""
    run_program(main)

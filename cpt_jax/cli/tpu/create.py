r"""Requests a TPU pod slice from Google Cloud (a queued resource) and waits until it is active.

Example:
  python launch/tpu/create.py --name cpt-l --zone us-east5-a --accelerator_type v5p-128 \
      --spot

The request is recorded in runs/pods/NAME.json for the other programs here, and for resume.py, which
repeats it after a preemption. The number in an accelerator type counts TensorCores for v4 and v5p,
which have two per chip (v5p-128: 64 chips), and chips for v5litepod and v6e. TPU7x is not
supported: it comes through Compute Engine and GKE, not through the Cloud TPU API that this program
calls. If the program is interrupted while it waits, run the same command to continue waiting. These
programs were tested against a fake gcloud, never on Google Cloud.
"""

import dataclasses

from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.pod import commands, gcloud
from cpt_jax.pod.record import Pod, load_record
from cpt_jax.runtime.errors import UserError

# Runtime version by prefix of the accelerator type; cloud.google.com/tpu/docs/runtimes.
RUNTIMES = {
    **dict.fromkeys(['v2', 'v3', 'v4'], 'tpu-ubuntu2204-base'),
    'v5p': 'v2-alpha-tpuv5',
    'v5litepod': 'v2-alpha-tpuv5-lite',
    'v6e': 'v2-alpha-tpuv6e',
}

_read_cloud = gcloud.define_pod_flags()
_ACCELERATOR_TYPE = flags.DEFINE_string(
    'accelerator_type',
    '',
    'Kind and size of a slice: v4-64, v5p-128, v5litepod-16, v6e-16, ...',
)
_TYPE = flags.DEFINE_string(
    'type', '', "Kind of chips in gcloud's names; used with --topology, not --accelerator_type."
)
_TOPOLOGY = flags.DEFINE_string('topology', '', 'With --type: topology of a slice, such as 4x4x4.')
_RUNTIME_VERSION = flags.DEFINE_string(
    'runtime_version', '', 'Software version of the machines. Default: the one for JAX on the chip.'
)
_SLICES = flags.DEFINE_integer(
    'slices',
    1,
    'Number of slices of that size, joined over the data center network (multislice).',
    lower_bound=1,
)
_SPOT = flags.DEFINE_bool('spot', False, 'Request cheaper machines that may be preempted.')
_CREATE_FLAGS = flags.DEFINE_multi_string(
    'create_flag',
    [],
    'Additional flag of the gcloud create command, such as --network=mine',
)
_TRACK = flags.DEFINE_enum(
    'track',
    '',
    ['', 'alpha', 'beta'],
    'Release track of the gcloud create command, for flags that are only there, such as '
    '--create_flag=--autocheckpoint-enabled, or those of flex-start '
    '(--provisioning-model=FLEX_START, --max-run-duration).',
)
_SSH_FLAGS = flags.DEFINE_multi_string(
    'ssh_flag', [], 'Flag of every ssh and scp, such as --tunnel-through-iap'
)
_NOWAIT = flags.DEFINE_bool('nowait', False, 'Exit without waiting until the machines are active.')
_POLL_SECONDS = flags.DEFINE_float(
    'poll_seconds', 30.0, 'Seconds between queries of the state.', lower_bound=0.0
)
flags.adopt_module_key_flags(gcloud)


def main() -> int | None:
    cloud = _read_cloud()
    before = load_record(cloud.pod.name)
    cloud.pod = _make_pod(cloud.pod)
    # Keep the record of an earlier installation and start on the same pod.
    if before and commands.make_create_command(before) == commands.make_create_command(cloud.pod):
        cloud.pod = dataclasses.replace(before, ssh_flags=cloud.pod.ssh_flags)
    cloud.print_note('check whether the pod already exists')
    state = cloud.read_state()
    if state is not None and (
        not before
        or commands.make_create_command(before) != commands.make_create_command(cloud.pod)
    ):
        raise UserError(
            f'{cloud.pod.name} already exists ({state}) and was requested with other flags: '
            f'delete it with delete.py, or give another --name'
        )
    cloud.save()
    if state is None:
        cloud.create()
    if _NOWAIT.value:
        return 0
    cloud.print_note(f'every {_POLL_SECONDS.value:g} s until ACTIVE')
    try:
        gcloud.wait_until_active(cloud, _POLL_SECONDS.value)
    except KeyboardInterrupt:
        print(
            f'\n{cloud.pod.name} stays requested: run the same command to wait again, or '
            f'delete.py to cancel it'
        )
        return 130
    return None


def _make_pod(pod: Pod) -> Pod:
    """Returns the pod that the flags describe, with the name, zone and project of `pod`."""
    kind = _ACCELERATOR_TYPE.value or _TYPE.value
    if bool(_ACCELERATOR_TYPE.value) == bool(_TYPE.value) or bool(_TYPE.value) != bool(
        _TOPOLOGY.value
    ):
        raise UserError('give --accelerator_type, such as v5p-128, or --type and --topology')
    if kind.startswith(('tpu7', 'v7')):
        raise UserError(
            f'{kind}: Google offers TPU7x through Compute Engine and GKE only, see '
            f'docs/tpu-pods.md; these programs create v2 to v6e'
        )
    if kind.startswith('v5e'):
        raise UserError(f'{kind}: gcloud calls this kind v5litepod, as in v5litepod-16')
    runtime = _RUNTIME_VERSION.value or RUNTIMES.get(kind.partition('-')[0])
    if not runtime:
        raise UserError(
            f'{kind}: its runtime version is not known; give --runtime_version, or one of '
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
        track=_TRACK.value,
        create_flags=_CREATE_FLAGS.value,
        ssh_flags=_SSH_FLAGS.value,
    )


def run() -> None:
    """Runs the program launch/tpu/create.py."""
    run_program(main)

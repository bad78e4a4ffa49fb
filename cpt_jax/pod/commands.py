"""Command lines for gcloud and git, each a list of arguments.

Nothing is executed here; see gcloud.py.
"""

import shlex

from cpt_jax.pod.record import PODS, Pod

_RESOURCES = ('compute', 'tpus', 'queued-resources')
_GCLOUD = ('gcloud', *_RESOURCES)
_ON_WORKER = 'cpt_jax/code/launch/tpu/on_worker.sh'
_CACHE = 'JAX_COMPILATION_CACHE_DIR'


def make_create_command(pod: Pod) -> list[str]:
    """Returns the command that requests the queued resource."""
    if pod.slices > 1:
        nodes = [f'--node-count={pod.slices}', f'--node-prefix={pod.name}']
    else:
        nodes = [f'--node-id={pod.name}']
    if pod.accelerator_type:
        size = [f'--accelerator-type={pod.accelerator_type}']
    else:
        size = [f'--type={pod.type}', f'--topology={pod.topology}']
    options = [f'--runtime-version={pod.runtime_version}']
    if pod.spot:
        options.append('--spot')
    options += pod.create_flags
    gcloud = ['gcloud', pod.track] if pod.track else ['gcloud']
    return [
        *gcloud,
        *_RESOURCES,
        'create',
        pod.name,
        *_make_location_flags(pod),
        *nodes,
        *size,
        *options,
    ]


def make_describe_command(pod: Pod) -> list[str]:
    """Returns the command that prints the state, and if it is FAILED the number of the reason
    (google.rpc.Code) and the reason, separated by tabs.
    """
    return [
        *_GCLOUD,
        'describe',
        pod.name,
        *_make_location_flags(pod),
        '--format=value(state.state,state.failedData.error.code,state.failedData.error.message)',
    ]


def make_delete_command(pod: Pod) -> list[str]:
    """Returns the command that deletes the queued resource and its nodes."""
    # Without --force, gcloud refuses to delete a resource that has nodes.
    return [*_GCLOUD, 'delete', pod.name, *_make_location_flags(pod), '--force']


def make_describe_bucket_command(pod: Pod) -> list[str]:
    """Returns the command that prints the properties of the pod's bucket as JSON."""
    project = [f'--project={pod.project}'] if pod.project else []
    fields = 'location,location_type,hierarchical_namespace'
    name = f'gs://{pod.bucket}'
    return [
        'gcloud',
        'storage',
        'buckets',
        'describe',
        name,
        *project,
        '--quiet',
        f'--format=json({fields})',
    ]


def make_install_commands(pod: Pod, checkout: str) -> list[list[str]]:
    """Returns the commands that install the pod's commit of a git checkout on all workers."""
    archive = pod.get_path('.tar.gz')
    copy = [
        *_GCLOUD,
        'scp',
        str(archive),
        f'{pod.name}:cpt_jax.tar.gz',
        *_make_location_flags(pod),
        *_list_worker_numbers(pod),
    ]
    # Unpacked into a new folder, next to code that may be installed already. The new on_worker.sh
    # moves it into place, and refuses to while a run is active.
    unpack = (
        'rm -rf cpt_jax/next && mkdir -p cpt_jax/next && tar -xzf cpt_jax.tar.gz -C cpt_jax/next'
    )
    # The script is that of the pod's commit, which may be older than this file: its arguments stay.
    install = ['bash', 'cpt_jax/next/launch/tpu/on_worker.sh', 'install', 'jax[tpu]']
    if pod.bucket:
        install += [pod.bucket, pod.mount]
    return [
        ['mkdir', '-p', str(PODS)],
        [
            'git',
            '-C',
            checkout,
            'archive',
            '--format=tar.gz',
            f'--output={archive.absolute()}',
            pod.commit,
        ],
        copy,
        _make_ssh_command(
            pod,
            _list_worker_numbers(pod),
            f'{unpack} && {shlex.join(install)}',
        ),
    ]


def make_state_query_command(pod: Pod) -> list[str]:
    """Returns the command that prints one line per worker with the state of its run."""
    missing = 'echo "worker ${HOSTNAME:-$(hostname)}: not installed"'
    return _make_ssh_command(
        pod,
        _list_worker_numbers(pod),
        f'if [ -f {_ON_WORKER} ]; then bash {_ON_WORKER} state; else {missing}; fi',
    )


def make_start_command(pod: Pod) -> list[str]:
    """Returns the command that starts the pod's program on all workers.

    If a bucket is mounted, compiled programs are kept there, unless the environment names another
    folder: on the disks of the workers, which only process 0 would write, a preemption loses them.
    """
    environment = [*pod.environment]
    if pod.bucket and not any(setting.startswith(f'{_CACHE}=') for setting in environment):
        environment.append(f'{_CACHE}={pod.mount}/xla_cache')
    arguments = shlex.join([pod.program, *environment, '--', *(pod.program_flags or [])])
    return _make_ssh_command(pod, _list_worker_numbers(pod), f'bash {_ON_WORKER} start {arguments}')


def make_stop_command(pod: Pod) -> list[str]:
    """Returns the command that sends SIGTERM to the run on all workers."""
    return _make_ssh_command(pod, _list_worker_numbers(pod), f'bash {_ON_WORKER} stop')


def make_show_log_command(pod: Pod, follow: bool) -> list[str]:
    """Returns the command that prints the end of the first worker's log.

    Args:
      follow: whether to also print new lines until the run ends.
    """
    verb = 'follow' if follow else 'log'
    first_worker = ['--node=0', '--worker=0', *pod.ssh_flags]
    return _make_ssh_command(pod, first_worker, f'bash {_ON_WORKER} {verb}')


def _make_ssh_command(pod: Pod, workers: list[str], script: str) -> list[str]:
    return [*_GCLOUD, 'ssh', pod.name, *_make_location_flags(pod), *workers, f'--command={script}']


def _make_location_flags(pod: Pod) -> list[str]:
    project = [f'--project={pod.project}'] if pod.project else []
    # --quiet: no prompts, because the programs also run unattended.
    return [f'--zone={pod.zone}', *project, '--quiet']


def _list_worker_numbers(pod: Pod) -> list[str]:
    return ['--node=all', '--worker=all', *pod.ssh_flags]

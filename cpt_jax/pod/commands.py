"""Command lines for gcloud and git, each a list of arguments.

Nothing is executed here; see gcloud.py.
"""

import shlex

from cpt_jax.pod.record import PODS, Pod

_GCLOUD = ('gcloud', 'compute', 'tpus', 'queued-resources')
_ON_WORKER = 'cpt_jax/code/launch/tpu/on_worker.sh'


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
    return [*_GCLOUD, 'create', pod.name, *_make_location_flags(pod), *nodes, *size, *options]


def make_describe_command(pod: Pod) -> list[str]:
    """Returns the command that prints the state, a tab, and the reason if it is FAILED."""
    return [
        *_GCLOUD,
        'describe',
        pod.name,
        *_make_location_flags(pod),
        '--format=value(state.state,state.failedData.error.message)',
    ]


def make_delete_command(pod: Pod) -> list[str]:
    """Returns the command that deletes the queued resource and its nodes."""
    # Without --force, gcloud refuses to delete a resource that has nodes.
    return [*_GCLOUD, 'delete', pod.name, *_make_location_flags(pod), '--force']


def make_install_commands(pod: Pod, checkout: str, jax: str) -> list[list[str]]:
    """Returns the commands that install a commit of the checkout on all workers.

    Args:
      checkout: path of the git checkout.
      jax: requirement of the JAX package, such as `jax[tpu]==0.10.2`.
    """
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
    mount = [pod.bucket, pod.mount] if pod.bucket else []
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
            f'{unpack} && bash cpt_jax/next/launch/tpu/on_worker.sh install '
            f'{shlex.join([jax, *mount])}',
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
    """Returns the command that starts launch/train.py on all workers."""
    train_flags = shlex.join(pod.train_flags or [])
    return _make_ssh_command(
        pod, _list_worker_numbers(pod), f'bash {_ON_WORKER} start {train_flags}'
    )


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

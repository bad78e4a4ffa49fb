"""The commands, as lists of words."""

import shlex

from cpt_jax.pod.record import PODS, Pod

_GCLOUD = ('gcloud', 'compute', 'tpus', 'queued-resources')
_ON_WORKER = 'cpt_jax/code/launch/tpu/on_worker.sh'


def create(pod: Pod) -> list[str]:
    size = (
        [f'--accelerator-type={pod.accelerator_type}']
        if pod.accelerator_type
        else [f'--type={pod.type}', f'--topology={pod.topology}']
    )
    nodes = (
        [f'--node-count={pod.slices}', f'--node-prefix={pod.name}']
        if pod.slices > 1
        else [f'--node-id={pod.name}']
    )
    kind = [
        f'--runtime-version={pod.runtime_version}',
        *(['--spot'] if pod.spot else []),
        *pod.create_flags,
    ]
    return [*_GCLOUD, 'create', pod.name, *_where(pod), *nodes, *size, *kind]


def describe(pod: Pod) -> list[str]:
    """Answers STATE and, behind a tab, why it FAILED."""
    return [
        *_GCLOUD,
        'describe',
        pod.name,
        *_where(pod),
        '--format=value(state.state,state.failedData.error.message)',
    ]


def delete(pod: Pod) -> list[str]:
    return [*_GCLOUD, 'delete', pod.name, *_where(pod), '--force']  # --force: with its nodes


def install(pod: Pod, checkout: str, jax: str) -> list[list[str]]:
    """Copies a commit of the checkout to all workers, and what it needs."""
    archive = pod.file('.tar.gz')
    copy = [
        *_GCLOUD,
        'scp',
        str(archive),
        f'{pod.name}:cpt_jax.tar.gz',
        *_where(pod),
        *_everywhere(pod),
    ]
    # Unpacked beside what may be there: its own on_worker.sh puts it in place, and refuses under a
    # run.
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
        _ssh(
            pod,
            _everywhere(pod),
            f'{unpack} && bash cpt_jax/next/launch/tpu/on_worker.sh install '
            f'{shlex.join([jax, *mount])}',
        ),
    ]


def state(pod: Pod) -> list[str]:
    """Answers a line for each worker: how the run stands there."""
    missing = 'echo "worker ${HOSTNAME:-$(hostname)}: not installed"'
    return _ssh(
        pod,
        _everywhere(pod),
        f'if [ -f {_ON_WORKER} ]; then bash {_ON_WORKER} state; else {missing}; fi',
    )


def start(pod: Pod) -> list[str]:
    return _ssh(
        pod, _everywhere(pod), f'bash {_ON_WORKER} start {shlex.join(pod.train_flags or [])}'
    )


def stop(pod: Pod) -> list[str]:
    return _ssh(pod, _everywhere(pod), f'bash {_ON_WORKER} stop')


def log(pod: Pod, follow: bool) -> list[str]:
    """Shows the end of the first worker's log; with `follow`, also what is added until the run
    ends.
    """
    return _ssh(
        pod,
        ['--node=0', '--worker=0', *pod.ssh_flags],
        f'bash {_ON_WORKER} {"follow" if follow else "log"}',
    )


def _ssh(pod: Pod, workers: list[str], script: str) -> list[str]:
    return [*_GCLOUD, 'ssh', pod.name, *_where(pod), *workers, f'--command={script}']


def _where(pod: Pod) -> list[str]:
    # --quiet: never a question, which nobody might be there to answer.
    return [f'--zone={pod.zone}', *([f'--project={pod.project}'] if pod.project else []), '--quiet']


def _everywhere(pod: Pod) -> list[str]:
    return ['--node=all', '--worker=all', *pod.ssh_flags]

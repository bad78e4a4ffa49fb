"""The programs for TPU pods, with a fake gcloud whose ssh runs the command on this machine.

Each worker is a home directory here.
"""

import ast
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cpt_jax.pod import commands
from cpt_jax.pod.record import Pod, load_record

ROOT = Path(__file__).parents[2]
WHERE = ['--name=pod', '--zone=us-east5-a']
ASKED = [*WHERE, '--accelerator_type=v5p-128', '--spot', '--poll_seconds=0.01']
TRAIN = ['--config=configs/quickstart.py', '--workdir=/mnt/bucket/my  runs', "--config.seed='7'"]

# The fake keeps its state in files in $FAKE: `calls`, `states` (answered one after the other; the
# last one stays), and a home for each worker.
GCLOUD = """#!/bin/bash
echo "$(printf '%s\\t' "$@")" >>"$FAKE/calls"
[[ $1 != alpha ]] || shift
if [[ $1 = storage ]]; then
  cat "$FAKE/bucket" 2>/dev/null && exit
  echo 'ERROR: (gcloud.storage.buckets.describe) gs://mine not found: 404.' >&2
  exit 1
fi
verb=$4 name=$5

fail() {
  printf 'ERROR: (gcloud.compute.tpus.queued-resources.%s) %s\\n- details of it\\n' "$verb" "$1" >&2
  exit 1
}

[[ $1$2$3 = computetpusqueued-resources && "$*" = *' --zone=us-east5-a '*'--quiet'* ]] || fail "INVALID_ARGUMENT: $*"
if left=$(cat "$FAKE/broken" 2>/dev/null) && ((left > 0)); then
  echo $((left - 1)) >"$FAKE/broken"
  fail 'INTERNAL: the network is down'
fi
if [[ $verb = create ]]; then
  [[ ! -e $FAKE/states ]] || fail "ALREADY_EXISTS: Resource '$name' already exists"
  cp "$FAKE/script" "$FAKE/states"
  for number in 0 1; do cp -r "$FAKE/new_home" "$FAKE/home$number"; done
  exit
fi
[[ -e $FAKE/states ]] || fail "NOT_FOUND: Resource '$name' was not found"
case $verb in
  describe)
    mapfile -t states <"$FAKE/states"
    if ((${#states[@]} > 1)); then printf '%s\\n' "${states[@]:1}" >"$FAKE/states"; fi
    read -r state code reason <<<"${states[0]}"
    printf '%s\\t%s\\t%s\\n' "$state" "$code" "$reason"
    ;;
  delete)
    [[ "$*" = *' --force'* ]] || fail 'FAILED_PRECONDITION: it has nodes'
    rm -r "$FAKE/states" "$FAKE"/home*
    ;;
  scp)
    for home in "$FAKE"/home*; do cp "$5" "$home/${6#pod:}"; done
    ;;
  ssh)
    if [[ -e $FAKE/unprepared ]]; then # as gcloud does after a node was preempted
      echo 'WARNING: Could not prepare all 1 nodes, attempting to ssh into the rest.' >&2
      exit
    fi
    echo 'Using ssh batch size of 64.' >&2
    numbers='0 1' command=${!#}
    [[ "$*" = *' --node=all --worker=all '* ]] || numbers=0
    for number in $numbers; do
      (cd "$FAKE/home$number" && HOME=$PWD HOSTNAME=t1v-n-0-w-$number exec bash -c "${command#--command=}") &
      processes+=($!)
    done
    for process in "${processes[@]}"; do wait "$process" || status=$?; done
    exit "${status:-0}"
    ;;
esac
"""

# A fake uv. It installs a `python` that records calls of pip, and otherwise runs this Python.
UV = """#!/bin/sh
mkdir -p venv/bin
cat >venv/bin/python <<'END'
#!/bin/sh
if [ "$1" = -m ]; then echo "$@" >>pip.log; else exec PYTHON -IS "$@"; fi
END
cp venv/bin/python venv/bin/pip
chmod +x venv/bin/python venv/bin/pip
"""

# A fake launch/train.py. Each start takes the next word of $FAKE/plan: an exit status, 'wait' or
# 'preempted'.
TRAIN_PY = """import os, signal, sys, time
from pathlib import Path

signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
fake, starts = Path(os.environ['FAKE']), Path(os.environ['FAKE'], 'starts-' + os.environ['HOSTNAME'])
number = len(starts.read_text().splitlines()) if starts.exists() else 0
with open(starts, 'a') as file:
    print(sys.argv[1:], file=file)
print('training', number, Path.cwd().name, flush=True)
print('environment', os.environ.get('TUNING'), os.environ.get('JAX_COMPILATION_CACHE_DIR'), flush=True)
what = (fake / 'plan').read_text().split()[number]
if what == 'wait':
    while (fake / 'plan').exists() and not (fake / 'go').exists():
        time.sleep(0.01)
    sys.exit(0)
if what == 'preempted':
    (fake / 'states').write_text('SUSPENDING\\nSUSPENDED')
    what = 137
sys.exit(int(what))
"""


@pytest.fixture(scope='module')
def checkout(tmp_path_factory) -> Path:
    """Returns a git checkout with these programs and a fake launch/train.py."""
    root = tmp_path_factory.mktemp('checkout')
    for part in ('cpt_jax', 'configs', 'launch', 'requirements.txt'):
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(ROOT / part, root / part)
    (root / 'launch' / 'train.py').write_text(TRAIN_PY)
    (root / '.gitignore').write_text('__pycache__/\n')
    for words in (
        ['init', '--quiet'],
        ['add', '.'],
        ['-c', 'user.name=x', '-c', 'user.email=x', 'commit', '--quiet', '--message=x'],
    ):
        subprocess.run(['git', *words], cwd=root, check=True)
    return root


class Workstation:
    """A user's directory, with the fake gcloud on the PATH."""

    def __init__(self, folder: Path, checkout: Path):
        self.checkout = checkout
        self.fake = folder / 'fake'
        self.directory = folder / 'directory'
        # PYTHONPATH: as if the checkout were the installed package.
        self.environment = os.environ | {
            'FAKE': str(self.fake),
            'PATH': f'{self.fake / "bin"}:{os.environ["PATH"]}',
            'PYTHONPATH': str(checkout),
        }
        self.directory.mkdir()
        self._write_program('bin/gcloud', GCLOUD)
        self._write_program('bin/gcsfuse', '#!/bin/sh\necho "$@" >>"$HOME/gcsfuse.log"\n')
        self._write_program('bin/mountpoint', '#!/bin/sh\nexit 1\n')
        self._write_program('new_home/cpt_jax/bin/uv', UV)
        self.set_states('ACTIVE')
        self.set_plan('wait')

    def _write_program(self, name: str, text: str) -> None:
        path = self.fake / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace('PYTHON', sys.executable))
        path.chmod(0o755)

    def set_states(self, *states: str) -> None:
        """Sets the states that a new resource reports, one after the other."""
        (self.fake / 'script').write_text('\n'.join(states))

    def set_plan(self, *plan: str) -> None:
        """Sets what each start of the training does."""
        (self.fake / 'plan').write_text(' '.join(plan))

    def run(
        self, program: str, *flags: str, path: str | None = None
    ) -> subprocess.CompletedProcess:
        command = [sys.executable, str(self.checkout / 'launch' / 'tpu' / f'{program}.py'), *flags]
        path = self.environment['PATH'] if path is None else path
        env = self.environment | {'PATH': path, 'COLUMNS': '200'}
        return subprocess.run(
            command, cwd=self.directory, env=env, capture_output=True, text=True, timeout=60
        )

    def output_of(self, program: str, *flags: str, status: int = 0) -> str:
        """Runs a program that must exit with `status`; returns its output."""
        done = self.run(
            program, *(flags if '--name' in ' '.join(flags) else ['--name=pod', *flags])
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def error_of(self, program: str, *flags: str, path: str | None = None) -> str:
        """Runs a program that must fail; returns its one-line message."""
        done = self.run(program, *flags, path=path)
        *_, line = done.stderr.splitlines()
        assert (
            done.returncode == 1 and line.startswith('error: ') and 'Traceback' not in done.stderr
        ), done.stderr
        return line

    def read_calls(self, verb: str = '') -> list[list[str]]:
        """Returns the arguments of each call of gcloud, optionally of one verb."""
        path = self.fake / 'calls'
        calls = (
            [line.split('\t') for line in path.read_text().splitlines()] if path.exists() else []
        )
        return [call for call in calls if verb in ('', call[3])]

    def wait_for_starts(self, times: int, worker: int = 0) -> list[str]:
        """Waits until a worker was started this many times; returns the flags of each start."""
        path = self.fake / f'starts-t1v-n-0-w-{worker}'
        for _ in range(400):
            if path.exists() and len(starts := path.read_text().splitlines()) >= times:
                break
            time.sleep(0.02)
        assert len(starts) == times
        return starts

    def wait_for_state(self, state: str) -> None:
        """Waits until all workers are in this state."""
        scripts = [
            (home, home / 'cpt_jax/code/launch/tpu/on_worker.sh')
            for home in self.fake.glob('home*')
        ]
        for _ in range(400):
            if all(
                state
                in subprocess.run(['bash', script, 'state'], capture_output=True, text=True).stdout
                for _, script in scripts
            ):
                return
            time.sleep(0.05)
        raise AssertionError(f'the workers are not {state}')


@pytest.fixture
def workstation(tmp_path, checkout) -> Workstation:
    workstation = Workstation(tmp_path, checkout)
    yield workstation
    workstation.fake.joinpath('go').touch()


@pytest.fixture(scope='module')
def installed(tmp_path_factory, checkout) -> Path:
    """Returns a folder in which a pod was created and installed."""
    folder = tmp_path_factory.mktemp('installed')
    workstation = Workstation(folder, checkout)
    workstation.output_of('create', *ASKED)
    workstation.output_of('install')
    return folder


@pytest.fixture
def pod(workstation, installed) -> Workstation:
    """Returns a workstation with a pod that is created and installed."""
    shutil.copytree(installed, workstation.directory.parent, symlinks=True, dirs_exist_ok=True)
    return workstation


def test_help_has_an_example_and_the_flags(workstation):
    done = workstation.run('create', '--help')
    assert done.returncode == 0
    assert 'Example:\n  python launch/tpu/create.py --name cpt-l' in done.stdout
    assert all(
        f'--{flag}:' in done.stdout
        for flag in ('name', 'zone', 'project', '[no]dry_run', 'accelerator_type', '[no]spot')
    )
    for path in (ROOT / 'launch' / 'tpu').glob('*.py'):
        program = ROOT / 'cpt_jax' / 'cli' / 'tpu' / path.name
        shown = ast.get_docstring(ast.parse(program.read_text()))
        flag = '--output runs/acceptance' if path.stem == 'accept' else '--name cpt-l'
        assert f'Example:\n  python launch/tpu/{path.name} {flag}' in shown


def dry_run(workstation: Workstation, program: str, *flags: str) -> list[list[str]]:
    """Returns the commands that a dry run prints, as lists of words."""
    done = workstation.run(program, '--dry_run', *flags)
    assert done.returncode == 0 and all(
        line.startswith('# ') for line in done.stderr.splitlines()
    ), done.stderr
    assert not workstation.read_calls()
    return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ('program', 'flags', 'expected'),
    [
        ('create', ASKED, ['describe', 'create', 'describe']),
        ('install', WHERE, ['-p', 'archive', 'scp', 'ssh']),
        ('start', [*WHERE, '--', *TRAIN], ['ssh', 'ssh']),
        ('watch', [*WHERE, '--follow'], ['describe', 'ssh', 'ssh', 'ssh']),
        ('stop', WHERE, ['ssh']),
        ('delete', WHERE, ['describe', 'ssh', 'delete']),
    ],
    ids=str,
)
def test_dry_run_only_prints_the_commands(workstation, program, flags, expected):
    lines = dry_run(workstation, program, *flags)
    assert [words[{'gcloud': 4, 'git': 3, 'mkdir': 1}[words[0]]] for words in lines] == expected
    assert not list(workstation.directory.iterdir())
    if program == 'create':
        kind = [
            '--node-id=pod',
            '--accelerator-type=v5p-128',
            '--runtime-version=v2-alpha-tpuv5',
            '--spot',
        ]
        assert lines[1] == [
            'gcloud',
            'compute',
            'tpus',
            'queued-resources',
            'create',
            'pod',
            '--zone=us-east5-a',
            '--quiet',
            *kind,
        ]
    if program == 'start':
        words = shlex.split(lines[-1][-1].removeprefix('--command='))
        assert words[3:] == ['train', '--', *TRAIN]


def test_dry_run_of_resume_prints_the_commands(workstation):
    record = Pod(
        'pod',
        'us-east5-a',
        accelerator_type='v6e-16',
        runtime_version='v2-alpha-tpuv6e',
        commit='HEAD',
        program_flags=TRAIN,
    )
    path = workstation.directory / record.get_path('.json')
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(vars(record)))
    verbs = [
        words[4] for words in dry_run(workstation, 'resume', '--name=pod') if words[0] == 'gcloud'
    ]
    assert verbs == ['describe', 'delete', 'create', 'ssh', 'scp', 'ssh', 'ssh']


def test_create_waits_and_writes_a_record(workstation):
    workstation.set_states(
        'WAITING_FOR_RESOURCES', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE'
    )
    # Without date and time.
    lines = [line.split(' ', 2)[2] for line in workstation.output_of('create', *ASKED).splitlines()]
    assert lines == ['pod: WAITING_FOR_RESOURCES', 'pod: PROVISIONING', 'pod: ACTIVE']
    assert (
        json.loads((workstation.directory / 'runs/pods/pod.json').read_text())['accelerator_type']
        == 'v5p-128'
    )
    assert workstation.output_of('create', *ASKED).endswith(' pod: ACTIVE\n')
    assert 'already exists (ACTIVE)' in workstation.error_of(
        'create', *WHERE, '--accelerator_type=v5p-64'
    )
    assert len(workstation.read_calls('create')) == 1


def test_create_reports_a_failed_request(workstation):
    workstation.set_states('PROVISIONING', 'FAILED 8 no quota left')
    assert 'pod is FAILED (no quota left): delete.py' in workstation.error_of('create', *ASKED)
    workstation.output_of('delete')
    workstation.set_states('SUSPENDED')
    assert 'pod is SUSPENDED' in workstation.error_of('create', *ASKED)


def test_create_with_nowait_returns_at_once(workstation):
    workstation.set_states('WAITING_FOR_RESOURCES')
    assert workstation.output_of('create', *ASKED, '--nowait') == ''
    assert workstation.output_of('watch', status=4) == 'pod: WAITING_FOR_RESOURCES\n'


@pytest.mark.parametrize(
    ('program', 'flags', 'expected'),
    [
        ('create', ['--name=pod'], '--zone is missing'),
        ('create', WHERE, 'give --accelerator_type'),
        ('create', [*WHERE, '--accelerator_type=tpu7x-8'], 'through Compute Engine and GKE only'),
        ('create', [*WHERE, '--accelerator_type=v5e-16'], 'v5litepod-16'),
        ('create', [*WHERE, '--accelerator_type=a100-8'], '--runtime_version'),
        ('install', [*WHERE, '--bucket=gs://a/folder'], '--bucket a/folder'),
        ('start', [*WHERE, '--', '--config.seed=3'], '-- --config=configs/cpt_l.py'),
        ('start', [*WHERE, '--program=embed', '--', '--output=x'], 'flags of launch/embed.py'),
        ('start', [*WHERE, '--env=1=2', '--', *TRAIN], "--env '1=2': must be NAME=VALUE"),
        ('start', [], '--name'),
        ('watch', WHERE, 'no queued resource pod in us-east5-a'),
        ('resume', WHERE, 'nothing was started on pod yet'),
    ],
    ids=str,
)
def test_wrong_use_is_a_one_line_error(workstation, program, flags, expected):
    assert expected in workstation.error_of(program, *flags)


def test_missing_or_failing_gcloud_is_a_one_line_error(workstation):
    assert 'gcloud is not on the PATH: install the Google Cloud CLI' in workstation.error_of(
        'create', *ASKED, path='/nowhere'
    )
    (workstation.fake / 'broken').write_text('1')
    line = workstation.error_of('create', *ASKED)
    assert (
        'INTERNAL: the network is down [status 1 of: gcloud compute tpus queued-resources '
        'describe pod' in line
    )
    (workstation.directory / 'runs' / 'pods').mkdir(parents=True)
    (workstation.directory / 'runs' / 'pods' / 'pod.json').write_text('{')
    assert 'runs/pods/pod.json: cannot be read' in workstation.error_of('watch', *WHERE)


def test_install_copies_head_and_mounts_the_bucket(workstation):
    workstation.output_of('create', *ASKED)
    assert 'not installed' in workstation.output_of('watch', status=4)
    assert 'install.py' in workstation.error_of('start', *WHERE, '--', *TRAIN)
    stray = workstation.checkout / 'stray.py'
    stray.touch()
    assert 'stray.py' in workstation.error_of('install', *WHERE) and not workstation.read_calls(
        'scp'
    )
    on_bucket = ['--bucket=gs://mine', f'--mount={workstation.directory}/bucket']
    create = (
        'gcloud storage buckets create gs://mine --location=us-east5 '
        '--uniform-bucket-level-access --enable-hierarchical-namespace'
    )
    line = workstation.error_of('install', *WHERE, '--allow_dirty', *on_bucket)
    assert line.endswith(f'there is no bucket gs://mine: make it with {create}')
    bucket = {'location': 'US-WEST1', 'location_type': 'region'}
    (workstation.fake / 'bucket').write_text(json.dumps(bucket))
    output = workstation.output_of('install', '--allow_dirty', *on_bucket)
    assert 'note: gs://mine is in us-west1 and the pod in us-east5' in output
    assert 'note: gs://mine has no hierarchical namespace' in output
    assert create.replace('gs://mine', 'gs://mine-us-east5') in output
    stray.unlink()
    for home in workstation.fake.glob('home*'):
        code = home / 'cpt_jax' / 'code'
        assert (code / 'launch' / 'train.py').read_text() == TRAIN_PY and not (
            code / 'stray.py'
        ).exists()
        words = (home / 'cpt_jax' / 'pip.log').read_text().split()
        assert words[-3:] == ['--editable', 'code[gcs]', 'jax[tpu]']
        assert (home / 'gcsfuse.log').read_text().split()[-2:] == [
            'mine',
            f'{workstation.directory}/bucket',
        ]
    record = json.loads((workstation.directory / 'runs/pods/pod.json').read_text())
    assert record['bucket'] == 'mine' and len(record['commit']) == 40


def test_run_from_start_to_stop(pod):
    assert 'idle' in pod.output_of('watch', status=4)
    assert 'it is deleted with the machines' in pod.output_of('start', '--', *TRAIN)
    assert pod.wait_for_starts(1) == [str(TRAIN)]
    assert '2 of 2 workers: running (t1v-n-0-w-0, t1v-n-0-w-1)' in pod.output_of('watch', status=3)
    assert 'a run is active on pod' in pod.error_of('start', *WHERE, '--', *TRAIN)
    assert 'a run is in progress' in pod.error_of('install', *WHERE)
    assert 'a run is active on pod' in pod.error_of('delete', *WHERE)
    script = pod.fake / 'home1/cpt_jax/code/launch/tpu/on_worker.sh'
    # Called directly, because start.py checks first.
    done = subprocess.run(['bash', script, 'start'], capture_output=True, text=True)
    assert done.returncode == 1 and 'a run is in progress' in done.stderr
    assert 'the run saves and stops' in pod.output_of('stop')
    pod.wait_for_state('exited 42')
    output = pod.output_of('watch', status=42)
    assert (
        'training 0 code' in output
        and 'exit status 42' in output
        and '2 of 2 workers: exited 42' in output
    )
    assert 'no run is in progress' in pod.output_of('stop')
    pod.output_of('delete')
    assert not pod.fake.joinpath('states').exists()


def test_program_and_environment_are_started_and_recorded(pod):
    pod.set_plan('0', '0')
    shutil.copy(pod.checkout / 'launch/train.py', pod.fake / 'evaluate.py')
    for home in pod.fake.glob('home*'):
        shutil.copy(pod.fake / 'evaluate.py', home / 'cpt_jax/code/launch/evaluate.py')
    flags = ['--program=evaluate', '--env=TUNING=a  b=c', '--', '--model=gs://b/r']
    pod.output_of('start', *flags)
    assert pod.wait_for_starts(1) == [str(['--model=gs://b/r'])]
    pod.wait_for_state('exited 0')
    assert 'environment a  b=c None' in pod.output_of('watch')
    record = load_record_in(pod.directory)
    assert record.program == 'evaluate' and record.environment == ['TUNING=a  b=c']
    record.bucket, record.mount = 'mine', '/mnt/bucket'
    command = commands.make_start_command(record)[-1]
    assert 'JAX_COMPILATION_CACHE_DIR=/mnt/bucket/xla_cache' in command
    record.environment = ['JAX_COMPILATION_CACHE_DIR=gs://mine/x']
    assert '/mnt/bucket/xla_cache' not in commands.make_start_command(record)[-1]


def test_record_of_an_older_start_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Pod('pod').get_path('.json')
    path.parent.mkdir(parents=True)
    path.write_text('{"name": "pod", "zone": "z", "train_flags": ["--config=c"]}')
    record = load_record('pod')
    assert record.program == 'train' and record.program_flags == ['--config=c']


def load_record_in(directory: Path) -> Pod:
    with contextlib.chdir(directory):
        return load_record('pod')


def test_request_in_a_release_track(workstation):
    flags = ['--track=alpha', '--create_flag=--autocheckpoint-enabled']
    assert workstation.output_of('create', *ASKED, *flags).endswith(' pod: ACTIVE\n')
    words = next(call for call in workstation.read_calls() if 'create' in call)
    assert words[:3] == ['alpha', 'compute', 'tpus'] and '--autocheckpoint-enabled' in words


def test_worker_that_cannot_write_to_the_bucket_is_an_error(workstation):
    workstation.output_of('create', *ASKED)
    (workstation.fake / 'bucket').write_text('{}')
    mount = workstation.directory / 'bucket'
    for number in (0, 1):  # what `touch` would create is a folder, so `rm` fails
        (mount / f'.cpt_jax_t1v-n-0-w-{number}').mkdir(parents=True)
    line = workstation.error_of('install', *WHERE, '--bucket=mine', f'--mount={mount}')
    assert 'gs://mine cannot be written: gcloud storage buckets add-iam-policy-binding' in line


def test_follow_ends_with_the_run(pod):
    pod.set_plan('wait', '7')
    pod.output_of('start', '--', *TRAIN)
    watch = [
        sys.executable,
        str(pod.checkout / 'launch/tpu/watch.py'),
        *WHERE,
        '--follow',
        '--poll_seconds=0.01',
    ]
    with subprocess.Popen(
        watch, cwd=pod.directory, env=pod.environment, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith('training 0'):
                break
        (pod.fake / 'go').touch()
        rest = process.stdout.read()
    assert (
        process.returncode == 0 and 'exit status 0' in rest and '2 of 2 workers: exited 0' in rest
    )
    pod.output_of('start', '--', *TRAIN)
    pod.wait_for_state('exited 7')
    assert 'training 1' in pod.output_of('watch', '--follow', status=7)


def test_resume_after_the_run_was_killed(pod):
    def send_signal(name: str) -> None:
        for home in pod.fake.glob('home*'):
            subprocess.run(
                [
                    'pkill',
                    '--signal',
                    name,
                    '--session',
                    (home / 'cpt_jax/pid').read_text().strip(),
                ],
                check=True,
            )

    pod.set_plan('wait', 'wait', 'wait')
    pod.output_of('start', '--', *TRAIN)
    for worker in (0, 1):  # a program that has not started does not handle the signal
        pod.wait_for_starts(1, worker)
    send_signal('TERM')  # as the shutdown of a machine does
    pod.wait_for_state('exited 42')
    pod.output_of('start', '--', *TRAIN)
    send_signal('KILL')
    pod.wait_for_state('gone')
    assert '2 of 2 workers: gone' in pod.output_of('watch', status=4)
    pod.output_of('resume', '--poll_seconds=0.01')
    assert '2 of 2 workers: running' in pod.output_of('watch', status=3)
    pod.output_of('delete', '--force')


def test_resume_forever_restarts_until_the_run_is_done(pod):
    pod.set_plan('42', '42', 'preempted', '0')
    pod.output_of('start', '--', *TRAIN)
    pod.wait_for_state('exited 42')
    (pod.fake / 'broken').write_text('3')  # three calls fail
    output = pod.output_of('resume', '--forever', '--poll_seconds=0.15')
    assert pod.wait_for_starts(4) == [str(TRAIN)] * 4
    assert 'trying again' in output and 'pod: SUSPENDED, deleted' in output
    asked = pod.read_calls('create')
    assert len(asked) == 2 and asked[0] == asked[1] and len(pod.read_calls('delete')) == 1
    pod.output_of('watch')
    pod.output_of('resume')
    pod.wait_for_starts(4)


def test_resume_stops_at_a_user_error(pod):
    pod.set_plan('1', '42', '1', '0')
    pod.output_of('start', '--', *TRAIN)
    pod.wait_for_state('exited 1')
    assert 'exited 1' in pod.output_of('resume', '--forever', '--poll_seconds=0.15', status=1)
    pod.wait_for_starts(3)  # the earlier failure is tried once more


def test_resume_without_forever_recreates_the_pod_and_returns(pod):
    pod.output_of('start', '--', *TRAIN)
    pod.output_of('delete', '--force')
    pod.set_plan('wait', 'wait')
    pod.set_states('WAITING_FOR_RESOURCES', 'ACTIVE')
    assert 'pod: WAITING_FOR_RESOURCES' in pod.output_of('resume', '--poll_seconds=0.01')
    pod.output_of('watch', status=3)
    pod.output_of('resume')
    pod.wait_for_starts(2)


def test_workers_that_gcloud_skips_are_an_error(pod):
    (pod.fake / 'unprepared').touch()
    assert 'Could not prepare all 1 nodes' in pod.error_of('watch', *WHERE)
    assert '--force deletes all the same' in pod.error_of('delete', *WHERE)
    pod.output_of('delete', '--force')

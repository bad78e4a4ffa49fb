"""The programs for TPU pods, against a stand-in for gcloud whose ssh runs what it is given in a
home on this machine.
"""

import ast
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cpt_jax.pod.record import Pod

ROOT = Path(__file__).parents[2]
WHERE = ['--name=pod', '--zone=us-east5-a']
ASKED = [*WHERE, '--accelerator_type=v5p-128', '--spot', '--poll_seconds=0.01']
TRAIN = ['--config=configs/quickstart.py', '--workdir=/mnt/bucket/my  runs', "--config.seed='7'"]

# The state of the stand-in lies in files of $FAKE: `calls`, `states` (answered in turn, the last
# one stays), and a home for each worker.
GCLOUD = """#!/bin/bash
echo "$(printf '%s\\t' "$@")" >>"$FAKE/calls"
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
    echo "${states[0]/ /$'\\t'}"
    ;;
  delete)
    [[ "$*" = *' --force'* ]] || fail 'FAILED_PRECONDITION: it has nodes'
    rm -r "$FAKE/states" "$FAKE"/home*
    ;;
  scp)
    for home in "$FAKE"/home*; do cp "$5" "$home/${6#pod:}"; done
    ;;
  ssh)
    if [[ -e $FAKE/unprepared ]]; then # what gcloud does where a node was just preempted
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

# Brings a `python` that keeps what pip is asked for, and otherwise is this one.
UV = """#!/bin/sh
mkdir -p venv/bin
cat >venv/bin/python <<'END'
#!/bin/sh
if [ "$1" = -m ]; then echo "$@" >>pip.log; else exec PYTHON -IS "$@"; fi
END
cp venv/bin/python venv/bin/pip
chmod +x venv/bin/python venv/bin/pip
"""

# Stands in for launch/train.py: does the next thing of $FAKE/plan, an exit status or one of these
# words.
TRAIN_PY = """import os, signal, sys, time
from pathlib import Path

signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
fake, starts = Path(os.environ['FAKE']), Path(os.environ['FAKE'], 'starts-' + os.environ['HOSTNAME'])
number = len(starts.read_text().splitlines()) if starts.exists() else 0
with open(starts, 'a') as file:
    print(sys.argv[1:], file=file)
print('training', number, Path.cwd().name, flush=True)
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
    """A git checkout with these programs, and a stand-in for launch/train.py."""
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


class Desk:
    """A user's directory, with the stand-in for gcloud on the PATH."""

    def __init__(self, folder: Path, checkout: Path):
        self.checkout, self.fake, self.desk = checkout, folder / 'fake', folder / 'desk'
        # As if the checkout were what is installed.
        self.environment = os.environ | {
            'FAKE': str(self.fake),
            'PATH': f'{self.fake / "bin"}:{os.environ["PATH"]}',
            'PYTHONPATH': str(checkout),
        }
        self.desk.mkdir()
        self._program('bin/gcloud', GCLOUD)
        self._program('bin/gcsfuse', '#!/bin/sh\necho "$@" >>"$HOME/gcsfuse.log"\n')
        self._program('bin/mountpoint', '#!/bin/sh\nexit 1\n')
        self._program('new_home/cpt_jax/bin/uv', UV)
        self.states('ACTIVE')
        self.plan('wait')

    def _program(self, name: str, text: str) -> None:
        path = self.fake / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace('PYTHON', sys.executable))
        path.chmod(0o755)

    def states(self, *states: str) -> None:
        """What a resource that is created answers, in turn."""
        (self.fake / 'script').write_text('\n'.join(states))

    def plan(self, *plan: str) -> None:
        """What each start of the training does."""
        (self.fake / 'plan').write_text(' '.join(plan))

    def run(
        self, program: str, *flags: str, path: str | None = None
    ) -> subprocess.CompletedProcess:
        command = [sys.executable, str(self.checkout / 'launch' / 'tpu' / f'{program}.py'), *flags]
        path = self.environment['PATH'] if path is None else path
        env = self.environment | {'PATH': path, 'COLUMNS': '200'}
        return subprocess.run(
            command, cwd=self.desk, env=env, capture_output=True, text=True, timeout=60
        )

    def do(self, program: str, *flags: str, status: int = 0) -> str:
        """What a program that ends with this status writes."""
        done = self.run(
            program, *(flags if '--name' in ' '.join(flags) else ['--name=pod', *flags])
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def error(self, program: str, *flags: str, path: str | None = None) -> str:
        """The one line of an error."""
        done = self.run(program, *flags, path=path)
        *_, line = done.stderr.splitlines()
        assert (
            done.returncode == 1 and line.startswith('error: ') and 'Traceback' not in done.stderr
        ), done.stderr
        return line

    def calls(self, verb: str = '') -> list[list[str]]:
        path = self.fake / 'calls'
        calls = (
            [line.split('\t') for line in path.read_text().splitlines()] if path.exists() else []
        )
        return [call for call in calls if verb in ('', call[3])]

    def started(self, times: int) -> list[str]:
        """The flags of each start of the training on the first worker, once it was started so many
        times.
        """
        path = self.fake / 'starts-t1v-n-0-w-0'
        for _ in range(400):
            if path.exists() and len(starts := path.read_text().splitlines()) >= times:
                break
            time.sleep(0.02)
        assert len(starts) == times
        return starts

    def until(self, state: str) -> None:
        """Waits until all workers are in a state."""
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
        raise AssertionError(f'not {state}')


@pytest.fixture
def desk(tmp_path, checkout) -> Desk:
    desk = Desk(tmp_path, checkout)
    yield desk
    desk.fake.joinpath('go').touch()


@pytest.fixture(scope='module')
def installed(tmp_path_factory, checkout) -> Path:
    """Where a pod was made and all was installed on it."""
    folder = tmp_path_factory.mktemp('installed')
    desk = Desk(folder, checkout)
    desk.do('create', *ASKED)
    desk.do('install')
    return folder


@pytest.fixture
def pod(desk, installed) -> Desk:
    """With a pod on which all is installed."""
    shutil.copytree(installed, desk.desk.parent, symlinks=True, dirs_exist_ok=True)
    return desk


def test_help_shows_an_example_and_the_flags(desk):
    done = desk.run('create', '--help')
    assert done.returncode == 0
    assert 'Example:\n  python launch/tpu/create.py --name cpt-l' in done.stdout
    assert all(
        f'--{flag}:' in done.stdout
        for flag in ('name', 'zone', 'project', '[no]dry_run', 'accelerator_type', '[no]spot')
    )
    for path in (ROOT / 'launch' / 'tpu').glob('*.py'):
        program = ROOT / 'cpt_jax' / 'cli' / 'tpu' / path.name
        shown = ast.get_docstring(ast.parse(program.read_text()))
        assert f'Example:\n  python launch/tpu/{path.name} --name cpt-l' in shown


def dry_run(desk: Desk, program: str, *flags: str) -> list[list[str]]:
    """The commands that a dry run prints, as words."""
    done = desk.run(program, '--dry_run', *flags)
    assert done.returncode == 0 and all(
        line.startswith('# ') for line in done.stderr.splitlines()
    ), done.stderr
    assert not desk.calls()
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
def test_dry_run_prints_commands_to_paste_and_does_nothing(desk, program, flags, expected):
    lines = dry_run(desk, program, *flags)
    assert [words[{'gcloud': 4, 'git': 3, 'mkdir': 1}[words[0]]] for words in lines] == expected
    assert not list(desk.desk.iterdir())
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
        assert shlex.split(lines[-1][-1].removeprefix('--command='))[3:] == TRAIN


def test_dry_run_of_resume(desk):
    record = Pod(
        'pod',
        'us-east5-a',
        accelerator_type='v6e-16',
        runtime_version='v2-alpha-tpuv6e',
        commit='HEAD',
        train_flags=TRAIN,
    )
    path = desk.desk / record.file('.json')
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(vars(record)))
    verbs = [words[4] for words in dry_run(desk, 'resume', '--name=pod') if words[0] == 'gcloud']
    assert verbs == ['describe', 'delete', 'create', 'ssh', 'scp', 'ssh', 'ssh']


def test_create_waits_and_records(desk):
    desk.states('WAITING_FOR_RESOURCES', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE')
    # Behind date and time.
    lines = [line.split(' ', 2)[2] for line in desk.do('create', *ASKED).splitlines()]
    assert lines == ['pod: WAITING_FOR_RESOURCES', 'pod: PROVISIONING', 'pod: ACTIVE']
    assert (
        json.loads((desk.desk / 'runs/pods/pod.json').read_text())['accelerator_type'] == 'v5p-128'
    )
    assert desk.do('create', *ASKED).endswith(' pod: ACTIVE\n')
    assert 'is there already (ACTIVE)' in desk.error('create', *WHERE, '--accelerator_type=v5p-64')
    assert len(desk.calls('create')) == 1


def test_create_says_when_the_machines_will_not_come(desk):
    desk.states('PROVISIONING', 'FAILED no quota left')
    assert 'pod is FAILED (no quota left): delete.py' in desk.error('create', *ASKED)
    desk.do('delete')
    desk.states('SUSPENDED')
    assert 'pod is SUSPENDED' in desk.error('create', *ASKED)


def test_create_without_waiting(desk):
    desk.states('WAITING_FOR_RESOURCES')
    assert desk.do('create', *ASKED, '--nowait') == ''
    assert desk.do('watch', status=4) == 'pod: WAITING_FOR_RESOURCES\n'


@pytest.mark.parametrize(
    ('program', 'flags', 'expected'),
    [
        ('create', ['--name=pod'], '--zone is missing'),
        ('create', WHERE, 'give --accelerator_type'),
        ('create', [*WHERE, '--accelerator_type=tpu7x-8'], 'through GKE only'),
        ('create', [*WHERE, '--accelerator_type=v5e-16'], 'v5litepod-16'),
        ('create', [*WHERE, '--accelerator_type=a100-8'], '--runtime_version'),
        ('install', [*WHERE, '--bucket=gs://a/folder'], '--bucket a/folder'),
        ('start', [*WHERE, '--', '--config.seed=3'], '-- --config=configs/cpt_l.py'),
        ('start', [], '--name'),
        ('watch', WHERE, 'no queued resource pod in us-east5-a'),
        ('resume', WHERE, 'nothing was started on pod yet'),
    ],
    ids=str,
)
def test_wrong_use_is_one_line(desk, program, flags, expected):
    assert expected in desk.error(program, *flags)


def test_gcloud_that_is_missing_or_fails_is_one_line(desk):
    assert 'gcloud is not on the PATH: install the Google Cloud CLI' in desk.error(
        'create', *ASKED, path='/nowhere'
    )
    (desk.fake / 'broken').write_text('1')
    line = desk.error('create', *ASKED)
    assert (
        'INTERNAL: the network is down [status 1 of: gcloud compute tpus queued-resources '
        'describe pod' in line
    )
    (desk.desk / 'runs' / 'pods').mkdir(parents=True)
    (desk.desk / 'runs' / 'pods' / 'pod.json').write_text('{')
    assert 'runs/pods/pod.json: cannot be read' in desk.error('watch', *WHERE)


def test_install_brings_head_its_packages_and_a_bucket(desk):
    desk.do('create', *ASKED)
    assert 'not installed' in desk.do('watch', status=4)
    assert 'install.py' in desk.error('start', *WHERE, '--', *TRAIN)
    stray = desk.checkout / 'stray.py'
    stray.touch()
    assert 'stray.py' in desk.error('install', *WHERE) and not desk.calls('scp')
    desk.do('install', '--allow_dirty', '--bucket=gs://mine', f'--mount={desk.desk}/bucket')
    stray.unlink()
    pinned = next(
        line.split()[0]
        for line in (ROOT / 'requirements.txt').read_text().splitlines()
        if line.startswith('jax==')
    )
    for home in desk.fake.glob('home*'):
        code = home / 'cpt_jax' / 'code'
        assert (code / 'launch' / 'train.py').read_text() == TRAIN_PY and not (
            code / 'stray.py'
        ).exists()
        words = (home / 'cpt_jax' / 'pip.log').read_text().split()
        assert words[-3:] == ['--editable', 'code', pinned.replace('jax', 'jax[tpu]')]
        assert (home / 'gcsfuse.log').read_text().split()[-2:] == ['mine', f'{desk.desk}/bucket']
    record = json.loads((desk.desk / 'runs/pods/pod.json').read_text())
    assert record['bucket'] == 'mine' and len(record['commit']) == 40


def test_a_run_from_start_to_stop(pod):
    assert 'idle' in pod.do('watch', status=4)
    assert 'its checkpoints go with the machines' in pod.do('start', '--', *TRAIN)
    assert pod.started(1) == [str(TRAIN)]
    assert '2 of 2 workers: running (t1v-n-0-w-0, t1v-n-0-w-1)' in pod.do('watch', status=3)
    assert 'a run is going on on pod' in pod.error('start', *WHERE, '--', *TRAIN)
    assert 'a run is going on' in pod.error('install', *WHERE)
    assert 'a run is going on on pod' in pod.error('delete', *WHERE)
    script = pod.fake / 'home1/cpt_jax/code/launch/tpu/on_worker.sh'
    # Past the check of start.py.
    done = subprocess.run(['bash', script, 'start'], capture_output=True, text=True)
    assert done.returncode == 1 and 'a run is going on already' in done.stderr
    assert 'told to save and stop' in pod.do('stop')
    pod.until('exited 42')
    output = pod.do('watch', status=42)
    assert (
        'training 0 code' in output
        and 'exit status 42' in output
        and '2 of 2 workers: exited 42' in output
    )
    assert 'nothing runs' in pod.do('stop')
    pod.do('delete')
    assert not pod.fake.joinpath('states').exists()


def test_follow_ends_with_the_run(pod):
    pod.plan('wait', '7')
    pod.do('start', '--', *TRAIN)
    watch = [
        sys.executable,
        str(pod.checkout / 'launch/tpu/watch.py'),
        *WHERE,
        '--follow',
        '--poll_seconds=0.01',
    ]
    with subprocess.Popen(
        watch, cwd=pod.desk, env=pod.environment, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith('training 0'):
                break
        (pod.fake / 'go').touch()
        rest = process.stdout.read()
    assert (
        process.returncode == 0 and 'exit status 0' in rest and '2 of 2 workers: exited 0' in rest
    )
    pod.do('start', '--', *TRAIN)
    pod.until('exited 7')
    assert 'training 1' in pod.do('watch', '--follow', status=7)


def test_a_machine_that_goes_away(pod):
    def signal(name: str) -> None:
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

    pod.plan('wait', 'wait', 'wait')
    pod.do('start', '--', *TRAIN)
    pod.started(1)
    signal('TERM')  # a shutdown asks every program to end
    pod.until('exited 42')
    pod.do('start', '--', *TRAIN)
    signal('KILL')
    pod.until('gone')
    assert '2 of 2 workers: gone' in pod.do('watch', status=4)
    pod.do('resume', '--poll_seconds=0.01')
    assert '2 of 2 workers: running' in pod.do('watch', status=3)
    pod.do('delete', '--force')


def test_resume_goes_on_until_the_run_is_done(pod):
    pod.plan('42', '42', 'preempted', '0')
    pod.do('start', '--', *TRAIN)
    pod.until('exited 42')
    (pod.fake / 'broken').write_text('3')  # a moment without network
    output = pod.do('resume', '--forever', '--poll_seconds=0.15')
    assert pod.started(4) == [str(TRAIN)] * 4
    assert 'another try' in output and 'pod: SUSPENDED, deleted' in output
    asked = pod.calls('create')
    assert len(asked) == 2 and asked[0] == asked[1] and len(pod.calls('delete')) == 1
    pod.do('watch')
    pod.do('resume')
    pod.started(4)


def test_resume_stops_where_something_given_is_wrong(pod):
    pod.plan('1', '42', '1', '0')
    pod.do('start', '--', *TRAIN)
    pod.until('exited 1')
    assert 'exited 1' in pod.do('resume', '--forever', '--poll_seconds=0.15', status=1)
    pod.started(3)  # what ended before is tried again: it was asked for


def test_resume_once_asks_again_and_leaves_it_running(pod):
    pod.do('start', '--', *TRAIN)
    pod.do('delete', '--force')
    pod.plan('wait', 'wait')
    pod.states('WAITING_FOR_RESOURCES', 'ACTIVE')
    assert 'pod: WAITING_FOR_RESOURCES' in pod.do('resume', '--poll_seconds=0.01')
    pod.do('watch', status=3)
    pod.do('resume')
    pod.started(2)


def test_workers_that_gcloud_leaves_out_are_an_error(pod):
    (pod.fake / 'unprepared').touch()
    assert 'Could not prepare all 1 nodes' in pod.error('watch', *WHERE)
    assert '--force deletes all the same' in pod.error('delete', *WHERE)
    pod.do('delete', '--force')

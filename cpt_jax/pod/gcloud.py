"""Carries out the commands for a pod, or prints them."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from absl import flags

from cpt_jax.pod import commands, workers
from cpt_jax.pod.record import Pod, recorded
from cpt_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
# States of a queued resource. A spot slice that is preempted becomes SUSPENDED: it has to be
# deleted and asked for again.
ACTIVE, FAILED, SUSPENDING, SUSPENDED = 'ACTIVE', 'FAILED', 'SUSPENDING', 'SUSPENDED'


class GcloudError(UserError):
    """A command failed. It may be the network, or a machine that is just going away: worth another
    try.
    """


def define_flags() -> Callable[[], 'Cloud']:
    """Defines --name, --zone, --project and --dry_run; returns what reads them, and what is
    recorded of the pod.
    """
    name = flags.DEFINE_string('name', None, 'Name of the queued resource.', required=True)
    zone = flags.DEFINE_string(
        'zone', None, 'Its zone, such as us-east5-a; by default as recorded by create.py.'
    )
    project = flags.DEFINE_string(
        'project',
        None,
        "Its Google Cloud project; by default as recorded, or else gcloud's own default.",
    )
    dry_run = flags.DEFINE_bool(
        'dry_run', False, 'Print the commands, ready to paste, and run none.'
    )

    def read() -> Cloud:
        pod = recorded(name.value) or Pod(name.value)
        pod.zone, pod.project = zone.value or pod.zone, project.value or pod.project
        if not pod.zone:
            raise UserError(
                f'--zone is missing, and {pod.file(".json")} is not here to tell it: give it, or '
                f'go where create.py ran'
            )
        return Cloud(pod, dry_run.value)

    return read


class Cloud:
    """A pod and its run, as gcloud lets one see and change them. With dry_run nothing is seen and
    nothing is changed.
    """

    def __init__(self, pod: Pod, dry_run: bool = False):
        self.pod, self.dry_run = pod, dry_run
        self.reason = ''

    def state(self) -> str | None:
        """The queued resource's state, None where there is no such resource; why it FAILED is left
        in `reason`.
        """
        try:
            state, _, self.reason = self._run(commands.describe(self.pod)).strip().partition('\t')
        except GcloudError as error:
            if 'NOT_FOUND' not in str(error):
                raise
            state = ''
        return state or None

    def create(self) -> None:
        if not (self.pod.accelerator_type or self.pod.topology):
            raise UserError(
                f'{self.pod.file(".json")} does not say what to ask for: use create.py with '
                f'--accelerator_type'
            )
        self._run(commands.create(self.pod), show=True)

    def delete(self) -> None:
        self._run(commands.delete(self.pod), show=True)

    def install(self) -> None:
        for command in commands.install(self.pod, str(ROOT), _jax_requirement(self.pod.commit)):
            self._run(command, show=True)

    def workers(self) -> dict[str, str]:
        """How the run stands on each worker."""
        states = workers.parse_states(self._run(commands.state(self.pod)))
        if not states and not self.dry_run:
            raise GcloudError(f'no worker of {self.pod.name} answered')
        return states

    def start(self) -> None:
        self._run(commands.start(self.pod), show=True)

    def stop(self) -> None:
        self._run(commands.stop(self.pod), show=True)

    def show_log(self, follow: bool = False) -> None:
        self._run(commands.log(self.pod, follow), show=True)

    def save(self) -> None:
        """Records the pod."""
        if not self.dry_run:
            self.pod.save()

    def remark(self, text: str) -> None:
        """In a dry run, what the next command is for; beside what is pasted."""
        if self.dry_run:
            print(f'# {text}', file=sys.stderr, flush=True)

    def report(self, text: str) -> None:
        """What was done, if it was."""
        if not self.dry_run:
            print(text, flush=True)

    def _run(self, command: list[str], show: bool = False) -> str:
        """The one place that runs anything: returns what the command wrote to stdout, or shows all
        that it writes as it comes.
        """
        if self.dry_run:
            print(shlex.join(command), flush=True)
            return ''
        stderr = subprocess.STDOUT if show else subprocess.PIPE
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr
            )
        except FileNotFoundError as error:
            hint = (
                ': install the Google Cloud CLI (cloud.google.com/sdk/docs/install) and run '
                'gcloud auth login'
            )
            raise UserError(
                f'{command[0]} is not on the PATH{hint if command[0] == "gcloud" else ""}'
            ) from error
        with process:
            written = _show(process.stdout) if show and process.stdout else b''
            answer, complaints = process.communicate()
        text = (complaints or written).decode(errors='replace')
        # gcloud leaves out slices that it cannot reach, and ends with 0 all the same.
        if process.returncode or 'Could not prepare all' in text:
            raise GcloudError(
                f'{_why(text)} [status {process.returncode} of: {shlex.join(command)}]'
            )
        return answer.decode(errors='replace')


def _show(stream: IO[bytes]) -> bytes:
    """Copies what a process writes to stdout, and returns it."""
    seen = bytearray()
    while part := os.read(stream.fileno(), 1 << 16):
        seen += part
        sys.stdout.write(part.decode(errors='replace'))
        sys.stdout.flush()
    return bytes(seen)


def _why(complaints: str) -> str:
    """The line that says why: details may come behind it, and the words of other workers."""
    lines = [line.strip() for line in complaints.splitlines() if line.strip()]
    telling = [
        line
        for line in lines
        if line.startswith(('ERROR', 'error: ')) or 'Could not prepare all' in line
    ]
    return (telling or lines or ['it failed without a word'])[-1]


def head_commit(allow_dirty: bool) -> str:
    """The commit that the checkout is at. Raises UserError where it has changes of its own, which
    would not go along.
    """
    changed = [line[3:] for line in _git('status', '--porcelain').splitlines()]
    if changed and not allow_dirty:
        some = ', '.join(changed[:3]) + (', ...' if len(changed) > 3 else '')
        raise UserError(
            f'{ROOT} differs from its HEAD ({some}), and only HEAD is installed: commit it, or '
            f'give --allow_dirty'
        )
    return _git('rev-parse', 'HEAD').strip()


def _jax_requirement(commit: str) -> str:
    """jax[tpu] at the version that the commit's requirements.txt pins."""
    pinned = re.search(r'^jax==(\S+)', _git('show', f'{commit}:requirements.txt'), re.MULTILINE)
    if not pinned:
        raise UserError(f'requirements.txt of {commit} has no line jax==VERSION')
    return f'jax[tpu]=={pinned[1]}'


def _git(*words: str) -> str:
    """What git says of the checkout. It changes nothing, so a dry run asks too."""
    try:
        done = subprocess.run(['git', '-C', str(ROOT), *words], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError('git is not on the PATH: the workers get an archive of HEAD') from error
    if done.returncode:
        raise UserError(f'git {" ".join(words)}: {_why(done.stderr)}')
    return done.stdout


def wait_until_active(cloud: Cloud, poll_seconds: float) -> None:
    """Waits for the machines. Raises UserError where they will not come."""
    show = Progress()
    while (state := cloud.state()) != ACTIVE:
        if cloud.dry_run:
            return
        if state in (None, FAILED, SUSPENDING, SUSPENDED):
            reason = f' ({cloud.reason})' if cloud.reason else ''
            raise UserError(
                f'{cloud.pod.name} is {state or "no longer there"}{reason}: delete.py, then '
                f'create.py, ask for it again'
            )
        show(f'{cloud.pod.name}: {state}')
        time.sleep(poll_seconds)
    show(f'{cloud.pod.name}: {ACTIVE}')
    show.end()


class Progress:
    """How it stands, with the time: a line whenever that changes; on a terminal it grows old before
    one's eyes.
    """

    def __init__(self):
        self._text = self._line = ''
        self._since = 0.0

    def __call__(self, text: str) -> None:
        terminal = sys.stdout.isatty()
        if text != self._text:
            self.end()
            self._text, self._since = text, time.monotonic()
            self._line = f'{time.strftime("%F %R")} {text}'
            print(self._line, end='' if terminal else '\n', flush=True)
        elif terminal:
            print(
                f'\r{self._line}, for {(time.monotonic() - self._since) / 60:.0f} min',
                end='',
                flush=True,
            )

    def end(self) -> None:
        """Begins a new line."""
        if self._text and sys.stdout.isatty():
            print()
        self._text = ''

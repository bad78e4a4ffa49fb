"""Runs the commands of commands.py, or prints them in a dry run."""

import os
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from absl import flags

from cpt_jax.pod import commands, workers
from cpt_jax.pod.record import Pod, load_record
from cpt_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
# States of a queued resource. A preempted spot slice becomes SUSPENDED, and must be deleted and
# requested again.
ACTIVE, FAILED, SUSPENDING, SUSPENDED = 'ACTIVE', 'FAILED', 'SUSPENDING', 'SUSPENDED'


# How gcloud refuses a command that will not succeed later either: the API's two statuses, and the
# messages of gcloud's own parser.
_REFUSALS = (
    'PERMISSION_DENIED',
    'INVALID_ARGUMENT',
    'unrecognized arguments',
    'Invalid choice',
    'Invalid value for',
)
QUERY_SECONDS = 10 * 60.0  # maximum duration of a command that asks for a state
ACTION_SECONDS = 2 * 3600.0  # maximum duration of a command that creates, installs or starts


class GcloudError(UserError):
    """A command failed. The cause may be temporary (the network, a preemption in progress), so
    callers may retry.

    Attributes:
      is_refusal: whether gcloud refused the command, so that a retry would fail too.
    """

    def __init__(self, message: str, is_refusal: bool = False):
        super().__init__(message)
        self.is_refusal = is_refusal


def define_pod_flags() -> Callable[[], 'Cloud']:
    """Defines --name, --zone, --project and --dry_run.

    Returns:
      A function to call once flags are parsed. It returns the Cloud of the recorded pod, with the
      values of the flags.
    """
    name = flags.DEFINE_string('name', None, 'Name of the queued resource.', required=True)
    zone = flags.DEFINE_string(
        'zone', None, 'Zone, such as us-east5-a. Default: the zone recorded by create.py.'
    )
    project = flags.DEFINE_string(
        'project', None, "Google Cloud project. Default: the recorded project, or else gcloud's."
    )
    dry_run = flags.DEFINE_bool(
        'dry_run', False, 'Print the commands, ready to paste, and run nothing.'
    )

    def read() -> Cloud:
        pod = load_record(name.value) or Pod(name.value)
        pod.zone = zone.value or pod.zone
        pod.project = project.value or pod.project
        if not pod.zone:
            raise UserError(
                f'--zone is missing, and no zone is recorded in {pod.get_path(".json")}: pass '
                f'--zone, or run this in the directory in which create.py ran'
            )
        return Cloud(pod, dry_run.value)

    return read


class Cloud:
    """A pod and the run on it, which are read and changed through gcloud.

    Attributes:
      pod: the pod.
      dry_run: whether commands are printed and not run. States are then unknown (None or empty).
      reason: why the queued resource is FAILED, after `read_state`; else empty.
      reason_code: number of the reason (google.rpc.Code) as a string; else empty.
    """

    def __init__(self, pod: Pod, dry_run: bool = False):
        self.pod = pod
        self.dry_run = dry_run
        self.reason = ''
        self.reason_code = ''

    def read_state(self) -> str | None:
        """Returns the state of the queued resource, or None if it does not exist."""
        try:
            output = self.run_query(commands.make_describe_command(self.pod))
        except GcloudError as error:
            if 'NOT_FOUND' not in str(error):
                raise
            return None
        state, _, failure = output.strip().partition('\t')
        self.reason_code, _, self.reason = failure.partition('\t')
        return state or None

    def create(self) -> None:
        """Requests the queued resource.

        Raises:
          UserError: the record has no accelerator type and no topology.
        """
        if not (self.pod.accelerator_type or self.pod.topology):
            raise UserError(
                f'{self.pod.get_path(".json")} has no accelerator type: run create.py with '
                f'--accelerator_type'
            )
        self._act(commands.make_create_command(self.pod))

    def delete(self) -> None:
        """Deletes the queued resource and its nodes."""
        self._act(commands.make_delete_command(self.pod))

    def install(self) -> None:
        """Installs the recorded commit on all workers."""
        for command in commands.make_install_commands(self.pod, str(ROOT)):
            self._act(command)

    def read_worker_states(self) -> dict[str, str]:
        """Returns the state of the run on each worker, by worker."""
        states = workers.parse_states(self.run_query(commands.make_state_query_command(self.pod)))
        if not states and not self.dry_run:
            raise GcloudError(f'no worker of {self.pod.name} answered')
        return states

    def start(self) -> None:
        """Starts the recorded program with its flags on all workers."""
        self._act(commands.make_start_command(self.pod))

    def stop(self) -> None:
        """Sends SIGTERM to the run on all workers."""
        self._act(commands.make_stop_command(self.pod))

    def show_log(self, follow: bool = False) -> None:
        """Prints the end of the first worker's log, and new lines if `follow` is set."""
        self._run(commands.make_show_log_command(self.pod, follow), show=True)

    def save(self) -> None:
        """Writes the record of the pod."""
        if not self.dry_run:
            self.pod.save()

    def print_note(self, text: str) -> None:
        """In a dry run, explains the next command on stderr, because users paste the stdout."""
        if self.dry_run:
            print(f'# {text}', file=sys.stderr, flush=True)

    def report(self, text: str) -> None:
        """Prints the result of commands that were run; does nothing in a dry run."""
        if not self.dry_run:
            print(text, flush=True)

    def run_query(self, command: list[str]) -> str:
        """Runs a command that changes nothing; returns its output, as `_run` does."""
        return self._run(command, seconds=QUERY_SECONDS)

    def _act(self, command: list[str]) -> None:
        self._run(command, show=True, seconds=ACTION_SECONDS)

    def _run(self, command: list[str], show: bool = False, seconds: float | None = None) -> str:
        """Runs a command, or prints it in a dry run. All commands of a pod go through here.

        Args:
          show: whether to print the output (stdout and stderr) while the command runs.
          seconds: time after which the command is killed (an ssh can hang without network for
            hours); None: never.

        Returns:
          The stdout of the command; empty in a dry run or if `show` is set.

        Raises:
          GcloudError: the command failed or took too long, or gcloud left out some workers.
          UserError: the program is not installed.
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
            hint = ''
            if command[0] == 'gcloud':
                hint = (
                    ': install the Google Cloud CLI (cloud.google.com/sdk/docs/install) and run '
                    'gcloud auth login'
                )
            raise UserError(f'{command[0]} is not on the PATH{hint}') from error
        with process:
            try:
                shown = b''
                if show and process.stdout:
                    shown = _copy_to_stdout(process.stdout, seconds)
                stdout, stderr_bytes = process.communicate(timeout=seconds)
            except (TimeoutError, subprocess.TimeoutExpired) as error:
                process.kill()
                raise GcloudError(
                    f'no end after {seconds:.0f} s of: {shlex.join(command)}'
                ) from error
        messages = (stderr_bytes or shown).decode(errors='replace')
        # gcloud leaves out nodes that it cannot reach, and still exits with status 0.
        if process.returncode or 'Could not prepare all' in messages:
            line = _find_error(messages)
            raise GcloudError(
                f'{line} [status {process.returncode} of: {shlex.join(command)}]',
                is_refusal=line.startswith('ERROR') and any(text in line for text in _REFUSALS),
            )
        return stdout.decode(errors='replace')


def _copy_to_stdout(stream: IO[bytes], seconds: float | None) -> bytes:
    """Copies a stream to stdout as it arrives; returns its content.

    Raises:
      TimeoutError: the stream did not end within `seconds`.
    """
    content = bytearray()
    start = time.monotonic()
    while True:
        left = None if seconds is None else start + seconds - time.monotonic()
        if not select.select([stream], [], [], left and max(left, 0.0))[0]:
            raise TimeoutError
        block = os.read(stream.fileno(), 1 << 16)
        if not block:
            break
        content += block
        sys.stdout.write(block.decode(errors='replace'))
        sys.stdout.flush()
    return bytes(content)


def _find_error(messages: str) -> str:
    """Returns the last line that reports an error; other output may follow it."""
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    errors = [
        line
        for line in lines
        if line.startswith(('ERROR', 'error: ')) or 'Could not prepare all' in line
    ]
    return (errors or lines or ['it failed without a message'])[-1]


def get_head_commit(allow_dirty: bool) -> str:
    """Returns the commit at HEAD of the checkout.

    Raises:
      UserError: the checkout has uncommitted changes, which would not be installed, and
        `allow_dirty` is not set.
    """
    changed = [line[3:] for line in _run_git('status', '--porcelain').splitlines()]
    if changed and not allow_dirty:
        shown = ', '.join(changed[:3]) + (', ...' if len(changed) > 3 else '')
        raise UserError(
            f'{ROOT} has uncommitted changes ({shown}), and only HEAD is installed: commit them, '
            f'or pass --allow_dirty'
        )
    return _run_git('rev-parse', 'HEAD').strip()


def _run_git(*arguments: str) -> str:
    """Returns the output of a git command on the checkout.

    It runs in a dry run too, because the commands used here change nothing.
    """
    command = ['git', '-C', str(ROOT), *arguments]
    try:
        process = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError(
            'git is not on the PATH: install it, the workers get a git archive of HEAD'
        ) from error
    if process.returncode:
        raise UserError(f'git {" ".join(arguments)}: {_find_error(process.stderr)}')
    return process.stdout


def wait_until_active(cloud: Cloud, poll_seconds: float) -> None:
    """Waits until the queued resource is ACTIVE; prints its state meanwhile.

    Raises:
      UserError: it does not exist, has FAILED, or was preempted.
    """
    show = StatusPrinter()
    while (state := cloud.read_state()) != ACTIVE:
        if cloud.dry_run:
            return
        if state in (None, FAILED, SUSPENDING, SUSPENDED):
            if state is None:
                raise UserError(f'{cloud.pod.name} does not exist: request it with create.py')
            reason = f' ({cloud.reason})' if cloud.reason else ''
            raise UserError(
                f'{cloud.pod.name} is {state}{reason}: delete.py, then create.py, request it again'
            )
        show(f'{cloud.pod.name}: {state}')
        time.sleep(poll_seconds)
    show(f'{cloud.pod.name}: {ACTIVE}')
    show.end()


class StatusPrinter:
    """Prints a status with the time; each change of the status is one line.

    On a terminal, the current line also shows how long the status has lasted.
    """

    def __init__(self):
        self._text = ''
        self._line = ''
        self._since = 0.0

    def __call__(self, text: str) -> None:
        """Prints the status if it has changed, or updates its duration on a terminal."""
        is_terminal = sys.stdout.isatty()
        if text != self._text:
            self.end()
            self._text = text
            self._since = time.monotonic()
            self._line = f'{time.strftime("%F %R")} {text}'
            print(self._line, end='' if is_terminal else '\n', flush=True)
        elif is_terminal:
            minutes = (time.monotonic() - self._since) / 60
            print(f'\r{self._line}, for {minutes:.0f} min', end='', flush=True)

    def end(self) -> None:
        """Ends the current line; the next status is printed even if it is the same."""
        if self._text and sys.stdout.isatty():
            print()
        self._text = ''

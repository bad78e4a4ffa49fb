"""States of a run on the workers, as launch/tpu/on_worker.sh prints them.

A state is one of the constants below, or `exited N` with another exit status.
"""

import re

RUNNING, GONE, IDLE, NOT_INSTALLED = 'running', 'gone', 'idle', 'not installed'
# The exit statuses of launch/train.py: done, invalid input, preempted with everything saved.
DONE, INVALID_INPUT, PREEMPTED = 'exited 0', 'exited 1', 'exited 42'


def parse_states(output: str) -> dict[str, str]:
    """Returns the state of each worker that answered, by worker."""
    return dict(re.findall(r'^worker (\S+): (.+)$', output, re.MULTILINE))


def combine_states(states: dict[str, str]) -> str:
    """Returns the state of the run as a whole.

    It is the first of these states that any worker has: running, invalid input, preempted, crashed
    (another exit status), gone, idle, not installed; and `exited 0` if all workers are done.
    """
    found = set(states.values())
    crashed = sorted(
        state
        for state in found
        if state.startswith('exited') and state not in (DONE, INVALID_INPUT, PREEMPTED)
    )
    order = [RUNNING, INVALID_INPUT, PREEMPTED, *crashed, GONE, IDLE, NOT_INSTALLED]
    return next((state for state in order if state in found), DONE)


def to_exit_status(state: str) -> int:
    """Returns the exit status that a program reports for a state.

    It is the run's own exit status if it exited, 3 while it runs, and 4 if no run is active and
    its exit status is unknown.
    """
    if state.startswith('exited '):
        return int(state.removeprefix('exited '))
    return 3 if state == RUNNING else 4


def summarize_states(states: dict[str, str]) -> str:
    """Returns one line per state with the number of workers in it and some of their names."""
    lines = []
    for state in sorted(set(states.values())):
        names = sorted(name for name in states if states[name] == state)
        shown = ', '.join(names[:4]) + (', ...' if len(names) > 4 else '')
        lines.append(f'{len(names)} of {len(states)} workers: {state} ({shown})')
    return '\n'.join(lines)

"""How a run stands on the workers, in the words of launch/tpu/on_worker.sh: these, or `exited
N`.
"""

import re

RUNNING, GONE, IDLE, NOT_INSTALLED = 'running', 'gone', 'idle', 'not installed'
# The exit statuses of launch/train.py.
ENDED, WRONG, PREEMPTED = 'exited 0', 'exited 1', 'exited 42'


def parse_states(answer: str) -> dict[str, str]:
    """The state of each worker that answered."""
    return dict(re.findall(r'^worker (\S+): (.+)$', answer, re.MULTILINE))


def together(states: dict[str, str]) -> str:
    """How the run stands as a whole: one worker that runs decides, then the worst."""
    found = set(states.values())
    crashed = sorted(
        state
        for state in found
        if state.startswith('exited') and state not in (ENDED, WRONG, PREEMPTED)
    )
    order = [RUNNING, WRONG, PREEMPTED, *crashed, GONE, IDLE, NOT_INSTALLED]
    return next((state for state in order if state in found), ENDED)


def exit_status(state: str) -> int:
    """For a program that shows it: the run's own; 3 while it runs; 4 where nothing runs and nothing
    says how it ended.
    """
    if state.startswith('exited '):
        return int(state.removeprefix('exited '))
    return 3 if state == RUNNING else 4


def summary(states: dict[str, str]) -> str:
    """A line for each state that workers are in."""
    lines = []
    for state in sorted(set(states.values())):
        names = sorted(name for name in states if states[name] == state)
        some = ', '.join(names[:4]) + (', ...' if len(names) > 4 else '')
        lines.append(f'{len(names)} of {len(states)} workers: {state} ({some})')
    return '\n'.join(lines)

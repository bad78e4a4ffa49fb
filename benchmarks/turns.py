"""Times the sides of a comparison in turn, so that changes of the machine's speed affect all."""

import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple, TypeVar

from tqdm import tqdm

T = TypeVar('T')


class Moment(NamedTuple):
    """A point in time, by the clock and in CPU time of this process.

    On a shared machine CPU time is more reliable, but only with one thread per side (`taskset -c
    0`): threads that wait for each other spin.

    Attributes:
      seconds: wall-clock time.
      cpu_seconds: CPU time of this process, all threads together.
    """

    seconds: float
    cpu_seconds: float

    @classmethod
    def now(cls) -> 'Moment':
        """Returns the current moment."""
        return cls(time.perf_counter(), time.process_time())

    def until(self, end: 'Moment') -> dict[str, float]:
        """Returns the wall-clock and CPU seconds from this moment to `end`, by field name."""
        return {name: getattr(end, name) - getattr(self, name) for name in self._fields}


def time_in_turn(sides: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Times functions in turn in this process, after one round that is not timed.

    Args:
      sides: functions by name; each returns when its work is done.
      repeats: timed calls of each.

    Returns:
      Seconds of each call, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def count_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def take_turns(
    processes: Mapping[str, Mapping[str, Callable[[int], T]]], rounds: int
) -> dict[str, list[T]]:
    """Calls functions in turn, in several processes.

    It is for sides that must not share a process, so that threads of JAX and torch do not compete.
    A process lasts for all rounds, keeps what it has loaded and compiled, and sleeps while it is
    not its turn.

    Args:
      processes: the sides of each process, by name. A side is a function of the index of the round,
        where round 0 is a warm-up. The function and its result must be picklable.
      rounds: rounds after the warm-up.

    Returns:
      Results of each side by its name, one per round, without the warm-up.
    """
    results: dict[str, list[T]] = {name: [] for sides in processes.values() for name in sides}
    with contextlib.ExitStack() as stack:
        started = {name: stack.enter_context(_start_process()) for name in processes}
        turns = [
            (*side, process, number)
            for number in range(rounds + 1)
            for process, sides in processes.items()
            for side in sides.items()
        ]
        for name, turn, process, number in tqdm(turns, desc='turns', unit='turn', disable=None):
            results[name].append(started[process].submit(turn, number).result())
    return {name: turns[1:] for name, turns in results.items()}


def call_in_process(function: Callable[..., T], *arguments: object) -> T:
    """Calls a function in a new process, which ends afterwards; returns its result."""
    with _start_process() as process:
        return process.submit(function, *arguments).result()


def compute_spread(values: Sequence[float]) -> dict[str, float]:
    """Returns median, minimum and maximum."""
    return {'median': statistics.median(values), 'min': min(values), 'max': max(values)}


def _start_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn'))

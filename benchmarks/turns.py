"""What is compared takes turns: a machine that gets slower or faster does so for all sides."""

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
    """Now: by the clock, and in the time that processors spent on this process.

    On a machine that others use too, the second tells more, if there is one thread a side (`taskset
    -c 0`): several spin while they wait.
    """

    seconds: float
    cpu_seconds: float

    @classmethod
    def now(cls) -> 'Moment':
        return cls(time.perf_counter(), time.process_time())

    def until(self, end: 'Moment') -> dict[str, float]:
        """Both times that passed, by name."""
        return {name: getattr(end, name) - getattr(self, name) for name in self._fields}


def in_turn(sides: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call by name, in this process, after one round that does not count. A call
    returns when its work is done.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def take_turns(
    processes: Mapping[str, Mapping[str, Callable[[int], T]]], rounds: int
) -> dict[str, list[T]]:
    """What each side returns in each round, by its name; one round before them does not count.

    For sides that cannot share a process: the threads of JAX and of torch never meet. A process
    lasts for all turns, so what it loaded and compiled stays, and sleeps while it is not its turn.

    Args:
      processes: of each its sides, by name. A side is called with the number of the round, from 0
        for that which does not count, and can be pickled, as can what it returns.
    """
    results: dict[str, list[T]] = {name: [] for sides in processes.values() for name in sides}
    with contextlib.ExitStack() as stack:
        started = {name: stack.enter_context(_process()) for name in processes}
        turns = [
            (*side, process, number)
            for number in range(rounds + 1)
            for process, sides in processes.items()
            for side in sides.items()
        ]
        for name, turn, process, number in tqdm(turns, desc='turns', unit='turn', disable=None):
            results[name].append(started[process].submit(turn, number).result())
    return {name: turns[1:] for name, turns in results.items()}


def alone(function: Callable[..., T], *arguments: object) -> T:
    """Calls a function in a process that ends with it."""
    with _process() as process:
        return process.submit(function, *arguments).result()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {'median': statistics.median(values), 'min': min(values), 'max': max(values)}


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn'))

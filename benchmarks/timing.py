"""Times things in turn in one process, so that whatever else the machine does falls on all of them."""

import time
from collections.abc import Callable, Mapping


def in_turn(sides: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call by name, after one round that does not count. A call returns when its work is done."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds

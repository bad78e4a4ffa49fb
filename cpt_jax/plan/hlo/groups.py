"""Which devices exchange data in a collective: the notations of replica groups.

{{0,1},{2,3}}                        lists
[4,2]<=[2,4]T(1,0)                   4 groups of 2: 0..7 as [2,4], transposed, in reading order
mesh['a'=4,'b'=2] {'b'}              the devices as a mesh; a group differs in the named axes
mesh['a'=8], device_ids=([2,4]T(1,0)) {'a':(2)4}
                                     the mesh's devices in another order; of axis a, the part of
                                     size 4 after one of size 2
"""

import functools
import math
import re

import numpy as np

from cpt_jax.plan.hlo.program import HloError

_IOTA = r'\[([\d,]+)\](?:T\(([\d,]+)\))?'


@functools.lru_cache(maxsize=1024)
def replica_groups(attributes: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """The groups of a collective, by the numbers of their devices; without any, all devices are
    one.

    Args:
      attributes: of the instruction.
      devices: how many the program runs on.

    Raises:
      HloError: a notation that is not known.
    """
    found = re.search(r'(?:^|, )(replica_groups|source_target_pairs)=', attributes)
    if not found:
        return (tuple(range(devices)),)
    text = attributes[found.end() :]
    for pattern, read in (
        (r'\{((?:\{[\d,]*\},?)*)\}', _lists),
        (rf'\[([\d,]+)\]<={_IOTA}', _iota),
        (_MESH, _mesh),
    ):
        match = re.match(pattern, text)
        if match:
            return read(match) or (tuple(range(devices)),)
    raise HloError(f'unknown notation of replica groups: {text[:120]}')


def _lists(match: re.Match) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(_numbers(group)) for group in re.findall(r'\{([\d,]+)\}', match[1]))


def _iota(match: re.Match) -> tuple[tuple[int, ...], ...]:
    return _tuples(_order(match[2], match[3]).reshape(_numbers(match[1])))


_MESH = rf'mesh\[([^\]]*)\](?:, device_ids=\((?:{_IOTA}|([\d,]+))\))? ?\{{([^}}]*)\}}'


def _mesh(match: re.Match) -> tuple[tuple[int, ...], ...]:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
    count = math.prod(sizes.values())
    if match[2]:
        order = _order(match[2], match[3])
    else:
        order = np.array(_numbers(match[4])) if match[4] else np.arange(count)
    parts: list[int] = []  # of all axes, split where an axis takes part with a piece of itself
    chosen: dict[int, int] = {}  # place in the list of axes -> place in `parts`
    named = [
        (name, int(before or 1), int(size or sizes[name]))
        for name, before, size in re.findall(_AXIS, match[5])
    ]
    for axis, size in sizes.items():
        pieces = sorted(
            (before, piece, at) for at, (name, before, piece) in enumerate(named) if name == axis
        )
        passed = 1
        for before, piece, at in pieces:
            parts += [before // passed, piece]
            chosen[at] = len(parts) - 1
            passed = before * piece
        parts.append(size // passed)
    inner = [chosen[at] for at in range(len(named))]
    outer = [place for place in range(len(parts)) if place not in inner]
    return _tuples(
        order.reshape(parts)
        .transpose(outer + inner)
        .reshape(-1, math.prod(parts[place] for place in inner))
    )


_AXIS = r"'([^']+)'(?::\((\d+)\)(\d+))?"


def _order(sizes: str, transposed: str | None) -> np.ndarray:
    shape = _numbers(sizes)
    order = np.arange(math.prod(shape)).reshape(shape)
    return (order.transpose(_numbers(transposed)) if transposed else order).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(',') if number]


def _tuples(array: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(device) for device in group) for group in array)

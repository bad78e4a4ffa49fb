"""Parses replica groups, which name the devices that exchange data in a collective.

HLO has these notations:

{{0,1},{2,3}}                        lists of devices
[4,2]<=[2,4]T(1,0)                   4 groups of 2 devices: 0..7 reshaped to [2,4], transposed, read
                                     in row-major order
mesh['a'=4,'b'=2] {'b'}              the devices as a mesh; the devices of a group differ only in
                                     the named axes
mesh['a'=8], device_ids=([2,4]T(1,0)) {'a':(2)4}
                                     a mesh with another device order; axis a is split into [2,4,1],
                                     and the devices of a group differ only in the part of size 4
"""

import functools
import math
import re

import numpy as np

from cpt_jax.plan.hlo.program import HloError

_IOTA = r'\[([\d,]+)\](?:T\(([\d,]+)\))?'


@functools.lru_cache(maxsize=1024)
def parse_replica_groups(attributes: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """Returns the groups of a collective, as device numbers.

    If no groups are given, all devices form one group.

    Args:
      attributes: attributes of the instruction.
      devices: number of devices that run the program.

    Raises:
      HloError: the notation is unknown.
    """
    all_devices = (tuple(range(devices)),)
    key = re.search(r'(?:^|, )(replica_groups|source_target_pairs)=', attributes)
    if not key:
        return all_devices
    text = attributes[key.end() :]
    for pattern, read in (
        (r'\{((?:\{[\d,]*\},?)*)\}', _read_lists),
        (rf'\[([\d,]+)\]<={_IOTA}', _read_iota),
        (_MESH, _read_mesh),
    ):
        match = re.match(pattern, text)
        if match:
            return read(match) or all_devices
    raise HloError(f'unknown notation of replica groups: {text[:120]}')


def _read_lists(match: re.Match) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(_parse_numbers(group)) for group in re.findall(r'\{([\d,]+)\}', match[1]))


def _read_iota(match: re.Match) -> tuple[tuple[int, ...], ...]:
    return _to_tuples(_make_device_order(match[2], match[3]).reshape(_parse_numbers(match[1])))


_MESH = rf'mesh\[([^\]]*)\](?:, device_ids=\((?:{_IOTA}|([\d,]+))\))? ?\{{([^}}]*)\}}'


def _read_mesh(match: re.Match) -> tuple[tuple[int, ...], ...]:
    axis_sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
    if match[2]:
        order = _make_device_order(match[2], match[3])
    elif match[4]:
        order = np.array(_parse_numbers(match[4]))
    else:
        order = np.arange(math.prod(axis_sizes.values()))
    # The axes along which the devices of a group differ: (axis, size of the dimensions before the
    # named part within that axis, size of the part).
    named = [
        (name, int(before or 1), int(size or axis_sizes[name]))
        for name, before, size in re.findall(_AXIS, match[5])
    ]
    # Split each mesh axis into its named parts and the rest: (2)2 of size 8 -> [2, 2, 2].
    split_sizes: list[int] = []
    split_index: dict[int, int] = {}  # index in `named` -> index in `split_sizes`
    for axis, axis_size in axis_sizes.items():
        parts = sorted(
            (before, size, index)
            for index, (name, before, size) in enumerate(named)
            if name == axis
        )
        covered = 1
        for before, size, index in parts:
            split_sizes += [before // covered, size]
            split_index[index] = len(split_sizes) - 1
            covered = before * size
        split_sizes.append(axis_size // covered)
    # Move the named parts to the end: each row is then one group.
    inner = [split_index[index] for index in range(len(named))]
    outer = [index for index in range(len(split_sizes)) if index not in inner]
    group_size = math.prod(split_sizes[index] for index in inner)
    groups = order.reshape(split_sizes).transpose(outer + inner).reshape(-1, group_size)
    return _to_tuples(groups)


_AXIS = r"'([^']+)'(?::\((\d+)\)(\d+))?"


def _make_device_order(sizes: str, permutation: str | None) -> np.ndarray:
    shape = _parse_numbers(sizes)
    order = np.arange(math.prod(shape)).reshape(shape)
    if permutation:
        order = order.transpose(_parse_numbers(permutation))
    return order.reshape(-1)


def _parse_numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(',') if number]


def _to_tuples(array: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(device) for device in group) for group in array)

"""A lower bound of the time that the network needs for a step's collectives.

The bound assumes that links run at their full rate, every byte takes the shortest path, collectives
on different links overlap, and no device waits for another. It counts the bytes that each chip must
receive.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from cpt_jax.plan.hlo.collectives import CollectiveSite
from cpt_jax.runtime.hardware import Chip


@dataclasses.dataclass(frozen=True)
class DevicePosition:
    """Position of a device: its slice, and the coordinates of its chip in the slice's torus."""

    slice: int
    chip: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Load:
    """Bytes that the busiest chip receives in one execution of a collective.

    Attributes:
      links: pairs (torus dimension, number of links that a chip can use in it), for the dimensions
        along which a group extends.
      torus: bytes received over the torus.
      dcn: bytes received over the data-center network.
    """

    links: frozenset[tuple[int, int]]
    torus: float
    dcn: float


def compute_network_seconds(
    sites: Iterable[CollectiveSite], positions: Sequence[DevicePosition], chip: Chip
) -> float:
    """Returns a lower bound of the seconds that the network needs per step.

    Args:
      sites: collectives of the program, from `find_collectives`.
      positions: positions of the devices, in the program's device order.
      chip: kind of chip, with its link rates.
    """
    by_links: dict[frozenset[tuple[int, int]], float] = {}
    dcn = 0.0
    for site in sites:
        load = _compute_load(site, positions)
        by_links[load.links] = by_links.get(load.links, 0.0) + site.times * load.torus
        dcn += site.times * load.dcn
    return max(_compute_torus_seconds(by_links, chip), dcn / chip.dcn_rate if dcn else 0.0)


def _compute_torus_seconds(by_links: dict[frozenset[tuple[int, int]], float], chip: Chip) -> float:
    """Returns the largest of several lower bounds of the seconds on the torus.

    Each set of links gives a bound: its bytes divided by the rate of these links. Each set of
    dimensions gives a bound: the bytes that can only travel in these dimensions, divided by the
      rate
    of all their links.
    """
    bounds = [
        size / (chip.link_rate * max(1, sum(links for _, links in key)))
        for key, size in by_links.items()
    ]
    max_links: dict[int, int] = {}
    for key in by_links:
        for dimension, links in key:
            max_links[dimension] = max(links, max_links.get(dimension, 0))
    for count in range(1, len(max_links) + 1):
        for chosen in itertools.combinations(sorted(max_links), count):
            size = sum(
                size
                for key, size in by_links.items()
                if {dimension for dimension, _ in key} <= {*chosen}
            )
            links = sum(max_links[dimension] for dimension in chosen)
            bounds.append(size / (chip.link_rate * links))
    return max(bounds, default=0.0)


def _compute_load(site: CollectiveSite, positions: Sequence[DevicePosition]) -> _Load:
    if site.dcn:
        return _Load(frozenset(), 0.0, _count_received_bytes(site, site.members))
    if site.kind == 'collective-permute':
        return _compute_permute_load(site, positions)
    devices_per_chip = len(positions) // len(set(positions))
    loads = [
        _compute_group_load(site, [positions[device] for device in group], devices_per_chip)
        for group in site.groups
    ]
    return max(loads, key=lambda load: (load.torus, load.dcn))


def _compute_group_load(
    site: CollectiveSite, group: Sequence[DevicePosition], devices_per_chip: int
) -> _Load:
    """Returns the load of one group; if the devices of a chip are in several groups, the chip
    carries the load of all of them.
    """
    chips = set(group)
    slices = len({position.slice for position in chips})
    groups_per_chip = devices_per_chip * len(chips) / len(group)
    chips_per_slice = len(chips) // slices
    total = groups_per_chip * _count_received_bytes(site, len(chips))
    # Each chip of a slice receives a part of the data from other slices. The chips then exchange
    # the parts within the slice.
    between_slices = groups_per_chip * _count_received_bytes(site, slices) / chips_per_slice
    return _Load(_find_links(chips), total - between_slices, between_slices)


def _count_received_bytes(site: CollectiveSite, members: int) -> float:
    """Returns the minimum number of bytes that each of `members` devices or slices must receive."""
    rounds = 2 if site.kind == 'all-reduce' or site.summed else 1
    return rounds * site.bytes * (members - 1) / members


def _find_links(chips: Iterable[DevicePosition]) -> frozenset[tuple[int, int]]:
    """Returns pairs (dimension, usable links of a chip) for the dimensions that the chips span.

    A chip has two links per dimension; if the group has only two chips in a dimension, they use the
    single link between them.
    """
    extents = [
        len({*coordinates})
        for coordinates in zip(*(position.chip for position in chips), strict=True)
    ]
    return frozenset(
        (dimension, min(extent - 1, 2)) for dimension, extent in enumerate(extents) if extent > 1
    )


def _compute_permute_load(site: CollectiveSite, positions: Sequence[DevicePosition]) -> _Load:
    """Returns the load of the busiest chip: the bytes that other chips send to its devices."""
    received: dict[DevicePosition, list[DevicePosition]] = {}
    for sender, receiver in site.groups:
        if positions[sender] != positions[receiver]:
            received.setdefault(positions[receiver], []).append(positions[sender])
    loads = [_Load(frozenset(), 0.0, 0.0)]
    for target, sources in received.items():
        near = [source for source in sources if source.slice == target.slice]
        links = frozenset().union(*(_find_links({source, target}) for source in near))
        loads.append(_Load(links, site.bytes * len(near), site.bytes * (len(sources) - len(near))))
    return max(loads, key=lambda load: (load.torus, load.dcn))

"""The least time that the network needs for a step's collectives.

A lower bound: links run at their full rate, every byte goes the shortest way, all collectives that
use different links overlap, and nothing waits for anything. What is counted is what must enter a
chip.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from cpt_jax.plan.hlo.collectives import Site
from cpt_jax.runtime.hardware import Chip


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a device is: the slice, and the coordinates of its chip in the slice's torus."""

    slice: int
    chip: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Load:
    """Bytes that a collective brings into the busiest chip at one execution, over the torus and
    over the data center's network.

    `links`: (dimension, links in it) of those dimensions that a group extends in.
    """

    links: frozenset[tuple[int, int]]
    torus: float
    dcn: float


def network_seconds(sites: Iterable[Site], places: Sequence[Place], chip: Chip) -> float:
    """Of one step.

    Args:
      sites: from `collectives`.
      places: of the devices, in the order that the program numbers them.
      chip: its rates.
    """
    by_links: dict[frozenset[tuple[int, int]], float] = {}
    dcn = 0.0
    for site in sites:
        load = _load(site, places)
        by_links[load.links] = by_links.get(load.links, 0.0) + site.times * load.torus
        dcn += site.times * load.dcn
    return max(_torus_seconds(by_links, chip), dcn / chip.dcn_rate if dcn else 0.0)


def _torus_seconds(by_links: dict[frozenset[tuple[int, int]], float], chip: Chip) -> float:
    """The busiest set of dimensions: what only they can carry, over all links that they have."""
    alone = [
        size / (chip.link_rate * max(1, sum(links for _, links in key)))
        for key, size in by_links.items()
    ]
    most = {
        dimension: max(links for key in by_links for at, links in key if at == dimension)
        for key in by_links
        for dimension, _ in key
    }
    together = []
    for count in range(1, len(most) + 1):
        for chosen in itertools.combinations(sorted(most), count):
            size = sum(
                size
                for key, size in by_links.items()
                if {dimension for dimension, _ in key} <= {*chosen}
            )
            together.append(size / (chip.link_rate * sum(most[dimension] for dimension in chosen)))
    return max([*alone, *together], default=0.0)


def _load(site: Site, places: Sequence[Place]) -> _Load:
    if site.dcn:
        return _Load(frozenset(), 0.0, _received(site, site.members))
    if site.kind == 'collective-permute':
        return _permute_load(site, places)
    devices_a_chip = len(places) // len(set(places))
    loads = [
        _group_load(site, [places[device] for device in group], devices_a_chip)
        for group in site.groups
    ]
    return max(loads, key=lambda load: (load.torus, load.dcn))


def _group_load(site: Site, group: Sequence[Place], devices_a_chip: int) -> _Load:
    """One group's; where the devices of a chip are in different groups, the chip carries them
    all.
    """
    chips = set(group)
    slices = len({place.slice for place in chips})
    groups_a_chip = devices_a_chip * len(chips) / len(group)
    here = len(chips) // slices
    everything = groups_a_chip * _received(site, len(chips))
    # Each chip of a slice fetches another share from the other slices; the shares are exchanged
    # within the slice.
    between = groups_a_chip * _received(site, slices) / here
    return _Load(_links(chips), everything - between, between)


def _received(site: Site, members: int) -> float:
    """Bytes that one of so many members must receive at least."""
    rounds = 2 if site.kind == 'all-reduce' or site.summed else 1
    return rounds * site.bytes * (members - 1) / members


def _links(chips: Iterable[Place]) -> frozenset[tuple[int, int]]:
    """A chip has two links in a dimension; two chips that are all that a group has in it, have one
    between them.
    """
    extents = [
        len({*coordinates}) for coordinates in zip(*(place.chip for place in chips), strict=True)
    ]
    return frozenset(
        (dimension, min(extent - 1, 2)) for dimension, extent in enumerate(extents) if extent > 1
    )


def _permute_load(site: Site, places: Sequence[Place]) -> _Load:
    """A chip receives what its devices receive from other chips."""
    received: dict[Place, list[Place]] = {}
    for sender, receiver in site.groups:
        if places[sender] != places[receiver]:
            received.setdefault(places[receiver], []).append(places[sender])
    loads = [_Load(frozenset(), 0.0, 0.0)]
    for target, sources in received.items():
        near = [source for source in sources if source.slice == target.slice]
        links = frozenset().union(*(_links({source, target}) for source in near))
        loads.append(_Load(links, site.bytes * len(near), site.bytes * (len(sources) - len(near))))
    return max(loads, key=lambda load: (load.torus, load.dcn))

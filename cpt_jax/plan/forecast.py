"""A forecast of a step's time, and what in the program costs more of it than expected."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from cpt_jax.plan.hlo.collectives import CollectiveSite
from cpt_jax.plan.hlo.program import Module
from cpt_jax.plan.hlo.roofline import InstructionTime, sum_seconds, time_instructions
from cpt_jax.plan.hlo.schedule import DCN, ICI, NetworkTime, Schedule, run_schedule
from cpt_jax.plan.network import DevicePosition, compute_network_seconds
from cpt_jax.runtime.hardware import Chip

_NAMED_SHARE = 0.01  # what takes this share of a step is named


@dataclasses.dataclass(frozen=True)
class PublishedMfu:
    """MFU that MaxText measured on a kind of chip.

    Attributes:
      low: lowest of its published values, a fraction.
      high: the highest one.
      models: what was trained.
    """

    low: float
    high: float
    models: str


# github.com/AI-Hypercomputer/maxtext at e591f30cb: MaxText/configs/v5e/README.md, and docs
# "Runtime Performance Results" and docs/reference/models/tiering.md. Those of v6e count half of the
# products of causal attention; this code counts all of them.
PUBLISHED_MFU = {
    'v5e': PublishedMfu(0.56, 0.67, 'language models of 16B to 128B parameters on 256 chips'),
    'v5p': PublishedMfu(0.69, 0.71, 'language models of 32B to 128B parameters'),
    'v6e': PublishedMfu(0.44, 0.50, 'Llama of 8B and 70B parameters'),
}


@dataclasses.dataclass(frozen=True)
class Forecast:
    """A forecast of a step.

    Attributes:
      seconds: seconds per step: each instruction at the peak rate that limits it, one after
        another, and the waiting for transfers that these do not hide; see plan/hlo/schedule.py.
      notes: what takes a notable share of these seconds.
    """

    seconds: float
    notes: tuple[str, ...]


def make_forecast(
    module: Module, sites: Sequence[CollectiveSite], positions: Sequence[DevicePosition], chip: Chip
) -> Forecast:
    """Returns the forecast of a compiled program.

    Args:
      module: the program of one device.
      sites: its collectives.
      positions: positions of the devices, in the program's device order.
      chip: kind of chip.
    """
    times = {
        time.name: time
        for time in time_instructions(
            module, chip.flops / chip.devices, chip.hbm_rate / chip.devices
        )
    }
    networks = {
        site.name: NetworkTime(
            compute_network_seconds([dataclasses.replace(site, times=1)], positions, chip),
            DCN if site.dcn else ICI,
            site.is_async,
        )
        for site in sites
    }
    schedule = run_schedule(module, times, networks)
    notes = (
        *_note_waiting(sites, schedule),
        _note_float32(sites, positions, chip, schedule.seconds),
        _note_copies(times.values(), schedule.seconds),
        _note_moves(schedule, networks),
        _note_narrow_heads(times.values(), chip, schedule.seconds),
    )
    return Forecast(schedule.seconds, tuple(note for note in notes if note))


def _note_waiting(sites: Sequence[CollectiveSite], schedule: Schedule) -> list[str]:
    groups: dict[str, list[CollectiveSite]] = {}
    for site in sites:
        place = 'in loops' if site.loops else 'outside of loops'
        kind = f'synchronous {{}} {place}, during which nothing else runs'
        if site.is_async:
            kind = 'asynchronous {}, in part not hidden by other instructions'
        if schedule.exposed[site.name]:
            groups.setdefault(kind, []).append(site)
    notes = []
    for kind, group in groups.items():
        lost = sum(schedule.exposed[name] for name in {site.name for site in group})
        if lost >= _NAMED_SHARE * schedule.seconds:
            executions = sum(site.times for site in group)
            kind = kind.format('collective' if executions == 1 else 'collectives')
            notes.append(f'{executions:,} {kind}: {lost / schedule.seconds:.1%} of the step')
    return notes


def _note_float32(
    sites: Sequence[CollectiveSite],
    positions: Sequence[DevicePosition],
    chip: Chip,
    seconds: float,
) -> str:
    found = [site for site in sites if site.kind == 'all-reduce' and site.dtype == 'f32']
    lost = sum(compute_network_seconds([site], positions, chip) for site in found)
    if lost < _NAMED_SHARE * seconds:
        return ''
    size = sum(site.times * site.bytes for site in found) * chip.devices
    share = f'{lost / seconds:.1%} of the step'
    return f'all-reduces in float32: {size / 2**20:,.0f} MiB a chip, {share}'


def _note_copies(times: Iterable[InstructionTime], seconds: float) -> str:
    copies = [time for time in times if time.is_copy]
    lost = sum_seconds(copies)
    if lost < _NAMED_SHARE * seconds:
        return ''
    largest = max(copies, key=lambda time: time.seconds)
    return (
        f'copies of arrays to other layouts: {lost / seconds:.1%} of the step (the largest: '
        f'{largest.name}, {largest.seconds / seconds:.1%})'
    )


def _note_moves(schedule: Schedule, networks: Mapping[str, NetworkTime]) -> str:
    lost = sum(seconds for name, seconds in schedule.exposed.items() if name not in networks)
    if lost < _NAMED_SHARE * schedule.seconds:
        return ''
    return (
        f'moves between the memories of a chip that take longer than what runs beside them: '
        f'{lost / schedule.seconds:.1%} of the step'
    )


def _note_narrow_heads(times: Iterable[InstructionTime], chip: Chip, seconds: float) -> str:
    kernels = [time for time in times if time.head_width]
    added = sum(kernel.compute_padding_seconds(chip.matrix_width) for kernel in kernels)
    if added < _NAMED_SHARE * seconds:
        return ''
    widths = ' and '.join(str(width) for width in sorted({kernel.head_width for kernel in kernels}))
    return (
        f'heads of {widths} dimensions do not fill matrix units of {chip.matrix_width}: the time '
        f'that attention loses by this is not in the forecast, {added / seconds:.1%} of the step'
    )

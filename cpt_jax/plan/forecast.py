"""A forecast of a step's time, and what in the program costs more of it than expected."""

import dataclasses
from collections.abc import Sequence

from cpt_jax.plan.hlo.collectives import CollectiveSite
from cpt_jax.plan.hlo.program import Module
from cpt_jax.plan.hlo.roofline import InstructionTime, sum_seconds, time_instructions
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
        another, and the collectives during which nothing else runs.
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
    times = time_instructions(module, chip.flops / chip.devices, chip.hbm_rate / chip.devices)
    waiting = [site for site in sites if not site.is_async]
    # One after another: no two of them overlap.
    network = sum(compute_network_seconds([site], positions, chip) for site in waiting)
    seconds = sum_seconds(times) + network
    notes = (
        _note_waiting(waiting, positions, chip, seconds),
        _note_float32(sites, positions, chip, seconds),
        _note_copies(times, seconds),
    )
    return Forecast(seconds, tuple(note for note in notes if note))


def _note_waiting(
    waiting: Sequence[CollectiveSite],
    positions: Sequence[DevicePosition],
    chip: Chip,
    seconds: float,
) -> str:
    in_loops = [site for site in waiting if site.loops]
    lost = sum(compute_network_seconds([site], positions, chip) for site in in_loops)
    if lost < _NAMED_SHARE * seconds:
        return ''
    executions = sum(site.times for site in in_loops)
    return (
        f'{executions:,} collectives in loops, during which nothing else runs: '
        f'{lost / seconds:.1%} of the step'
    )


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


def _note_copies(times: Sequence[InstructionTime], seconds: float) -> str:
    copies = [time for time in times if time.is_copy]
    lost = sum_seconds(copies)
    if lost < _NAMED_SHARE * seconds:
        return ''
    largest = max(copies, key=lambda time: time.seconds)
    return (
        f'copies of arrays to other layouts: {lost / seconds:.1%} of the step (the largest: '
        f'{largest.name}, {largest.seconds / seconds:.1%})'
    )

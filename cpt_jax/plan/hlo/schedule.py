"""The time of a compiled program with what runs beside what, in the order of its schedule.

A TensorCore runs one instruction after another. Transfers run beside it: asynchronous collectives,
and copies between main memory and the smaller memories. A transfer takes what its resource (main
memory, or a network) has left, from its start on. Where the program waits for its end, the rest of
the transfer takes time of its own.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping
from types import MappingProxyType

from cpt_jax.plan.hlo.loops import Frame, compute_trip_count
from cpt_jax.plan.hlo.program import Computation, Instruction, Module
from cpt_jax.plan.hlo.roofline import InstructionTime

MEMORY, ICI, DCN = 'memory', 'ici', 'dcn'
_CALLS = ('calls', 'to_apply', 'called_computations')
_BRANCHES = ('branch_computations', 'true_computation', 'false_computation')


@dataclasses.dataclass(frozen=True)
class NetworkTime:
    """The network time of one execution of a collective.

    Attributes:
      seconds: seconds if nothing else uses the network.
      network: ICI (within a slice) or DCN (between slices).
      is_async: whether other instructions run between its start and its end.
    """

    seconds: float
    network: str
    is_async: bool


def _make_sums(seconds: Mapping[str, float] = MappingProxyType({})) -> dict[str, float]:
    return defaultdict(float, seconds)


@dataclasses.dataclass
class Schedule:
    """The time of a computation, or of a whole program.

    Attributes:
      seconds: seconds from its start to its end.
      busy: seconds of these during which a resource is used.
      exposed: name of a transfer's first instruction -> seconds that the program waits for it. A
        synchronous collective is a transfer during which nothing else runs.
    """

    seconds: float = 0.0
    busy: dict[str, float] = dataclasses.field(default_factory=_make_sums)
    exposed: dict[str, float] = dataclasses.field(default_factory=_make_sums)

    def scale(self, times: int) -> 'Schedule':
        """Returns the schedule of several executions, one after another."""
        return Schedule(
            self.seconds * times,
            _make_sums({name: seconds * times for name, seconds in self.busy.items()}),
            _make_sums({name: seconds * times for name, seconds in self.exposed.items()}),
        )


@dataclasses.dataclass
class _Transfer:
    """A transfer that has started; `seconds` is what is left of it."""

    key: str
    name: str
    resource: str
    seconds: float


class _Clock:
    """The schedule of a computation up to the current instruction, with transfers in flight."""

    def __init__(self) -> None:
        self.done = Schedule()
        self._transfers: list[_Transfer] = []

    def run(self, schedule: Schedule) -> None:
        """Runs something that takes time. Transfers in flight take what it leaves of a resource."""
        self.done.seconds += schedule.seconds
        for name, seconds in schedule.busy.items():
            self.done.busy[name] += seconds
        for name, seconds in schedule.exposed.items():
            self.done.exposed[name] += seconds
        free = {
            name: max(0.0, schedule.seconds - schedule.busy[name]) for name in (MEMORY, ICI, DCN)
        }
        for transfer in self._transfers:
            moved = min(transfer.seconds, free[transfer.resource])
            transfer.seconds -= moved
            free[transfer.resource] -= moved
            self.done.busy[transfer.resource] += moved
        self._transfers = [transfer for transfer in self._transfers if transfer.seconds > 0]

    def start(self, key: str, name: str, resource: str, seconds: float) -> None:
        if seconds > 0:
            self._transfers.append(_Transfer(key, name, resource, seconds))

    def wait(self, key: str) -> None:
        """Waits until the transfers with this key have ended."""
        for resource in (MEMORY, ICI, DCN):
            queue = [transfer for transfer in self._transfers if transfer.resource == resource]
            while any(transfer.key == key for transfer in queue):
                # Those on the same resource that started earlier go first.
                first = queue.pop(0)
                self.done.exposed[first.name] += first.seconds
                self.run(Schedule(first.seconds))

    def end(self) -> Schedule:
        """Waits for all transfers; returns the schedule."""
        for key in [transfer.key for transfer in self._transfers]:
            self.wait(key)
        return self.done


def run_schedule(
    module: Module,
    times: Mapping[str, InstructionTime],
    collectives: Mapping[str, NetworkTime],
) -> Schedule:
    """Returns the schedule of a program.

    Args:
      module: the program of one device; the order of its instructions is their schedule.
      times: name of an instruction -> its time.
      collectives: name of a collective's (first) instruction -> its network time.

    Raises:
      HloError: the trip count of a loop cannot be derived.
    """
    return _Runner(times, collectives).run(Frame(module, module.entry))


@dataclasses.dataclass(frozen=True)
class _Runner:
    times: Mapping[str, InstructionTime]
    collectives: Mapping[str, NetworkTime]

    def run(self, frame: Frame) -> Schedule:
        clock = _Clock()
        for instruction in frame.computation.instructions.values():
            if instruction.opcode == 'while':
                body = self.run(frame.enter(instruction, instruction.get_called_names('body')[0]))
                clock.run(body.scale(compute_trip_count(frame, instruction)))
            elif instruction.opcode in ('call', 'conditional'):
                for name in instruction.get_called_names(*_CALLS, *_BRANCHES):
                    clock.run(self.run(frame.enter(instruction, name)))
            else:
                self._run_instruction(clock, frame, instruction)
        return clock.end()

    def _run_instruction(self, clock: _Clock, frame: Frame, instruction: Instruction) -> None:
        if instruction.opcode.endswith('-done'):
            clock.wait(_find_start(frame.computation, instruction))
            return
        insides = _list_inside(frame.module, instruction)
        for key in _find_ended_channels(frame, instruction):
            clock.wait(key)
        found = [inside for inside in insides if inside.name in self.collectives]
        own = [self.times[inside.name] for inside in insides if inside.name in self.times]
        memory = sum(time.byte_seconds for time in own)
        if instruction.opcode.endswith('-start') or any(
            self.collectives[inside.name].is_async for inside in found
        ):
            key = instruction.name
            if not instruction.opcode.endswith('-start'):
                key = _get_shared_key(found[0])
            name = found[0].name if found else instruction.name
            clock.start(key, name, MEMORY, memory)
            for inside in found:
                network = self.collectives[inside.name]
                clock.start(key, inside.name, network.network, network.seconds)
            # A fusion that starts a collective may also contain a product.
            clock.run(Schedule(sum(time.flop_seconds for time in own)))
            return
        busy = _make_sums({MEMORY: memory})
        seconds = max(memory, sum(time.flop_seconds for time in own))
        waited = _make_sums()
        for inside in found:  # synchronous: nothing else runs
            network = self.collectives[inside.name]
            busy[network.network] += network.seconds
            waited[inside.name] = network.seconds
            seconds = max(seconds, network.seconds)
        clock.run(Schedule(seconds, busy, waited))


def _list_inside(module: Module, instruction: Instruction) -> list[Instruction]:
    """Returns an instruction and those of the fusion, or asynchronous call, that it is."""
    inside = [instruction]
    if instruction.opcode == 'fusion' or instruction.opcode.endswith('-start'):
        for name in instruction.get_called_names(*_CALLS):
            for inner in module.computations[name].instructions.values():
                inside += _list_inside(module, inner)
    return inside


def _find_start(computation: Computation, done: Instruction) -> str:
    """Returns the key of the transfer that ends with an instruction such as copy-done; '' if none
    ends with it.
    """
    start = computation.get_operand(done, 0)
    while start.opcode.endswith('-update') and start.operands:
        start = computation.get_operand(start, 0)
    if start.opcode == 'send':
        return ''  # the data of the other slices arrive at recv-done
    return _get_shared_key(start) if start.opcode == 'recv' else start.name


def _find_ended_channels(frame: Frame, instruction: Instruction) -> list[str]:
    """Returns the keys of the collectives whose last part an instruction contains.

    libtpu spreads a collective over fusions; the last one contains an AsyncCollectiveDone.
    """
    if instruction.opcode != 'fusion':
        return []
    inner = frame.module.computations[instruction.get_called_names('calls')[0]]
    return [
        _get_shared_key(inner.instructions[operand])
        for inside in inner.instructions.values()
        if 'custom_call_target="AsyncCollectiveDone"' in inside.attributes
        for operand in inside.operands
        if inner.instructions[operand].get_attribute('channel_id')
    ]


def _get_shared_key(instruction: Instruction) -> str:
    """Returns a key that all parts of a collective have in common.

    The send and the recv of a transfer between slices have different channels, whose numbers are
    also those of other collectives; they share the name of a rendezvous.
    """
    if instruction.opcode in ('send', 'recv'):
        found = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', instruction.attributes)
        return f'rendezvous {found[1]}' if found else ''
    return f'channel {instruction.get_attribute("channel_id")}'

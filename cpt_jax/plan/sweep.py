"""Tries meshes, remat policies and numbers of chunks on a topology."""

import copy
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from cpt_jax.data.batch import Layout
from cpt_jax.loss.infonce import FORMS
from cpt_jax.plan.estimate import SweepCandidate, guess_bytes, guess_seconds, state_bytes
from cpt_jax.plan.lowering import LoweredStep, device_bytes, longest_layout, lower
from cpt_jax.plan.planning import Plan, make_plan
from cpt_jax.plan.table import align_columns, time_text
from cpt_jax.plan.topology import check_topology, devices_of
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.hardware import Chip
from cpt_jax.runtime.mesh import AXES

_CHUNKS = (1, 2, 4, 8, 16)


class Sweep:
    """The candidates that are left, and what the compiled ones taught.

    Args:
      step: the config's own, on any mesh, for what does not vary.
      devices: of the topology.
      slices: of the topology; they divide the data axis.
      chip: of the topology.

    Attributes:
      skipped: candidates whose parameters, gradient and optimizer state alone exceed the memory.
      dropped: candidates that a compiled one made pointless: hungrier than one that did not fit, or
        slower than one that did.
    """

    def __init__(self, step: LoweredStep, devices: int, slices: int, chip: Chip):
        self._step, self._chip = step, chip
        everything = list(candidates(step, devices, slices, chip))
        self._left = [
            candidate
            for candidate in everything
            if self._state(candidate) <= chip.hbm_limit / chip.devices
        ]
        self.skipped, self.dropped = len(everything) - len(self._left), 0
        self._layouts: dict[tuple[int, int], Layout] = {}
        self._tried: Counter[tuple[int, int, int]] = Counter()
        self._correction: dict[str, float] = {}  # remat -> measured memory / guessed memory

    @property
    def left(self) -> int:
        """How many are left."""
        return len(self._left)

    def take(self) -> SweepCandidate:
        """The one that promises most: of those that are thought to fit the fastest, and then of the
        others the smallest.
        """
        best = min(self._left, key=self._promise)
        self._left.remove(best)
        self._tried[best.frugality] += 1
        return best

    def learn(self, tried: SweepCandidate, plan: Plan | None) -> None:
        """Drops what has no chance any more; None: this one cannot be compiled."""
        if plan is None:
            return
        self._correction[tried.remat] = (
            plan.hbm_bytes_per_chip / self._chip.devices / self._guess(tried)
        )
        rest = [
            candidate
            for candidate in self._left
            if _mesh(candidate) != _mesh(tried) or not _pointless(candidate, tried, plan.fits)
        ]
        self.dropped += len(self._left) - len(rest)
        self._left = rest

    def _promise(self, candidate: SweepCandidate) -> tuple[bool, float]:
        layout, flops = self._layout(candidate), self._step.model_flops
        needed = self._guess(candidate) * self._correction.get(candidate.remat, 1.0)
        if needed > self._chip.hbm_limit / self._chip.devices:
            return True, needed
        seconds = guess_seconds(
            candidate, self._step.encoder_config, layout, self._step.parameters, flops, self._chip
        )
        # Of near ties, what was not tried on other meshes.
        return False, seconds * (1 + 0.05 * self._tried[candidate.frugality])

    def _guess(self, candidate: SweepCandidate) -> float:
        return guess_bytes(
            candidate,
            self._step.encoder_config,
            self._layout(candidate),
            self._step.parameters,
            self._state(candidate),
        )

    def _state(self, candidate: SweepCandidate) -> int:
        # The step is on one device, so these are all of the frozen bytes.
        return state_bytes(candidate, self._step.trained, device_bytes(self._step.state.frozen))

    def _layout(self, candidate: SweepCandidate) -> Layout:
        """Packing thousands of texts takes a while; meshes with as many parts share it."""
        key = candidate.data * candidate.fsdp, candidate.chunks
        if key not in self._layouts:
            train = dataclasses.replace(self._step.train, encode_chunks=key[1])
            self._layouts[key] = longest_layout(
                self._step.data, train, key[0], self._step.objective.longest(self._step.data)
            )
        return self._layouts[key]


def _mesh(candidate: SweepCandidate) -> tuple[int, ...]:
    return candidate.data, candidate.fsdp, candidate.tensor


def _pointless(candidate: SweepCandidate, tried: SweepCandidate, fitted: bool) -> bool:
    """On the same mesh: more frugal than what fits, or at most as frugal as what does not."""
    pairs = list(zip(candidate.frugality, tried.frugality, strict=True))
    return (
        all(mine >= its for mine, its in pairs)
        if fitted
        else all(mine <= its for mine, its in pairs)
    )


def candidates(
    step: LoweredStep, devices: int, slices: int, chip: Chip
) -> Iterator[SweepCandidate]:
    """All that the model and the batch allow."""
    for data, fsdp, tensor in _meshes(step, devices, slices):
        for chunks in _CHUNKS:
            if data * fsdp * chunks <= step.train.batch_pairs:
                for remat in (
                    ('dots', 'full') if step.lora.keeps_codes else ('none', 'dots', 'full')
                ):
                    for form in _forms(step, devices, chip):
                        yield SweepCandidate(data, fsdp, tensor, remat, chunks, form)


def _meshes(step: LoweredStep, devices: int, slices: int) -> Iterator[tuple[int, int, int]]:
    divisors = [size for size in range(1, devices + 1) if devices % size == 0]
    for tensor in divisors:
        for fsdp in divisors:
            data = devices // tensor // fsdp
            if (
                data * fsdp * tensor == devices
                and data % slices == 0
                and _allows(step, (data, fsdp, tensor))
            ):
                yield data, fsdp, tensor


def _allows(step: LoweredStep, sizes: tuple[int, int, int]) -> bool:
    mesh = jax.sharding.AbstractMesh(sizes, AXES)
    try:
        step.encoder_config.check_mesh(mesh)
        step.lora.check(step.encoder_config, mesh)
    except UserError:
        return False
    return True


def _forms(step: LoweredStep, devices: int, chip: Chip) -> tuple[str, ...]:
    """Both forms of the loss where a device's similarities, and what is made of them, take a
    twentieth of its memory or more.
    """
    similarities = 16 * step.train.batch_pairs**2 * (step.layout.texts - 1) / devices
    return (
        ('dense', 'chunked')
        if similarities > chip.hbm_limit / chip.devices / 20
        else (step.objective.form,)
    )


def with_candidate(config: Mapping[str, Any], candidate: SweepCandidate) -> dict[str, Any]:
    """The config with a candidate's choices."""
    changed = copy.deepcopy(dict(config))
    for key, value in settings(candidate).items():
        section, name = key.split('.')
        changed[section][name] = value
    return changed


def settings(candidate: SweepCandidate) -> dict[str, Any]:
    """The keys of the config that it stands for."""
    return {
        'mesh.data': candidate.data, 'mesh.fsdp': candidate.fsdp, 'mesh.tensor': candidate.tensor,
        'model.remat': candidate.remat,
        'train.encode_chunks': candidate.chunks,
    } | _form(candidate.form)  # fmt: skip


def _form(form: str) -> dict[str, str]:
    """The key of a form of the loss; of a language model's there is no choice."""
    return {'loss.form': form} if form in FORMS else {}


def sweep(
    config: Mapping[str, Any],
    topology: str,
    slices: int,
    limit: int,
    on_plan: Callable[[Plan], None],
) -> tuple[list[Plan], Sweep]:
    """Compiles up to `limit` candidates and prints each; the plans come back with what fits first,
    fastest first.

    Args:
      config: plain values; its mesh, remat policy, chunks and form of the loss are not used.
      topology, slices: as for `make_plan`.
      limit: programs to compile.
      on_plan: called with each plan as soon as it is there.

    Raises:
      UserError: the topology or the rest of the config is wrong, or no candidate can be compiled.
    """
    chip = check_topology(topology)
    if limit < 1:
        raise UserError(f'--sweep_limit={limit}: must be 1 or more')
    devices = devices_of(topology, slices)
    search = Sweep(_any_step(config, devices), len(devices), slices, chip)
    total = min(limit, search.left)
    print(
        f'{topology}: {search.left} candidates; {search.skipped} more are skipped, their state '
        f'alone exceeds the memory',
        flush=True,
    )
    plans, problems, start = [], [], time.perf_counter()
    for number in range(1, total + 1):
        if not search.left:
            break
        candidate = search.take()
        plan = None
        try:
            plan = make_plan(with_candidate(config, candidate), topology, slices)
            plans.append(plan)
            on_plan(plan)
        except UserError as error:
            problems.append(error)
        search.learn(candidate, plan)
        rest = (time.perf_counter() - start) / number * min(total - number, search.left)
        print(
            f'[{number}/{total}] {_say(candidate)}: {_result(plan, problems)}'
            + (f'; about {time_text(rest)} left' if rest else ''),
            flush=True,
        )
    if not plans:
        raise (
            problems[-1]
            if problems
            else UserError(
                f'{topology}: no mesh of it holds the state of this model; take more chips'
            )
        )
    return sorted(
        plans,
        key=lambda plan: (not plan.fits, plan.lower_bound_seconds or 0.0, plan.hbm_bytes_per_chip),
    ), search


def _any_step(config: Mapping[str, Any], devices: Sequence[jax.Device]) -> LoweredStep:
    """The config on one device: what is asked of it does not depend on the mesh."""
    changed = dict(config) | {
        'mesh': {'data': 1, 'fsdp': 1, 'tensor': 1},
        'train': dict(config['train']) | {'encode_chunks': 1},
    }
    # Every base of LoRA goes with full rematerialisation.
    changed['model'] = dict(config['model']) | {'remat': 'full'}
    return lower(changed, devices[:1], trace=False)


def _say(candidate: SweepCandidate) -> str:
    loss = f', {candidate.form} loss' if candidate.form == 'chunked' else ''
    return (
        f'data {candidate.data} x fsdp {candidate.fsdp} x tensor {candidate.tensor}, '
        f'remat {candidate.remat}, {candidate.chunks} chunks{loss}'
    )


def _result(plan: Plan | None, problems: Sequence[Exception]) -> str:
    if plan is None:
        return f'cannot be compiled ({" ".join(str(problems[-1]).split())})'
    memory = (
        f'{plan.hbm_bytes_per_chip / 2**30:.1f} of {plan.hbm_limit_bytes / 2**30:.1f} GiB a chip'
    )
    time_at_least, _ = _bounds(plan)
    return f'{time_at_least} a step at least, {memory}' if plan.fits else f'does not fit, {memory}'


def _bounds(plan: Plan) -> tuple[str, str]:
    """The least time of a step and the highest MFU, as text; of a plan that does not fit no MFU."""
    if not plan.fits or plan.lower_bound_seconds is None or plan.mfu_bound is None:
        return 'does not fit', ''
    return time_text(plan.lower_bound_seconds), f'{100 * plan.mfu_bound:.1f} %'


def sweep_table(plans: Sequence[Plan]) -> list[str]:
    """A line for each plan."""
    head = (
        'mesh (data, fsdp, tensor)',
        'remat',
        'chunks',
        'loss',
        'memory a chip',
        'a step at least',
        'MFU at most',
    )
    rows = [
        (
            ' x '.join(str(size) for size in plan.mesh.values()), plan.remat,
            str(plan.encode_chunks), plan.loss_form,
            f'{plan.hbm_bytes_per_chip / 2**30:.1f} GiB', *_bounds(plan),
        )
        for plan in plans
    ]  # fmt: skip
    return align_columns([head, *rows])


def flags_of(plan: Plan) -> str:
    """What to add to a command to train like this."""
    mesh = [f'--config.mesh.{axis}={size}' for axis, size in plan.mesh.items()]
    rest = {'model.remat': plan.remat, 'train.encode_chunks': plan.encode_chunks} | _form(
        plan.loss_form
    )
    return ' '.join([*mesh, *(f'--config.{key}={value}' for key, value in rest.items())])

"""Searches for the fastest mesh, rematerialization policy, chunks and loss form on a topology."""

import copy
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from cpt_jax.data.batch import Layout
from cpt_jax.loss.infonce import FORMS
from cpt_jax.plan.estimate import (
    SweepCandidate,
    estimate_bytes,
    estimate_seconds,
    estimate_state_bytes,
)
from cpt_jax.plan.lowering import (
    LoweredStep,
    count_device_bytes,
    lower_training_step,
    make_longest_layout,
)
from cpt_jax.plan.planning import Plan, make_plan
from cpt_jax.plan.table import align_columns, format_seconds
from cpt_jax.plan.topology import find_topology_chip, get_topology_devices
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.hardware import Chip
from cpt_jax.runtime.mesh import AXES

_CHUNKS = (1, 2, 4, 8, 16)


class Sweep:
    """The candidates that are not compiled yet, ranked with the results of the compiled candidates.

    Args:
      step: the config's step on one device, for properties that do not depend on the candidate.
      devices: number of devices of the topology.
      slices: number of slices of the topology; must divide the data axis.
      chip: chip of the topology.

    Attributes:
      skipped: number of candidates whose training state and gradient exceed the memory.
      dropped: number of candidates that a compiled candidate ruled out: they need more memory than
        a candidate that did not fit, or more time than a candidate that fits.
    """

    def __init__(self, step: LoweredStep, devices: int, slices: int, chip: Chip):
        self._step = step
        self._chip = chip
        all_candidates = list(list_candidates(step, devices, slices, chip))
        self._left = [
            candidate
            for candidate in all_candidates
            if self._estimate_state_bytes(candidate) <= chip.hbm_limit / chip.devices
        ]
        self.skipped = len(all_candidates) - len(self._left)
        self.dropped = 0
        self._layouts: dict[tuple[int, int], Layout] = {}
        self._tried: Counter[tuple[int, int, int]] = Counter()
        self._correction: dict[str, float] = {}  # remat -> measured memory / estimated memory

    @property
    def left(self) -> int:
        """Number of candidates left."""
        return len(self._left)

    def take(self) -> SweepCandidate:
        """Removes and returns the most promising candidate.

        It is the candidate with the smallest estimated time among those that are estimated to fit,
        or, if there are none, the one with the smallest estimated memory.
        """
        best = min(self._left, key=self._compute_sort_key)
        self._left.remove(best)
        self._tried[best.frugality] += 1
        return best

    def learn(self, tried: SweepCandidate, plan: Plan | None) -> None:
        """Corrects the memory estimate and drops candidates that the plan rules out.

        Args:
          tried: the compiled candidate.
          plan: its plan; None if it cannot be compiled.
        """
        if plan is None:
            return
        measured = plan.hbm_bytes_per_chip / self._chip.devices
        self._correction[tried.remat] = measured / self._estimate_bytes(tried)
        rest = [
            candidate
            for candidate in self._left
            if _get_mesh(candidate) != _get_mesh(tried)
            or not _is_ruled_out(candidate, tried, plan.fits)
        ]
        self.dropped += len(self._left) - len(rest)
        self._left = rest

    def _compute_sort_key(self, candidate: SweepCandidate) -> tuple[bool, float]:
        """Returns (False, seconds) if the candidate is estimated to fit, else (True, bytes)."""
        layout = self._make_layout(candidate)
        flops = self._step.model_flops
        needed = self._estimate_bytes(candidate) * self._correction.get(candidate.remat, 1.0)
        if needed > self._chip.hbm_limit / self._chip.devices:
            return True, needed
        seconds = estimate_seconds(
            candidate, self._step.encoder_config, layout, self._step.parameters, flops, self._chip
        )
        # Prefer settings that were not tried on other meshes yet if the estimates are nearly equal.
        return False, seconds * (1 + 0.05 * self._tried[candidate.frugality])

    def _estimate_bytes(self, candidate: SweepCandidate) -> float:
        return estimate_bytes(
            candidate,
            self._step.encoder_config,
            self._make_layout(candidate),
            self._step.parameters,
            self._estimate_state_bytes(candidate),
        )

    def _estimate_state_bytes(self, candidate: SweepCandidate) -> int:
        # The step is lowered for one device, so the bytes on this device are those of all frozen
        # weights.
        return estimate_state_bytes(
            candidate, self._step.trained_parameters, count_device_bytes(self._step.state.frozen)
        )

    def _make_layout(self, candidate: SweepCandidate) -> Layout:
        """Returns the layout of a batch, cached because packing thousands of texts takes a while.

        Meshes with the same number of parts have the same layout.
        """
        parts = candidate.data * candidate.fsdp
        key = parts, candidate.chunks
        if key not in self._layouts:
            data = self._step.data
            train = dataclasses.replace(self._step.train, encode_chunks=candidate.chunks)
            longest = self._step.objective.get_max_lengths(data)
            self._layouts[key] = make_longest_layout(data, train, parts, longest)
        return self._layouts[key]


def _get_mesh(candidate: SweepCandidate) -> tuple[int, ...]:
    return candidate.data, candidate.fsdp, candidate.tensor


def _is_ruled_out(candidate: SweepCandidate, tried: SweepCandidate, fitted: bool) -> bool:
    """Returns whether the result of a tried candidate rules out another candidate of the same mesh.

    A candidate that is at least as frugal as one that fits is slower; a candidate that is at most
    as frugal as one that does not fit does not fit either.
    """
    ranks = list(zip(candidate.frugality, tried.frugality, strict=True))
    if fitted:
        return all(own >= other for own, other in ranks)
    return all(own <= other for own, other in ranks)


def list_candidates(
    step: LoweredStep, devices: int, slices: int, chip: Chip
) -> Iterator[SweepCandidate]:
    """Yields all combinations of settings that the model and the batch allow."""
    policies = ('dots', 'full') if step.lora.is_quantized else ('none', 'dots', 'full')
    forms = _list_forms(step, devices, chip)
    for data, fsdp, tensor in _list_meshes(step, devices, slices):
        for chunks in _CHUNKS:
            if data * fsdp * chunks <= step.train.batch_pairs:
                for remat in policies:
                    for form in forms:
                        yield SweepCandidate(data, fsdp, tensor, remat, chunks, form)


def _list_meshes(step: LoweredStep, devices: int, slices: int) -> Iterator[tuple[int, int, int]]:
    divisors = [size for size in range(1, devices + 1) if devices % size == 0]
    for tensor in divisors:
        for fsdp in divisors:
            data = devices // tensor // fsdp
            if (
                data * fsdp * tensor == devices
                and data % slices == 0
                and _is_mesh_allowed(step, (data, fsdp, tensor))
            ):
                yield data, fsdp, tensor


def _is_mesh_allowed(step: LoweredStep, sizes: tuple[int, int, int]) -> bool:
    mesh = jax.sharding.AbstractMesh(sizes, AXES)
    try:
        step.encoder_config.check_mesh(mesh)
        step.lora.check(step.encoder_config, mesh)
    except UserError:
        return False
    return True


def _list_forms(step: LoweredStep, devices: int, chip: Chip) -> tuple[str, ...]:
    """Returns the forms of the loss to try: both if the similarities on a device, with their
    temporaries, take more than a twentieth of its memory; else the config's own.
    """
    similarity_bytes = 16 * step.train.batch_pairs**2 * (step.layout.texts - 1) / devices
    if similarity_bytes > chip.hbm_limit / chip.devices / 20:
        return 'dense', 'chunked'
    return (step.objective.form,)


def apply_candidate(config: Mapping[str, Any], candidate: SweepCandidate) -> dict[str, Any]:
    """Returns the config with a candidate's settings."""
    changed = copy.deepcopy(dict(config))
    for key, value in _get_config_values(candidate).items():
        section, name = key.split('.')
        changed[section][name] = value
    return changed


def _get_config_values(candidate: SweepCandidate) -> dict[str, Any]:
    """Returns config keys (section.name) and their values for a candidate."""
    return {
        'mesh.data': candidate.data,
        'mesh.fsdp': candidate.fsdp,
        'mesh.tensor': candidate.tensor,
        'model.remat': candidate.remat,
        'train.encode_chunks': candidate.chunks,
        **_get_form_value(candidate.form),
    }


def _get_form_value(form: str) -> dict[str, str]:
    """Returns the config key for a form of the loss; {} for a language model, which has only one
    form.
    """
    return {'loss.form': form} if form in FORMS else {}


def sweep(
    config: Mapping[str, Any],
    topology: str,
    slices: int,
    limit: int,
    on_plan: Callable[[Plan], None],
) -> tuple[list[Plan], Sweep]:
    """Compiles up to `limit` candidates and prints the result of each.

    Args:
      config: the sections of configs/base.py, as plain values. Its mesh, rematerialization policy,
        chunks and form of the loss are ignored.
      topology: a TPU slice, such as v5p:4x4x4.
      slices: number of slices of this topology.
      limit: maximum number of programs to compile.
      on_plan: called with each plan as soon as it is made.

    Returns:
      The plans, those that fit first and the fastest first among them; and the state of the search.

    Raises:
      UserError: the topology or the rest of the config is invalid, or no candidate can be compiled.
    """
    chip = find_topology_chip(topology)
    if limit < 1:
        raise UserError(f'--sweep_limit={limit}: must be 1 or more')
    devices = get_topology_devices(topology, slices)
    search = Sweep(_lower_on_one_device(config, devices), len(devices), slices, chip)
    total = min(limit, search.left)
    print(
        f'{topology}: {search.left} candidates; {search.skipped} more are skipped, because their '
        f'parameters, gradient and optimizer state exceed the memory',
        flush=True,
    )
    plans: list[Plan] = []
    problems: list[UserError] = []
    start = time.perf_counter()
    for number in range(1, total + 1):
        if not search.left:
            break
        candidate = search.take()
        plan = None
        try:
            plan = make_plan(apply_candidate(config, candidate), topology, slices)
            plans.append(plan)
            on_plan(plan)
        except UserError as error:
            problems.append(error)
        search.learn(candidate, plan)
        rest = (time.perf_counter() - start) / number * min(total - number, search.left)
        line = (
            f'[{number}/{total}] {_describe_candidate(candidate)}: {_format_result(plan, problems)}'
        )
        if rest:
            line += f'; about {format_seconds(rest)} left'
        print(line, flush=True)
    if not plans:
        if problems:
            raise problems[-1]
        raise UserError(
            f'{topology}: the state of this model does not fit on any mesh; use more chips'
        )
    plans.sort(
        key=lambda plan: (not plan.fits, plan.lower_bound_seconds or 0.0, plan.hbm_bytes_per_chip)
    )
    return plans, search


def _lower_on_one_device(config: Mapping[str, Any], devices: Sequence[jax.Device]) -> LoweredStep:
    """Returns the config's step on one device, for properties that do not depend on the mesh."""
    changed = dict(config) | {
        'mesh': {'data': 1, 'fsdp': 1, 'tensor': 1},
        'train': dict(config['train']) | {'encode_chunks': 1},
    }
    # Full rematerialization is valid with every `lora.base`.
    changed['model'] = dict(config['model']) | {'remat': 'full'}
    return lower_training_step(changed, devices[:1], trace=False)


def _describe_candidate(candidate: SweepCandidate) -> str:
    loss = f', {candidate.form} loss' if candidate.form == 'chunked' else ''
    return (
        f'data {candidate.data} x fsdp {candidate.fsdp} x tensor {candidate.tensor}, '
        f'remat {candidate.remat}, {candidate.chunks} chunks{loss}'
    )


def _format_result(plan: Plan | None, problems: Sequence[Exception]) -> str:
    if plan is None:
        return f'cannot be compiled ({" ".join(str(problems[-1]).split())})'
    memory = (
        f'{plan.hbm_bytes_per_chip / 2**30:.1f} of {plan.hbm_limit_bytes / 2**30:.1f} GiB per chip'
    )
    if not plan.fits:
        return f'does not fit, {memory}'
    min_time, _ = _format_bounds(plan)
    return f'at least {min_time} per step, {memory}'


def _format_bounds(plan: Plan) -> tuple[str, str]:
    """Returns the minimum time per step and the maximum MFU as text.

    If the plan does not fit, the first text says so and the second is empty.
    """
    if not plan.fits or plan.lower_bound_seconds is None or plan.mfu_bound is None:
        return 'does not fit', ''
    return format_seconds(plan.lower_bound_seconds), f'{100 * plan.mfu_bound:.1f} %'


def format_sweep_table(plans: Sequence[Plan]) -> list[str]:
    """Returns the lines of a table with one row per plan."""
    head = (
        'mesh (data, fsdp, tensor)',
        'remat',
        'chunks',
        'loss',
        'memory per chip',
        'min. step time',
        'max. MFU',
    )
    rows = [
        (
            ' x '.join(str(size) for size in plan.mesh.values()),
            plan.remat,
            str(plan.encode_chunks),
            plan.loss_form,
            f'{plan.hbm_bytes_per_chip / 2**30:.1f} GiB',
            *_format_bounds(plan),
        )
        for plan in plans
    ]
    return align_columns([head, *rows])


def format_flags(plan: Plan) -> str:
    """Returns the command-line flags to train with the settings of a plan."""
    values: dict[str, Any] = {f'mesh.{axis}': size for axis, size in plan.mesh.items()}
    values |= {'model.remat': plan.remat, 'train.encode_chunks': plan.encode_chunks}
    values |= _get_form_value(plan.loss_form)
    return ' '.join(f'--config.{key}={value}' for key, value in values.items())

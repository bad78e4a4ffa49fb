"""Compiles a training step, or any other program, for a topology.

A plan has its memory, its collectives and lower bounds of its time.
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from cpt_jax.plan.forecast import make_forecast
from cpt_jax.plan.hlo.collectives import CollectiveSite, find_collectives
from cpt_jax.plan.hlo.flops import count_flops
from cpt_jax.plan.hlo.memory import count_needed_bytes, count_traffic, parse_refused_bytes
from cpt_jax.plan.hlo.program import HloError, Module, parse_program
from cpt_jax.plan.lowering import count_device_bytes, lower_training_step
from cpt_jax.plan.network import compute_network_seconds
from cpt_jax.plan.topology import (
    find_topology_chip,
    get_libtpu_requirement,
    get_libtpu_version,
    get_topology_devices,
    locate_devices,
)
from cpt_jax.runtime.compiler_options import CompilerOptions, compile_with_options
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.hardware import Chip
from cpt_jax.runtime.mesh import AXES


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramPlan:
    """The results of compiling a program for a topology.

    A step is one execution of the program: a training step, or a batch of texts of an embedder.

    If the program does not fit, `hbm_bytes_per_chip` is the memory that the compiler asked for, and
    all fields that need a compiled program are None.

    Attributes:
      topology: a TPU slice, such as v5p:4x4x4.
      slices: number of slices of this topology.
      chips: number of chips, over all slices.
      mesh: size of each mesh axis, by name.
      params: number of parameters, frozen ones included.
      tokens_per_step: columns computed per step, padding included.
      rows: rows per device (and per chunk, if a batch has several).
      hbm_bytes_per_chip: bytes of main memory that the program needs per chip.
      hbm_limit_bytes: bytes of main memory per chip that programs can use.
      fits: whether the program fits into this memory.
      model_flops_per_step: floating-point operations that the model needs per step; see
        model/flops.py.
      compiled_flops_per_step: floating-point operations of the compiled program per step, over all
        devices, recomputation included.
      collectives: collectives grouped by kind and properties, each with `count` (executions per
        step), `sites` (instructions in the program), `bytes` (payload per chip and step),
        `in_loop`, `loops` (number of enclosing loops), `group` (number of devices that exchange
        data), `gradient` (whether it reduces gradients of parameters), `network` (ici or dcn) and
        `summed` (whether it is an all-gather that is compiled as a sum).
      uncounted: names of operations that `compiled_flops_per_step` does not count, or counts
        inexactly.
      compute_seconds: lower bound of the seconds per step that arithmetic needs.
      memory_seconds: lower bound of the seconds per step that memory traffic needs.
      network_seconds: lower bound of the seconds per step that the network needs.
      lower_bound_seconds: lower bound of the seconds per step, the largest of these three.
      mfu_bound: upper bound of model FLOP/s utilization, a fraction of the chips' peak.
      forecast_seconds: forecast of the seconds per step; see plan/forecast.py.
      mfu_forecast: model FLOP/s utilization of a step that takes these seconds.
      notable: what takes a notable share of these seconds.
      compile_seconds: seconds that compilation took.
      jax: version of JAX.
      libtpu: version of libtpu.
    """

    topology: str
    slices: int
    chips: int
    mesh: Mapping[str, int]
    params: int
    tokens_per_step: int
    rows: int
    hbm_bytes_per_chip: int
    hbm_limit_bytes: int
    fits: bool
    model_flops_per_step: int
    compiled_flops_per_step: int | None
    collectives: Sequence[Mapping[str, Any]] | None
    uncounted: Sequence[str]
    compute_seconds: float | None
    memory_seconds: float | None
    network_seconds: float | None
    lower_bound_seconds: float | None
    mfu_bound: float | None
    forecast_seconds: float | None
    mfu_forecast: float | None
    notable: Sequence[str] | None
    compile_seconds: float
    jax: str
    libtpu: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(ProgramPlan):
    """The plan of a config's training step; the JSON of launch/plan.py has these keys.

    Attributes:
      trained_params: number of trained parameters.
      trained_bytes_per_chip: bytes per chip of trained parameters and their optimizer state.
      frozen_bytes_per_chip: bytes per chip of the frozen weights of LoRA.
      batch_pairs: pairs per batch; for a language model, texts.
      rows_assumed: whether `rows` assumes that every text has its maximum length, because no data
        was read and `data.rows` is not set.
      encode_chunks: number of chunks of a batch.
      remat: rematerialization policy, `model.remat`.
      loss_form: 'dense' or 'chunked', as `loss.form`; 'next token' for a language model.
    """

    trained_params: int
    trained_bytes_per_chip: int
    frozen_bytes_per_chip: int
    batch_pairs: int
    rows_assumed: bool
    encode_chunks: int
    remat: str
    loss_form: str


def make_plan(
    config: Mapping[str, Any],
    topology: str,
    slices: int = 1,
    on_start: Callable[[], None] = lambda: None,
) -> Plan:
    """Compiles a config's training step for a topology and returns its plan.

    Compilation takes seconds for a small model and minutes for a large one.

    Args:
      config: the sections of configs/base.py, as plain values.
      topology: a TPU slice, such as v5p:4x4x4.
      slices: number of slices of this topology.
      on_start: called after all checks, when compilation starts.

    Raises:
      UserError: the topology or the config is invalid, or libtpu fails for a reason other than
        memory.
    """
    chip = find_topology_chip(topology)
    step = lower_training_step(config, get_topology_devices(topology, slices))
    if step.lowered is None:
        raise ValueError('the step was lowered with trace=False')
    on_start()
    return Plan(
        **compile_and_measure(
            step.lowered,
            step.mesh,
            topology,
            slices,
            step.model_flops,
            options=step.train.parsed_compiler_options,
        ),
        params=step.parameters,
        trained_params=step.trained_parameters,
        trained_bytes_per_chip=chip.devices
        * count_device_bytes((step.state.params, step.state.optimizer)),
        frozen_bytes_per_chip=chip.devices * count_device_bytes(step.state.frozen),
        batch_pairs=step.train.batch_pairs,
        tokens_per_step=step.layout.tokens,
        rows=step.layout.rows,
        rows_assumed=step.data.packed and not step.data.rows,
        encode_chunks=step.train.encode_chunks,
        remat=step.encoder_config.remat,
        loss_form=step.objective.form,
    )


def compile_and_measure(
    lowered: jax.stages.Lowered,
    mesh: jax.sharding.Mesh,
    topology: str,
    slices: int,
    model_flops: int,
    other_bytes: int = 0,
    options: CompilerOptions | None = None,
) -> dict[str, Any]:
    """Compiles a program; returns the fields of `ProgramPlan` that do not depend on its purpose.

    Args:
      lowered: program for the devices of `mesh`.
      mesh: mesh of all devices of the topology's slices.
      topology: a TPU slice, such as v5p:4x4x4.
      slices: number of slices of this topology.
      model_flops: floating-point operations that the model needs; see model/flops.py.
      other_bytes: bytes per device that are in use in addition to those of the program.
      options: options of the compiler.

    Raises:
      UserError: libtpu fails for a reason other than memory.
    """
    chip = find_topology_chip(topology)
    start = time.perf_counter()
    compiled, needed = _compile_program(lowered, options or {})
    seconds = time.perf_counter() - start
    total_bytes = chip.devices * (needed + other_bytes)
    measured = _measure_program(compiled, mesh, model_flops, chip, slices) if compiled else {}
    return dict.fromkeys(_COMPILED_FIELDS) | {
        'topology': topology,
        'slices': slices,
        'chips': mesh.size // chip.devices,
        'mesh': dict(mesh.shape),
        'hbm_bytes_per_chip': total_bytes,
        'hbm_limit_bytes': chip.hbm_limit,
        'fits': compiled is not None and total_bytes <= chip.hbm_limit,
        'model_flops_per_step': model_flops,
        'uncounted': (),
        'compile_seconds': seconds,
        'jax': jax.__version__,
        'libtpu': get_libtpu_version(),
        **measured,
    }


# Fields of ProgramPlan that are None if the program cannot be compiled.
_COMPILED_FIELDS = (
    'compiled_flops_per_step', 'collectives', 'compute_seconds', 'memory_seconds',
    'network_seconds', 'lower_bound_seconds', 'mfu_bound', 'forecast_seconds', 'mfu_forecast',
    'notable',
)  # fmt: skip


def _compile_program(
    lowered: jax.stages.Lowered, options: CompilerOptions
) -> tuple[jax.stages.Compiled | None, int]:
    """Returns the compiled program and its bytes of memory per device.

    If the program needs too much memory, returns None and the bytes that the compiler asked for.
    """
    try:
        compiled = compile_with_options(lowered, options)
    except jax.errors.JaxRuntimeError as error:
        refused = parse_refused_bytes(error)
        if refused is None:
            raise UserError(
                f'libtpu {get_libtpu_version()} does not compile this program: {error}'
            ) from error
        return None, refused
    return compiled, count_needed_bytes(compiled)


def _measure_program(
    compiled: jax.stages.Compiled,
    mesh: jax.sharding.Mesh,
    model_flops: int,
    chip: Chip,
    slices: int,
) -> dict[str, Any]:
    """Returns the fields of `ProgramPlan` that are derived from the text of the program."""
    module = parse_program(_get_program_text(compiled))
    devices = list(mesh.devices.flat)
    positions = locate_devices(devices)
    chips = len(devices) // chip.devices
    flops = count_flops(module)
    sites = find_collectives(module, len(devices), slices)
    compute = flops.total * chip.devices / chip.flops
    memory = count_traffic(module) * chip.devices / chip.hbm_rate
    network = compute_network_seconds(sites, positions, chip)
    bound = max(compute, memory, network)
    forecast = make_forecast(module, sites, positions, chip)
    seconds = max(bound, forecast.seconds)
    return {
        'compiled_flops_per_step': flops.total * len(devices),
        'uncounted': (*flops.uncounted, *_note_conditionals(module)),
        'collectives': summarize_collectives(sites, mesh, chip),
        'compute_seconds': compute,
        'memory_seconds': memory,
        'network_seconds': network,
        'lower_bound_seconds': bound,
        'mfu_bound': model_flops / (chips * chip.flops * bound),
        'forecast_seconds': seconds,
        'mfu_forecast': model_flops / (chips * chip.flops * seconds),
        'notable': forecast.notes,
    }


def _get_program_text(compiled: jax.stages.Compiled) -> str:
    try:
        text = compiled.as_text()
    # JAX cannot read programs of a newer libtpu.
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f'JAX {jax.__version__} cannot read the program that libtpu {get_libtpu_version()} '
            f'compiled: pip install {get_libtpu_requirement()!r} ({error})'
        ) from error
    if text is None:
        raise HloError('the compiler does not return the text of its program')
    return text


def _note_conditionals(module: Module) -> list[str]:
    """Returns a note for `uncounted` if the program has conditionals."""
    has_conditional = any(
        instruction.opcode == 'conditional'
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
    )
    return ['conditional (every branch counts)'] if has_conditional else []


def summarize_collectives(
    sites: Sequence[CollectiveSite], mesh: jax.sharding.Mesh, chip: Chip
) -> list[dict[str, Any]]:
    """Groups collectives with equal properties; returns one row per group, largest payload first.

    See `ProgramPlan.collectives` for the keys of a row.
    """
    sizes = tuple(mesh.shape[axis] for axis in AXES)
    Key = tuple[str, int, int, bool, str, bool]
    executions: Counter[Key] = Counter()
    instructions: Counter[Key] = Counter()
    payload: Counter[Key] = Counter()
    for site in sites:
        gradient = site.is_gradient(sizes, AXES.index('tensor'))
        key = (
            site.kind,
            site.loops,
            site.members,
            gradient,
            'dcn' if site.dcn else 'ici',
            site.summed,
        )
        executions[key] += site.times
        instructions[key] += 1
        payload[key] += site.times * site.bytes * chip.devices
    rows = []
    for key in executions:
        kind, loops, group, gradient, network, summed = key
        rows.append(
            {
                'kind': kind,
                'count': executions[key],
                'sites': instructions[key],
                'bytes': payload[key],
                'in_loop': loops > 0,
                'loops': loops,
                'group': group,
                'gradient': gradient,
                'network': network,
                'summed': summed,
            }
        )
    return sorted(rows, key=lambda row: -row['bytes'])

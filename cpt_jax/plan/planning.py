"""Compiles a training step, or any other program, for a topology and reads off what it needs and
what it can reach.
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from cpt_jax.plan.hlo.collectives import Site, collectives
from cpt_jax.plan.hlo.flops import count_flops
from cpt_jax.plan.hlo.memory import bytes_needed, bytes_refused, traffic
from cpt_jax.plan.hlo.program import HloError, Module, parse
from cpt_jax.plan.lowering import device_bytes, lower
from cpt_jax.plan.network import network_seconds
from cpt_jax.plan.topology import (
    check_topology,
    devices_of,
    libtpu_requirement,
    libtpu_version,
    places_of,
)
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.hardware import Chip
from cpt_jax.runtime.mesh import AXES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """What is told of any program on a topology. A step is what it does at once: of an embedder, a
    batch of texts.

    Figures are of a step and, where they say so, of a chip. Where the program does not fit,
    `hbm_bytes_per_chip` is what the compiler asked for, and all that needs a compiled program is
    None. `compute_seconds`, `memory_seconds` and `network_seconds` are lower bounds, each as if the
    others cost nothing; `lower_bound_seconds` is the largest: no run is faster.

    Attributes:
      tokens_per_step: columns computed, padding included.
      rows: of a device (and chunk, where a batch has several).
      collectives: kinds with their `count` (executions a step), `sites` (places in the program),
        `bytes` (payload a chip a step), `in_loop`, `loops` (around it), `group` (devices that
        exchange data), `gradient` (of parameters), `network` (ici or dcn) and `summed` (an
        all-gather that is done as a sum).
      uncounted: what `compiled_flops_per_step` leaves out, by name.
      mfu_bound: of the chips' peak, what `model_flops_per_step` in `lower_bound_seconds` comes to.
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
    compile_seconds: float
    jax: str
    libtpu: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Figures):
    """What launch/plan.py tells of a config's training step: its JSON has these keys.

    Attributes:
      params: the frozen ones of LoRA included.
      trained_bytes_per_chip: of `trained_params` and their optimizer state;
        `frozen_bytes_per_chip`: of what LoRA leaves as it is.
      rows_assumed: no data was read, and every text taken to be as long as it may be.
      loss_form: dense or chunked (configs/base.py: loss.form), or next token, of a language model,
        whose pairs are texts.
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
    """Compiles a config's step for a topology; takes seconds for a small model and minutes for a
    large one.

    Args:
      config: plain values.
      topology: such as v5p:4x4x4.
      slices: of it.
      on_start: called when all is checked and the compiler begins.

    Raises:
      UserError: the topology or the config is wrong, or libtpu fails for another reason than
        memory.
    """
    chip = check_topology(topology)
    step = lower(config, devices_of(topology, slices))
    if step.lowered is None:
        raise ValueError('this step was made without a trace of its program')
    on_start()
    return Plan(
        **figures(step.lowered, step.mesh, topology, slices, step.model_flops),
        params=step.parameters,
        trained_params=step.trained,
        trained_bytes_per_chip=chip.devices
        * device_bytes((step.state.params, step.state.optimizer)),
        frozen_bytes_per_chip=chip.devices * device_bytes(step.state.frozen),
        batch_pairs=step.train.batch_pairs,
        tokens_per_step=step.layout.tokens,
        rows=step.layout.rows,
        rows_assumed=step.data.packed and not step.data.rows,
        encode_chunks=step.train.encode_chunks,
        remat=step.encoder_config.remat,
        loss_form=step.objective.form,
    )


def figures(
    lowered: jax.stages.Lowered,
    mesh: jax.sharding.Mesh,
    topology: str,
    slices: int,
    model_flops: int,
    beside: int = 0,
) -> dict[str, Any]:
    """Compiles a program: those of the `Figures` that do not depend on what it is for.

    Args:
      lowered: for the devices of `mesh`, which are all of the topology's slices.
      model_flops: see `model/flops.py`.
      beside: bytes of a device that something else holds while the program runs.
    """
    chip = check_topology(topology)
    start = time.perf_counter()
    compiled, needed = _compile(lowered)
    seconds = time.perf_counter() - start
    whole = chip.devices * (needed + beside)
    return {field: None for field in _OF_A_PROGRAM} | {
        'topology': topology,
        'slices': slices,
        'chips': mesh.size // chip.devices,
        'mesh': dict(mesh.shape),
        'hbm_bytes_per_chip': whole,
        'hbm_limit_bytes': chip.hbm_limit,
        'fits': compiled is not None and whole <= chip.hbm_limit,
        'model_flops_per_step': model_flops,
        'uncounted': (),
        'compile_seconds': seconds,
        'jax': jax.__version__,
        'libtpu': libtpu_version(),
        **(_read(compiled, mesh, model_flops, chip, slices) if compiled else {}),
    }


_OF_A_PROGRAM = (
    'compiled_flops_per_step', 'collectives', 'compute_seconds', 'memory_seconds',
    'network_seconds', 'lower_bound_seconds', 'mfu_bound',
)  # fmt: skip


def _compile(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled | None, int]:
    """The program, and the memory of a device that it takes; None where the compiler refuses it for
    that.
    """
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refused = bytes_refused(error)
        if refused is None:
            raise UserError(
                f'libtpu {libtpu_version()} does not compile this program: {error}'
            ) from error
        return None, refused
    return compiled, bytes_needed(compiled)


def _read(
    compiled: jax.stages.Compiled,
    mesh: jax.sharding.Mesh,
    model_flops: int,
    chip: Chip,
    slices: int,
) -> dict[str, Any]:
    """What the program's text tells."""
    module = parse(_text(compiled))
    devices = list(mesh.devices.flat)
    places = places_of(devices)
    chips = len(devices) // chip.devices
    flops = count_flops(module)
    sites = collectives(module, len(devices), slices)
    compute = flops.total * chip.devices / chip.flops
    memory = traffic(module) * chip.devices / chip.hbm_rate
    network = network_seconds(sites, places, chip)
    bound = max(compute, memory, network)
    return {
        'compiled_flops_per_step': flops.total * len(devices),
        'uncounted': (*flops.uncounted, *_conditionals(module)),
        'collectives': collective_summary(sites, mesh, chip),
        'compute_seconds': compute,
        'memory_seconds': memory,
        'network_seconds': network,
        'lower_bound_seconds': bound,
        'mfu_bound': model_flops / (chips * chip.flops * bound),
    }


def _text(compiled: jax.stages.Compiled) -> str:
    try:
        text = compiled.as_text()
    # A libtpu that is newer than JAX writes programs that JAX cannot read.
    except jax.errors.JaxRuntimeError as error:
        reason = (
            f'JAX {jax.__version__} cannot read the program that libtpu {libtpu_version()} compiled'
        )
        raise UserError(f'{reason}: pip install {libtpu_requirement()!r} ({error})') from error
    if text is None:
        raise HloError('the compiler does not give the text of its program')
    return text


def _conditionals(module: Module) -> list[str]:
    found = any(
        step.opcode == 'conditional'
        for part in module.computations.values()
        for step in part.instructions.values()
    )
    return ['conditional (every branch counts)'] if found else []


def collective_summary(
    sites: Sequence[Site], mesh: jax.sharding.Mesh, chip: Chip
) -> list[dict[str, Any]]:
    """Sites that do the same, together; those that move most come first."""
    sizes = tuple(mesh.shape[axis] for axis in AXES)
    Key = tuple[str, int, int, bool, str, bool]
    count: Counter[Key] = Counter()
    places: Counter[Key] = Counter()
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
        count[key] += site.times
        places[key] += 1
        payload[key] += site.times * site.bytes * chip.devices
    rows = [
        {
            'kind': kind, 'count': count[key], 'sites': places[key], 'bytes': payload[key],
            'in_loop': loops > 0, 'loops': loops,
            'group': group, 'gradient': gradient, 'network': network, 'summed': summed,
        }
        for key in count for kind, loops, group, gradient, network, summed in [key]
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -row['bytes'])

"""Plans the embedding program, which launch/evaluate.py and launch/embed.py run batch by batch."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from cpt_jax.plan.lowering import count_device_bytes, lower_embedding
from cpt_jax.plan.planning import Plan, ProgramPlan, compile_and_measure
from cpt_jax.plan.topology import find_topology_chip, get_topology_devices
from cpt_jax.runtime.mesh import count_batch_shards


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingPlan(ProgramPlan):
    """The plan of a config's model as an embedder; the JSON of launch/plan.py has these keys.

    Attributes:
      weights: storage format of the parameters: bfloat16 or float32, or `lora.base` with LoRA.
      weight_bytes_per_chip: bytes of all parameters, per chip.
      row_length: columns of a row; each row holds one text.
      texts_per_step: texts of a full batch, over all devices.
      texts_per_second_bound: upper bound of the throughput, `texts_per_step` divided by
        `lower_bound_seconds`; None if the program does not fit.
    """

    weights: str
    weight_bytes_per_chip: int
    row_length: int
    texts_per_step: int
    texts_per_second_bound: float | None


AnyPlan = Plan | EmbeddingPlan


def make_embedding_plan(
    config: Mapping[str, Any],
    topology: str,
    slices: int = 1,
    on_start: Callable[[], None] = lambda: None,
    *,
    fsdp: int = 1,
    length: int = 0,
    weights: str = '',
) -> EmbeddingPlan:
    """Compiles an embedder's program for a full batch and returns its plan; see `make_plan`.

    Args:
      config: the sections of configs/base.py, as plain values; the `mesh` section and keys that
        only training uses are ignored.
      topology: a TPU slice, such as v5p:4x4x4.
      slices: number of slices of this topology.
      on_start: called after all checks, when compilation starts.
      fsdp: number of devices over which one copy of the parameters is sharded, as in
        launch/evaluate.py.
      length: maximum tokens per text, delimiters or template included; 0: the larger of
        data.max_tokens_x and data.max_tokens_y.
      weights: storage format of the parameters, 'bfloat16' or 'float32'; '': bfloat16 if the config
        has a prompt template, as in files of published language models, else float32, as in
        checkpoints. Must be '' with LoRA, where `lora.base` decides.

    Raises:
      UserError: the topology or the config is invalid, a text of that length does not fit the
        model, or libtpu fails for a reason other than memory.
    """
    chip = find_topology_chip(topology)
    program = lower_embedding(config, get_topology_devices(topology, slices), fsdp, length, weights)
    on_start()
    measured = compile_and_measure(
        program.lowered,
        program.mesh,
        topology,
        slices,
        program.model_flops,
        program.in_flight_bytes,
    )
    seconds = measured['lower_bound_seconds']
    return EmbeddingPlan(
        **measured,
        params=program.parameters,
        tokens_per_step=program.texts * program.row_length,
        rows=program.texts // count_batch_shards(program.mesh),
        weights=program.weights,
        weight_bytes_per_chip=chip.devices * count_device_bytes(program.encoder),
        row_length=program.row_length,
        texts_per_step=program.texts,
        texts_per_second_bound=program.texts / seconds if seconds else None,
    )

"""The program that turns texts into vectors, compiled for a topology: what launch/evaluate.py and
embed.py run, batch after batch.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from cpt_jax.plan.lowering import device_bytes, lower_embedding
from cpt_jax.plan.planning import Figures, Plan, figures
from cpt_jax.plan.topology import check_topology, devices_of
from cpt_jax.runtime.mesh import batch_shards


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingPlan(Figures):
    """What launch/plan.py tells of a config's model as an embedder: its JSON has these keys.

    Attributes:
      weights: how parameters are kept: bfloat16 or float32; of a config with LoRA, the kind of its
        base.
      weight_bytes_per_chip: of all parameters.
      row_length: columns of a row, which holds one text.
      texts_per_step: of a full batch, all devices together.
      texts_per_second_bound: texts of a full batch in `lower_bound_seconds`.
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
    """Compiles the program of a full batch of an embedder; see `make_plan`.

    Args:
      config: plain values; its mesh has no part, and neither has what is for training alone.
      fsdp: devices that share one copy of the parameters, as of launch/evaluate.py.
      length: tokens of a text with all that stands around it; 0: the larger of data.max_tokens_x
        and y.
      weights: how parameters are kept, bfloat16 or float32; '': bfloat16 with a config that has a
        prompt, as in files of published language models, else float32, as in checkpoints. With LoRA
        the config says it.

    Raises:
      UserError: the topology or the config is wrong, or a text of that length does not go into the
        model, or libtpu fails for another reason than memory.
    """
    chip = check_topology(topology)
    program = lower_embedding(config, devices_of(topology, slices), fsdp, length, weights)
    on_start()
    found = figures(
        program.lowered, program.mesh, topology, slices, program.model_flops, program.waiting_bytes
    )
    seconds = found['lower_bound_seconds']
    return EmbeddingPlan(
        **found,
        params=program.parameters,
        tokens_per_step=program.texts * program.row_length,
        rows=program.texts // batch_shards(program.mesh),
        weights=program.weights,
        weight_bytes_per_chip=chip.devices * device_bytes(program.encoder),
        row_length=program.row_length,
        texts_per_step=program.texts,
        texts_per_second_bound=program.texts / seconds if seconds else None,
    )

"""Lowers a config's training step or embedding program, for devices that need not exist."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cpt_jax.data.batch import Layout, make_abstract_batch
from cpt_jax.data.packing import count_rows_needed
from cpt_jax.embed.embedder import Embedder
from cpt_jax.embed.row_batching import choose_row_length, choose_rows_per_device, encode_rows
from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.flops import count_embedding_flops
from cpt_jax.model.parameter import split_frozen
from cpt_jax.origin.resolve import resolve_origin
from cpt_jax.runs.config import build
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import (
    assign_mesh_shardings,
    count_batch_shards,
    get_batch_sharding,
    make_mesh,
    shardings,
)
from cpt_jax.training.objective import Objective
from cpt_jax.training.resolve import resolve, resolve_architecture
from cpt_jax.training.sections import Data, Train, add_defaults, check_sections
from cpt_jax.training.sizes import assume_longest
from cpt_jax.training.step import TrainState, init_state, make_step


@dataclasses.dataclass(frozen=True)
class LoweredStep:
    """A config's training step, lowered for given devices but not compiled.

    Attributes:
      mesh: device mesh.
      encoder_config: config of the encoder, with all 'auto' values resolved.
      train: the `train` section.
      data: the `data` section.
      layout: layout of a batch.
      objective: the loss.
      state: shapes, dtypes and shardings of the training state.
      lowered: the program; None if it was not traced.
      lora: the `lora` section.
    """

    mesh: jax.sharding.Mesh
    encoder_config: EncoderConfig
    train: Train
    data: Data
    layout: Layout
    objective: Objective
    state: TrainState
    lowered: jax.stages.Lowered | None
    lora: LoRA

    @property
    def trained_parameters(self) -> int:
        """Number of trained parameters, the padding of the vocabulary included."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.state.params))

    @property
    def parameters(self) -> int:
        """Number of parameters, trained and frozen. A quantized parameter counts as one."""
        if not self.lora.rank:
            return self.trained_parameters
        with jax.set_mesh(self.mesh):
            encoder = jax.eval_shape(lambda: Encoder(self.encoder_config, nnx.Rngs(0)))
        return self.trained_parameters + sum(leaf.size for leaf in jax.tree.leaves(encoder))

    @property
    def model_flops(self) -> int:
        """Floating-point operations that a step needs; see model/flops.py."""
        layout = self.layout
        return int(
            self.objective.count_step_flops(
                self.encoder_config,
                layout.tokens,
                layout.row_length,
                self.train.batch_pairs,
                layout.texts,
                self.lora,
            )
        )


def lower_training_step(
    config: Mapping[str, Any], devices: Sequence[jax.Device], trace: bool = True
) -> LoweredStep:
    """Returns the step that launch/train.py would run with this config on these TPUs.

    No data is read: if `data.rows` is 0, every text is assumed to have its maximum length. The
    vocabulary size is `tokenizer.vocab_size`, or that of the pretrained model in `init_from`.

    Args:
      config: the sections of configs/base.py, as plain values.
      devices: devices of one topology.
      trace: whether to trace the program, which takes seconds; if False, `lowered` is None.

    Raises:
      UserError: the config is invalid, or does not fit the devices.
    """
    parts = resolve(_inherit_from_origin(config), devices, platform='tpu')
    mesh, objective = parts.mesh, parts.objective
    longest = objective.get_max_lengths(parts.data)
    layout = make_longest_layout(parts.data, parts.train, count_batch_shards(mesh), longest)
    ids_per_text = objective.count_ids_per_text(parts.data)
    targets = objective.measure_targets(parts.data)
    layout = dataclasses.replace(layout, ids_per_text=ids_per_text, targets=targets)

    def init() -> TrainState:
        return init_state(
            parts.encoder_config, objective, parts.optimizer, config['seed'], parts.lora
        )

    with jax.set_mesh(mesh):
        state = assign_mesh_shardings(jax.eval_shape(init), mesh)
        lowered = None
        if trace:
            step = make_step(objective, parts.optimizer, parts.schedule, config['seed'])
            # These are the options of training/step.py.
            lowered = jax.jit(step, donate_argnums=0, out_shardings=(shardings(state), None)).lower(
                state, make_abstract_batch(layout, mesh)
            )
    return LoweredStep(
        mesh,
        parts.encoder_config,
        parts.train,
        parts.data,
        layout,
        objective,
        state,
        lowered,
        parts.lora,
    )


def _inherit_from_origin(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the config with the architecture of its origin.

    If `init_from` is an earlier run that does not exist, the config's own architecture is used: a
    plan may be made before that run has trained.
    """
    check_sections(config)
    origin = resolve_origin(config['init_from'], must_exist=False)
    config, _ = resolve_architecture(config, origin)
    return assume_longest(add_defaults(config), origin)


@dataclasses.dataclass(frozen=True)
class LoweredEmbedder:
    """An embedder's program, lowered for given devices but not compiled.

    Attributes:
      mesh: device mesh.
      encoder: shapes, dtypes and shardings of the parameters.
      lora: the `lora` section.
      weights: storage format of the parameters: bfloat16 or float32; with LoRA, `lora.base`.
      row_length: columns of a row.
      texts: texts of a batch, one per row.
      lowered: the program.
    """

    mesh: jax.sharding.Mesh
    encoder: Encoder
    lora: LoRA
    weights: str
    row_length: int
    texts: int
    lowered: jax.stages.Lowered

    @property
    def parameters(self) -> int:
        """Number of parameters, the padding of the vocabulary and adapters included. A quantized
        parameter counts as one.
        """
        with jax.set_mesh(self.mesh):
            plain_encoder = jax.eval_shape(lambda: Encoder(self.encoder.config, nnx.Rngs(0)))
        adapters = split_frozen(self.encoder)[0] if self.lora.rank else None
        return sum(leaf.size for leaf in jax.tree.leaves((plain_encoder, adapters)))

    @property
    def model_flops(self) -> int:
        """Floating-point operations that a batch needs; see model/flops.py."""
        return count_embedding_flops(
            self.encoder.config,
            self.texts * self.row_length,
            self.row_length,
            self.texts,
            self.lora,
        )

    @property
    def in_flight_bytes(self) -> int:
        """Bytes per device of the embeddings of earlier batches that the host has not read yet."""
        return Embedder.BATCHES_IN_FLIGHT * self.texts * self.encoder.config.vector_width * 4


def lower_embedding(
    config: Mapping[str, Any], devices: Sequence[jax.Device], fsdp: int, length: int, weights: str
) -> LoweredEmbedder:
    """Returns the program that `Embedder` runs for a full batch on these TPUs.

    Args:
      config: see `make_embedding_plan`.
      devices: devices of one topology.
      fsdp: see `make_embedding_plan`.
      length: see `make_embedding_plan`.
      weights: see `make_embedding_plan`.

    Raises:
      UserError: the config is invalid or does not fit the devices, or the length exceeds the
        model's maximum.
    """
    config = _inherit_from_origin(config)
    if fsdp > 1 and len(devices) % fsdp:
        raise UserError(f'--fsdp={fsdp} does not divide the {len(devices):,} devices')
    mesh = make_mesh(fsdp=fsdp, devices=devices)
    # These are the settings of embed/load.py.
    model = config['model'] | {'attention': 'auto', 'layer_loop': 'auto'}
    encoder_config = build(
        EncoderConfig, 'model', model, vocab_size=config['tokenizer']['vocab_size']
    ).resolve_for(devices[0], platform='tpu')
    encoder_config.check_mesh(mesh)
    lora = build(LoRA, 'lora', config['lora'])
    lora.check(encoder_config, mesh)
    if weights and lora.rank:
        raise UserError(
            f'--weights={weights}: with lora.rank={lora.rank}, lora.base={lora.base} sets the '
            f'storage format; leave --weights out'
        )
    if lora.rank:
        weights = lora.base
    elif not weights:
        weights = 'bfloat16' if config['prompt']['template'] else 'float32'
    longest = length or max(config['data']['max_tokens_x'], config['data']['max_tokens_y'])
    if not 0 < longest <= encoder_config.max_length:
        name = '--length' if length else 'data.max_tokens_x or y'
        raise UserError(
            f'{name}={longest}: must be 1 to model.max_length={encoder_config.max_length}'
        )
    row_length = choose_row_length(longest, encoder_config.max_length)
    texts = choose_rows_per_device('tpu', row_length) * count_batch_shards(mesh)

    def init_encoder() -> Encoder:
        encoder = Encoder(encoder_config, nnx.Rngs(0))
        if lora.rank:
            return lora.add_adapters(encoder, nnx.Rngs(0))
        return jax.tree.map(lambda weight: weight.astype(weights), encoder)

    with jax.set_mesh(mesh):
        encoder = assign_mesh_shardings(jax.eval_shape(init_encoder), mesh)
        arrays = [
            jax.ShapeDtypeStruct(sizes, jnp.int32, sharding=get_batch_sharding(mesh))
            for sizes in ((texts, row_length), (texts, 1))
        ]
        lowered = jax.jit(encode_rows).lower(encoder, (), None, *arrays)
    return LoweredEmbedder(mesh, encoder, lora, weights, row_length, texts, lowered)


def count_device_bytes(tree: Any) -> int:
    """Returns the bytes per device of all arrays of a tree."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def make_longest_layout(data: Data, train: Train, parts: int, longest: Sequence[int]) -> Layout:
    """Returns the layout of a batch whose texts all have their maximum lengths.

    If `data.rows` is set, it is the number of rows.

    Args:
      data: the `data` section.
      train: the `train` section.
      parts: number of batch shards of the mesh, data x fsdp.
      longest: maximum length of each text of a pair.

    Raises:
      UserError: a part or chunk would have no pair.
    """
    groups = parts * train.encode_chunks
    if train.batch_pairs < groups:
        raise UserError(
            f'train.batch_pairs={train.batch_pairs} is less than mesh.data x mesh.fsdp x '
            f'train.encode_chunks = {groups}'
        )
    pairs = -(-train.batch_pairs // groups)
    texts = len(longest)
    if data.packed:
        rows = data.rows or count_rows_needed(np.repeat(longest, pairs), data.row_length)
    else:
        rows = pairs * texts
    return Layout(parts, train.encode_chunks, pairs, texts, rows, data.row_length, data.packed)

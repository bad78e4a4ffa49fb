"""From a config to its training step, or to what embeds with its model, ready to be compiled for
devices that are not there.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cpt_jax.data.batch import Layout, abstract_batch
from cpt_jax.data.packing import rows_needed
from cpt_jax.embed.embedder import Embedder
from cpt_jax.embed.row_batching import encode_rows, row_length_of, rows_at_once
from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.flops import embedding_flops
from cpt_jax.model.parameter import divided
from cpt_jax.origin.resolve import resolve_origin
from cpt_jax.runs.config import build
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import batch_sharding, batch_shards, make_mesh, on_mesh, shardings
from cpt_jax.training.objective import Objective
from cpt_jax.training.resolve import inherit, resolve
from cpt_jax.training.sections import Data, Train, check_sections, with_defaults
from cpt_jax.training.step import TrainState, init_state, make_step


@dataclasses.dataclass(frozen=True)
class LoweredStep:
    """A config's training step on given devices; nothing is compiled yet."""

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
    def trained(self) -> int:
        """Numbers that are trained, the padding of the vocabulary included."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.state.params))

    @property
    def parameters(self) -> int:
        """The same and those that are frozen, each a number whatever it is kept as."""
        if not self.lora.rank:
            return self.trained
        with jax.set_mesh(self.mesh):
            encoder = jax.eval_shape(lambda: Encoder(self.encoder_config, nnx.Rngs(0)))
        return self.trained + sum(leaf.size for leaf in jax.tree.leaves(encoder))

    @property
    def model_flops(self) -> int:
        """See `model/flops.py`."""
        return self.objective.flops(
            self.encoder_config, self.layout, self.train.batch_pairs, self.lora
        )


def lower(
    config: Mapping[str, Any], devices: Sequence[jax.Device], trace: bool = True
) -> LoweredStep:
    """The step that launch/train.py would run with this config on these TPUs.

    No data is read: with `data.rows` 0 every text is as long as it may be. The vocabulary is
    `tokenizer.vocab_size`; of a run that starts from a pretrained model (`init_from`), that
    model's.

    Args:
      config: plain values.
      devices: of one topology.
      trace: also write the program down, which takes seconds; without it `lowered` is None.

    Raises:
      UserError: the config does not fit together, or does not go on these devices.
    """
    parts = resolve(_with_origin(config), devices, platform='tpu')
    mesh, objective = parts.mesh, parts.objective
    longest = objective.longest(parts.data)
    layout = longest_layout(parts.data, parts.train, batch_shards(mesh), longest)

    def init() -> TrainState:
        return init_state(
            parts.encoder_config, objective, parts.optimizer, config['seed'], parts.lora
        )

    with jax.set_mesh(mesh):
        state = on_mesh(jax.eval_shape(init), mesh)
        lowered = None
        if trace:
            step = make_step(objective, parts.optimizer, parts.schedule, config['seed'])
            # As training/step.py compiles it.
            lowered = jax.jit(step, donate_argnums=0, out_shardings=(shardings(state), None)).lower(
                state, abstract_batch(layout, mesh)
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


def _with_origin(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the config with the architecture of its origin; an earlier run that is not there
    counts as scratch, since a plan is made before anything has run.
    """
    check_sections(config)
    config, _ = inherit(config, resolve_origin(config['init_from'], must_exist=False))
    return with_defaults(config)


@dataclasses.dataclass(frozen=True)
class Embedding:
    """An embedder's program on given devices; nothing is compiled yet.

    Attributes:
      encoder: its parameters' shapes, dtypes and shardings.
      weights: what these are kept as.
      texts: of a batch, one a row.
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
        """Numbers, the padding of the vocabulary and adapters included, each one whatever it is
        kept as.
        """
        with jax.set_mesh(self.mesh):
            whole = jax.eval_shape(lambda: Encoder(self.encoder.config, nnx.Rngs(0)))
        adapters = divided(self.encoder)[0] if self.lora.rank else None
        return sum(leaf.size for leaf in jax.tree.leaves((whole, adapters)))

    @property
    def model_flops(self) -> int:
        """See `model/flops.py`."""
        return embedding_flops(
            self.encoder.config,
            self.texts * self.row_length,
            self.row_length,
            self.texts,
            self.lora,
        )

    @property
    def waiting_bytes(self) -> int:
        """Of a device: vectors of the batches before, which have not been read yet."""
        return Embedder.BATCHES_IN_FLIGHT * self.texts * self.encoder.config.embedding_width * 4


def lower_embedding(
    config: Mapping[str, Any], devices: Sequence[jax.Device], fsdp: int, length: int, weights: str
) -> Embedding:
    """The program of `Embedder` for a full batch on these TPUs; the other arguments are those of
    `make_embedding_plan`.

    Raises:
      UserError: the config does not fit together, or does not go on these devices, or texts are
        longer than the model takes.
    """
    config = _with_origin(config)
    if fsdp > 1 and len(devices) % fsdp:
        raise UserError(f'--fsdp={fsdp}: the {len(devices):,} devices are no multiple of it')
    mesh = make_mesh(fsdp=fsdp, devices=devices)
    # As embed/load.py opens a run.
    model = config['model'] | {'attention': 'auto', 'layer_loop': 'auto'}
    encoder_config = build(
        EncoderConfig, 'model', model, vocab_size=config['tokenizer']['vocab_size']
    ).on('tpu')
    encoder_config.check_mesh(mesh)
    lora = build(LoRA, 'lora', config['lora'])
    lora.check(encoder_config, mesh)
    if weights and lora.rank:
        raise UserError(
            f'--weights={weights}: lora.rank={lora.rank}, and lora.base={lora.base} says how they '
            f'are kept; leave it out'
        )
    weights = (
        lora.base
        if lora.rank
        else weights or ('bfloat16' if config['prompt']['template'] else 'float32')
    )
    longest = length or max(config['data']['max_tokens_x'], config['data']['max_tokens_y'])
    if not 0 < longest <= encoder_config.max_length:
        name = '--length' if length else 'data.max_tokens_x or y'
        raise UserError(
            f'{name}={longest}: texts have 1 to model.max_length={encoder_config.max_length} tokens'
        )
    row_length = row_length_of(longest, encoder_config.max_length)
    texts = rows_at_once('tpu', row_length) * batch_shards(mesh)

    def kept() -> Encoder:
        encoder = Encoder(encoder_config, nnx.Rngs(0))
        return (
            lora.adapted(encoder, nnx.Rngs(0))
            if lora.rank
            else jax.tree.map(lambda weight: weight.astype(weights), encoder)
        )

    with jax.set_mesh(mesh):
        encoder = on_mesh(jax.eval_shape(kept), mesh)
        arrays = [
            jax.ShapeDtypeStruct(sizes, jnp.int32, sharding=batch_sharding(mesh))
            for sizes in ((texts, row_length), (texts, 1))
        ]
        lowered = jax.jit(encode_rows).lower(encoder, (), None, *arrays)
    return Embedding(mesh, encoder, lora, weights, row_length, texts, lowered)


def device_bytes(tree: Any) -> int:
    """Of one device: the arrays of a part of the state."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def longest_layout(data: Data, train: Train, parts: int, longest: Sequence[int]) -> Layout:
    """The layout of a batch where the texts of every pair have their greatest lengths, `longest`,
    or that of `data.rows`.

    Raises:
      UserError: there are not enough pairs for all parts and chunks.
    """
    groups = parts * train.encode_chunks
    if train.batch_pairs < groups:
        raise UserError(
            f'train.batch_pairs={train.batch_pairs} is less than mesh.data x mesh.fsdp x '
            f'train.encode_chunks = {groups}'
        )
    pairs, texts = -(-train.batch_pairs // groups), len(longest)
    lengths = np.repeat(longest, pairs)
    rows = pairs * texts if not data.packed else data.rows or rows_needed(lengths, data.row_length)
    return Layout(parts, train.encode_chunks, pairs, texts, rows, data.row_length, data.packed)

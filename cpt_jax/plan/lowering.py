"""From a config to its training step, ready to be compiled for devices that are not there: the one place that knows how a run is built."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from cpt_jax.config import build
from cpt_jax.data.batch import Layout, abstract_batch
from cpt_jax.data.packing import rows_needed
from cpt_jax.errors import UserError
from cpt_jax.mesh import batch_shards, make_mesh, on_mesh, shardings
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.lora import LoRA
from cpt_jax.model.shape import Shape
from cpt_jax.train.objective import Objective
from cpt_jax.train.optimizer import make_optimizer
from cpt_jax.train.setup import Data, Train, check_lengths, make_objective, with_architecture
from cpt_jax.train.step import TrainState, init_state, make_step


@dataclasses.dataclass(frozen=True)
class Step:
    """A config's training step on given devices; nothing is compiled yet."""

    mesh: jax.sharding.Mesh
    shape: Shape
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
            encoder = jax.eval_shape(lambda: Encoder(self.shape, nnx.Rngs(0)))
        return self.trained + sum(leaf.size for leaf in jax.tree.leaves(encoder))

    @property
    def model_flops(self) -> int:
        """See `model/flops.py`."""
        return self.objective.flops(self.shape, self.layout, self.train.batch_pairs, self.lora)


def lower(config: Mapping[str, Any], devices: Sequence[jax.Device], trace: bool = True) -> Step:
    """The step that launch/train.py would run with this config on these TPUs.

    No data is read: with `data.rows` 0 every text is as long as it may be. The vocabulary is `tokenizer.vocab_size`; of a run that starts
    from a pretrained model (`init_from`), that model's.

    Args:
      config: plain values.
      devices: of one topology.
      trace: also write the program down, which takes seconds; without it `lowered` is None.

    Raises:
      UserError: the config does not fit together, or does not go on these devices.
    """
    config = with_architecture(config)
    mesh = build(make_mesh, 'mesh', config['mesh'], devices=devices)
    train, data = build(Train, 'train', config['train']), build(Data, 'data', config['data'])
    objective = make_objective(config, data)
    optimizer, schedule = build(make_optimizer, 'optimizer', config['optimizer'], steps=train.steps)
    shape = build(Shape, 'model', config['model'], vocab_size=config['tokenizer']['vocab_size']).on('tpu')
    shape.check_mesh(mesh)
    objective.check(shape)
    lora = build(LoRA, 'lora', config['lora'])
    lora.check(shape, mesh)
    check_lengths(objective, data, shape)
    layout = longest_layout(data, train, batch_shards(mesh), objective.longest(data))
    with jax.set_mesh(mesh):
        state = on_mesh(jax.eval_shape(lambda: init_state(shape, objective, optimizer, config['seed'], lora)), mesh)
        lowered = None
        if trace:
            step = make_step(objective, optimizer, schedule, config['seed'])
            # As train/loop.py compiles it.
            lowered = jax.jit(step, donate_argnums=0, out_shardings=(shardings(state), None)).lower(state, abstract_batch(layout, mesh))
    return Step(mesh, shape, train, data, layout, objective, state, lowered, lora)


def device_bytes(tree: Any) -> int:
    """Of one device: the arrays of a part of the state."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def longest_layout(data: Data, train: Train, parts: int, longest: Sequence[int]) -> Layout:
    """The layout of a batch where the texts of every pair have their greatest lengths, `longest`, or that of `data.rows`.

    Raises:
      UserError: there are not enough pairs for all parts and chunks.
    """
    groups = parts * train.encode_chunks
    if train.batch_pairs < groups:
        raise UserError(f'train.batch_pairs={train.batch_pairs} is less than mesh.data x mesh.fsdp x train.encode_chunks = {groups}')
    pairs, texts = -(-train.batch_pairs // groups), len(longest)
    lengths = np.repeat(longest, pairs)
    rows = pairs * texts if not data.packed else data.rows or rows_needed(lengths, data.row_length)
    return Layout(parts, train.encode_chunks, pairs, texts, rows, data.row_length, data.packed)

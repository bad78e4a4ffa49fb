"""The weights of an Encoder as the tensors of a family's files, one after the other."""

from collections.abc import Container, Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from cpt_jax.model.adapters.lora import MergeableWeight, collect_weight, count_weights
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.family import Family
from cpt_jax.model.families.tensors import TensorMapping, join_mappings


class _WrittenTensor(NamedTuple):
    """A tensor of the files.

    Attributes:
      name: its name, without a prefix.
      mapping: the parameters that it contains.
      stack: 'blocks.' or 'last.', where the Encoder has the parameters of its layer; '' for tensors
        that belong to no layer.
      layer: index in the stack 'blocks.'; None for the others.
    """

    name: str
    mapping: TensorMapping
    stack: str = ''
    layer: int | None = None


def _list_tensors(family: Family, config: EncoderConfig) -> Iterator[_WrittenTensor]:
    for mapping in join_mappings(family.outer(config), family.stored):
        yield _WrittenTensor(mapping.name, mapping)
    for mapping in join_mappings(family.layer(config), family.stored):
        for i in range(mapping.first, config.layers - 1):
            yield _WrittenTensor(mapping.name.format(i=i), mapping, 'blocks.', i)
        if mapping.first < config.layers:
            yield _WrittenTensor(mapping.name.format(i=config.layers - 1), mapping, 'last.')


def count_elements(family: Family, encoder: Encoder, rows: int) -> dict[str, int]:
    """Returns the number of elements of each tensor that `iterate_tensors` yields, in its order."""
    counts = {}
    for tensor in _list_tensors(family, encoder.config):
        # Layers have equal shapes, and no mapping adds or removes elements.
        stack = 'last.' if tensor.stack else ''
        paths = [f'{stack}{name}' for name in tensor.mapping.parameters]
        counts[tensor.name] = sum(count_weights(*_find(encoder, path)) for path in paths)
        if tensor.mapping.parameters == ('token_embedding',):
            counts[tensor.name] = rows * encoder.config.embedding_width
    return counts


def iterate_tensors(
    family: Family, encoder: Encoder, rows: int, wanted: Container[str] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, array) of all tensors as in the family's files, without a prefix.

    Adapters are merged into their weights. With several processes, all of them must iterate to the
    end, because each tensor is gathered on all devices. Each process copies only those tensors to
    its host that it wants.

    Args:
      family: family to write.
      encoder: model to write.
      rows: number of rows of the token table to write.
      wanted: names of the tensors to yield; None: all.
    """
    # Slices of a stack on the host need no compiled program, but all layers in its memory.
    reader = _StackReader(encoder) if jax.process_count() == 1 else _LayerGatherer(encoder)
    for tensor in _list_tensors(family, encoder.config):
        is_wanted = wanted is None or tensor.name in wanted
        paths = [f'{tensor.stack}{name}' for name in tensor.mapping.parameters]
        arrays = reader.read(paths, tensor.layer, is_wanted)
        if is_wanted:
            if tensor.mapping.parameters == ('token_embedding',):
                arrays = [arrays[0][:rows]]
            yield tensor.name, tensor.mapping.write(*arrays)


class _StackReader:
    """Reads the weights of an encoder whose arrays this process has all elements of."""

    def __init__(self, encoder: Encoder):
        self._encoder = encoder
        self._paths: Sequence[str] = ()
        self._stacks: Sequence[np.ndarray] = ()

    def read(
        self, paths: Sequence[str], layer: int | None, is_wanted: bool
    ) -> Sequence[np.ndarray]:
        """Returns the weights with these paths, of one layer if they are stacks."""
        if layer is None:
            return [_collect(self._encoder, path).merge() for path in paths]
        if paths != self._paths:
            self._stacks = ()  # before the next ones are in memory
            self._stacks = [_collect(self._encoder, path).merge() for path in paths]
            self._paths = paths
        return [stack[layer] for stack in self._stacks]


class _LayerGatherer:
    """Gathers the weights of an encoder that is sharded over processes, layer by layer."""

    def __init__(self, encoder: Encoder):
        self._encoder = encoder

    def read(
        self, paths: Sequence[str], layer: int | None, is_wanted: bool
    ) -> Sequence[np.ndarray]:
        """Returns the weights with these paths if they are wanted, and () otherwise."""
        weights = [_collect(self._encoder, path, layer) for path in paths]
        if is_wanted:
            return [weight.merge() for weight in weights]
        # Otherwise the gathered weights of many tensors would be on the devices at once.
        jax.block_until_ready(weights)
        return ()


def _collect(encoder: Encoder, path: str, layer: int | None = None) -> MergeableWeight:
    return collect_weight(*_find(encoder, path), layer)


def _find(encoder: Encoder, path: str) -> tuple[nnx.Module, str]:
    """Returns the module that has the weight with a path such as 'last.attention.query', and the
    name of the weight in it.
    """
    module, _, name = path.rpartition('.')
    return attrgetter(module)(encoder) if module else encoder, name

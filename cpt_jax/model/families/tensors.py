"""Mappings between the tensors of Hugging Face checkpoints and the parameters of an Encoder."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class TensorMapping(NamedTuple):
    """Mapping between one tensor of a file and parameters of an Encoder.

    Attributes:
      name: name in the file, with `{i}` for the index of a layer.
      parameters: names of the parameters that it contains: of the Encoder, or if the name has an
        `{i}`, of a Block.
      read: function from the tensor in the file to the parameters.
      write: function from the parameters to the tensor in the file; the exact inverse of `read`.
      first: index of the first layer that has the tensor in the file. In earlier layers the
        parameters are not used and are set to 1.
    """

    name: str
    parameters: tuple[str, ...]
    read: Callable[[np.ndarray], Sequence[np.ndarray]]
    write: Callable[..., np.ndarray]
    first: int = 0


class StoredTensor(NamedTuple):
    """A tensor of a file that transformers loads into parameters of other names.

    Attributes:
      name: name in the file, with `{i}` for the index of a layer.
      parts: names of the parameters, which the file has concatenated along the first axis.
    """

    name: str
    parts: tuple[str, ...]


def join_mappings(
    mappings: Sequence[TensorMapping], stored: Sequence[StoredTensor]
) -> list[TensorMapping]:
    """Returns mappings that write tensors as files have them.

    They do not read: files are read with the names of separate parameters (`rename_tensors`).

    Args:
      mappings: mappings of separate parameters.
      stored: tensors that files have in another form.
    """
    remaining = {mapping.name: mapping for mapping in mappings}
    joined = []
    for name, part_names in stored:
        if remaining.keys() >= {*part_names}:
            joined.append(_join(name, [remaining.pop(part) for part in part_names]))
    return [*remaining.values(), *joined]


def _join(name: str, parts: Sequence[TensorMapping]) -> TensorMapping:
    """Concatenates tensors of one parameter each along the first axis."""

    def read(array: np.ndarray) -> list[np.ndarray]:
        raise NotImplementedError(f'{name} is read as {len(parts)} tensors')

    def write(*arrays: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [part.write(array) for part, array in zip(parts, arrays, strict=True)]
        )

    return TensorMapping(name, tuple(part.parameters[0] for part in parts), read, write)


def map_unchanged(name: str, parameter: str) -> TensorMapping:
    """Maps a tensor unchanged: a table, norm or bias, or a matrix that is [in, out] in the file."""
    return TensorMapping(name, (parameter,), lambda array: (array,), lambda array: array)


def map_linear(name: str, parameter: str) -> TensorMapping:
    """Maps the weight of a torch Linear, [out, in] <-> [in, out]."""
    return TensorMapping(name, (parameter,), lambda array: (array.T,), lambda array: array.T)


def map_heads(name: str, parameter: str, width: int) -> TensorMapping:
    """Maps a Linear whose outputs are heads: [heads x width, in] <-> [in, heads, width]."""
    return TensorMapping(
        name,
        (parameter,),
        lambda array: (_split_into_heads(array.T, width),),
        lambda array: _join_heads(array).T,
    )


def map_out_of_heads(name: str, parameter: str, width: int) -> TensorMapping:
    """Maps a Linear whose inputs are heads: [out, heads x width] <-> [heads, width, out]."""
    return TensorMapping(
        name,
        (parameter,),
        lambda array: (array.T.reshape(-1, width, len(array)),),
        lambda array: array.reshape(-1, array.shape[-1]).T,
    )


def map_heads_bias(name: str, parameter: str, width: int) -> TensorMapping:
    """Maps a bias of heads: [heads x width] <-> [heads, width]."""
    return TensorMapping(
        name,
        (parameter,),
        lambda array: (array.reshape(-1, width),),
        lambda array: array.reshape(-1),
    )


def map_norm(name: str, parameter: str, bias: bool = True) -> list[TensorMapping]:
    """Maps the weight of a norm, and its bias if `bias`."""
    return [
        map_unchanged(f'{name}.weight', f'{parameter}.scale'),
        *([map_unchanged(f'{name}.bias', f'{parameter}.bias')] if bias else []),
    ]


def map_linear_with_bias(name: str, parameter: str) -> list[TensorMapping]:
    """Maps a Linear and its bias, which an Encoder calls `<parameter>_bias`."""
    return [
        map_linear(f'{name}.weight', parameter),
        map_unchanged(f'{name}.bias', f'{parameter}_bias'),
    ]


def map_projections(names: Sequence[str], width: int, bias: bool) -> list[TensorMapping]:
    """Maps the Linear layers of query, key and value (`names`, in this order), and their biases."""
    parameters = [f'attention.{name}' for name in ('query', 'key', 'value')]
    tensors = [
        map_heads(f'{name}.weight', parameter, width)
        for name, parameter in zip(names, parameters, strict=True)
    ]
    biases = [
        map_heads_bias(f'{name}.bias', f'{parameter}_bias', width)
        for name, parameter in zip(names, parameters, strict=True)
    ]
    return tensors + (biases if bias else [])


def _split_into_heads(array: np.ndarray, width: int) -> np.ndarray:
    """Reshapes [.., heads x width] to [.., heads, width]."""
    return array.reshape(*array.shape[:-1], -1, width)


def _join_heads(array: np.ndarray) -> np.ndarray:
    """Reshapes [.., heads, width] to [.., heads x width]."""
    return array.reshape(*array.shape[:-2], -1)

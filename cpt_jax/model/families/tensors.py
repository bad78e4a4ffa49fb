"""How one tensor of a checkpoint in Hugging Face's names corresponds to parameters of an
Encoder.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Tensor(NamedTuple):
    """One tensor of a file.

    Attributes:
      name: its name there; `{i}` stands for the number of a layer.
      parameters: those that it holds, by their names here: of the Encoder, or of a Block where the
        name has an `{i}`.
      read: the tensor as in the file -> the parameters.
      write: the parameters -> the tensor as in the file; the inverse, to the bit.
      first: number of the first layer whose tensor there is one; a parameter of those before is not
        used, and is 1.
    """

    name: str
    parameters: tuple[str, ...]
    read: Callable[[np.ndarray], Sequence[np.ndarray]]
    write: Callable[..., np.ndarray]
    first: int = 0


def same(name: str, parameter: str) -> Tensor:
    """As it is: tables, norms, biases, and matrices that a file holds as [in, out]."""
    return Tensor(name, (parameter,), lambda array: (array,), lambda array: array)


def linear(name: str, parameter: str) -> Tensor:
    """torch's Linear holds [out, in]."""
    return Tensor(name, (parameter,), lambda array: (array.T,), lambda array: array.T)


def heads(name: str, parameter: str, width: int) -> Tensor:
    """A Linear whose outputs are heads of `width` units: [heads x width, in] <-> [in, heads,
    width].
    """
    return Tensor(
        name, (parameter,), lambda array: (_split(array.T, width),), lambda array: _joined(array).T
    )


def out_of_heads(name: str, parameter: str, width: int) -> Tensor:
    """A Linear whose inputs are heads: [out, heads x width] <-> [heads, width, out]."""
    return Tensor(
        name,
        (parameter,),
        lambda array: (array.T.reshape(-1, width, len(array)),),
        lambda array: array.reshape(-1, array.shape[-1]).T,
    )


def heads_bias(name: str, parameter: str, width: int) -> Tensor:
    """[heads x width] <-> [heads, width]."""
    return Tensor(
        name,
        (parameter,),
        lambda array: (array.reshape(-1, width),),
        lambda array: array.reshape(-1),
    )


def affine(name: str, parameter: str, bias: bool = True) -> list[Tensor]:
    """A norm's weight, and its bias where it has one."""
    return [
        same(f'{name}.weight', f'{parameter}.scale'),
        *([same(f'{name}.bias', f'{parameter}.bias')] if bias else []),
    ]


def linear_with_bias(name: str, parameter: str) -> list[Tensor]:
    """A Linear and its bias, which here is called `<parameter>_bias`."""
    return [linear(f'{name}.weight', parameter), same(f'{name}.bias', f'{parameter}_bias')]


def projections(names: Sequence[str], width: int, bias: bool) -> list[Tensor]:
    """The Linear layers of query, key and value, in this order, with or without biases."""
    parameters = [f'attention.{name}' for name in ('query', 'key', 'value')]
    tensors = [
        heads(f'{name}.weight', parameter, width)
        for name, parameter in zip(names, parameters, strict=True)
    ]
    biases = [
        heads_bias(f'{name}.bias', f'{parameter}_bias', width)
        for name, parameter in zip(names, parameters, strict=True)
    ]
    return tensors + (biases if bias else [])


def _split(array: np.ndarray, width: int) -> np.ndarray:
    """[.., heads x width] -> [.., heads, width]."""
    return array.reshape(*array.shape[:-1], -1, width)


def _joined(array: np.ndarray) -> np.ndarray:
    """[.., heads, width] -> [.., heads x width]."""
    return array.reshape(*array.shape[:-2], -1)

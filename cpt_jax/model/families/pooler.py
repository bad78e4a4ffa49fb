"""The pooler of BERT: a trained linear layer and tanh over the state of the first token."""

from collections.abc import Sequence

import jax

from cpt_jax.model.config import DenseConfig
from cpt_jax.model.dense import Dense, make_loaded_layer
from cpt_jax.model.formats.safetensors_files import TensorFiles
from cpt_jax.runtime.errors import UserError

_WEIGHT, _BIAS = 'pooler.dense.weight', 'pooler.dense.bias'


def make_pooler_config(width: int) -> DenseConfig:
    """Returns the pooler as a Dense module after the pooling of the first token."""
    return DenseConfig(width, True, 'tanh')


def is_pooler_tensor(name: str) -> bool:
    """Whether a tensor, with or without a prefix, is part of the pooler."""
    return name.endswith((_WEIGHT, _BIAS))


def check_pooler(files: TensorFiles, prefixes: Sequence[str], flag: str) -> None:
    """Raises UserError if the files have no pooler.

    Args:
      files: files of a pretrained model.
      prefixes: prefixes that its tensor names may have.
      flag: flag that asks for the pooler, for the message.
    """
    if _find_prefix(files, prefixes) is None:
        raise UserError(
            f'{flag}: {files.paths[0].parent} has no tensor {_WEIGHT}: choose another pooling, '
            f'such as cls'
        )


def load_pooler(
    files: TensorFiles, prefixes: Sequence[str], width: int, mesh: jax.sharding.Mesh
) -> Dense:
    """Loads the pooler in float32; see `check_pooler` for the arguments."""
    prefix = _find_prefix(files, prefixes)
    names = {'linear.weight': f'{prefix}{_WEIGHT}', 'linear.bias': f'{prefix}{_BIAS}'}
    return make_loaded_layer(files, names, make_pooler_config(width), width, mesh)


def _find_prefix(files: TensorFiles, prefixes: Sequence[str]) -> str | None:
    """Returns the prefix of the pooler's tensors; None if there is no pooler."""
    found = [prefix for prefix in prefixes if {prefix + _WEIGHT, prefix + _BIAS} <= files.names]
    return found[0] if found else None

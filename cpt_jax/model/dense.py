"""Dense modules of sentence-transformers: layers between a pooling and the normalisation
(EmbeddingGemma has two).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cpt_jax.model.families.family import choose, refuse_unless
from cpt_jax.model.formats.safetensors_files import Files
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import BATCH

# By the name of torch's class. Without one it is Tanh, as in sentence-transformers.
_ACTIVATIONS = {
    'torch.nn.modules.linear.Identity': 'identity',
    'torch.nn.modules.activation.Tanh': 'tanh',
    'torch.nn.Identity': 'identity',
    'torch.nn.Tanh': 'tanh',
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense:
    """A matrix [E, D], a bias [E] or None, and 'identity' or 'tanh'."""

    weight_ExD: jax.Array
    bias_E: jax.Array | None
    activation: str = dataclasses.field(metadata={'static': True})

    def __call__(self, e_BxTxD: jax.Array) -> jax.Array:
        """float32[B, T, D] -> float32[B, T, E]."""
        # Where nothing is said, TPUs would multiply in bfloat16.
        e_BxTxE = jnp.einsum(
            'btd,ed->bte',
            e_BxTxD,
            self.weight_ExD,
            precision=jax.lax.Precision.HIGHEST,
            out_sharding=P(BATCH),
        )
        if self.bias_E is not None:
            e_BxTxE = e_BxTxE + self.bias_E
        return jnp.tanh(e_BxTxE) if self.activation == 'tanh' else e_BxTxE


def load_dense(
    configs: Mapping[Path, Mapping[str, Any]], width: int, mesh: jax.sharding.Mesh
) -> tuple[Dense, ...]:
    """Layers to be applied one after the other, in float32, whole on each device.

    Args:
      configs: the content of config.json of each module's folder, in turn.
      width: of what the first is given.

    Raises:
      UserError: a module is damaged, needs something that we do not have, or does not take what is
        before it.
    """
    layers = []
    for folder, config in configs.items():
        layers.append(_loaded(folder, config, width, mesh))
        width = len(layers[-1].weight_ExD)
    return tuple(layers)


def _loaded(folder: Path, config: Mapping[str, Any], width: int, mesh: jax.sharding.Mesh) -> Dense:
    try:
        activation = choose(
            config, 'activation_function', _ACTIVATIONS, 'torch.nn.modules.activation.Tanh'
        )
        refuse_unless(config, 'use_residual', False)
        refuse_unless(config, 'module_input_name', 'sentence_embedding')
        refuse_unless(config, 'module_output_name', 'sentence_embedding', None)
        refuse_unless(config, 'in_features', width)
        wanted: dict[str, tuple[int, ...]] = {}
        wanted['linear.weight'] = (config['out_features'], width)
    except KeyError as error:
        raise UserError(f'{folder}/config.json: has no {error.args[0]!r}') from None
    except UserError as error:
        raise UserError(f'{folder}/{error}') from None
    if config.get('bias', True):
        wanted['linear.bias'] = (config['out_features'],)
    files = Files(folder)
    if files.names != wanted.keys():
        raise UserError(
            f'{folder}: holds {", ".join(sorted(files.names))}, and config.json tells of '
            f'{", ".join(wanted)}'
        )
    arrays = {name: files.read(name).astype('float32') for name in wanted}
    for name, array in arrays.items():
        if array.shape != wanted[name]:
            raise UserError(
                f'{files.place(name)} has shape {list(array.shape)}, and config.json tells of '
                f'{list(wanted[name])}'
            )
    whole = jax.NamedSharding(mesh, P())
    placed = {
        name: jax.make_array_from_callback(array.shape, whole, array.__getitem__)
        for name, array in arrays.items()
    }
    return Dense(placed['linear.weight'], placed.get('linear.bias'), activation)

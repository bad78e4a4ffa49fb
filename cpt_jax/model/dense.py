"""Dense modules of sentence-transformers: linear layers between pooling and normalization.

EmbeddingGemma has two of them.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cpt_jax.model.families.family import refuse_unless, translate_config_value
from cpt_jax.model.formats.safetensors_files import TensorFiles
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import BATCH

# Activations by the name of torch's class. As in sentence-transformers, the default is Tanh.
_ACTIVATIONS = {
    'torch.nn.modules.linear.Identity': 'identity',
    'torch.nn.modules.activation.Tanh': 'tanh',
    'torch.nn.Identity': 'identity',
    'torch.nn.Tanh': 'tanh',
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense:
    """A linear layer followed by an activation.

    Attributes:
      weight_ExD: float32 matrix.
      bias_E: float32 bias, or None.
      activation: 'identity' or 'tanh'.
    """

    weight_ExD: jax.Array
    bias_E: jax.Array | None
    activation: str = dataclasses.field(metadata={'static': True})

    def __call__(self, e_BxTxD: jax.Array) -> jax.Array:
        """Maps float32[B, T, D] to float32[B, T, E]."""
        # HIGHEST: by default TPUs multiply float32 in bfloat16.
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
    """Loads Dense modules in float32, replicated on each device.

    Args:
      configs: folder of each module -> content of its config.json, in the order in which the
        modules are applied.
      width: input dimension of the first module.
      mesh: devices to load onto.

    Returns:
      The layers, in the same order.

    Raises:
      UserError: a module is damaged, needs an unsupported feature, or its input dimension is not
        the output dimension of the module before it.
    """
    layers = []
    for folder, config in configs.items():
        layers.append(_load_layer(folder, config, width, mesh))
        width = len(layers[-1].weight_ExD)
    return tuple(layers)


def _load_layer(
    folder: Path, config: Mapping[str, Any], width: int, mesh: jax.sharding.Mesh
) -> Dense:
    try:
        activation = translate_config_value(
            config, 'activation_function', _ACTIVATIONS, 'torch.nn.modules.activation.Tanh'
        )
        refuse_unless(config, 'use_residual', False)
        refuse_unless(config, 'module_input_name', 'sentence_embedding')
        refuse_unless(config, 'module_output_name', 'sentence_embedding', None)
        refuse_unless(config, 'in_features', width)
        wanted: dict[str, tuple[int, ...]] = {}
        wanted['linear.weight'] = (config['out_features'], width)
    except KeyError as error:
        raise UserError(f'{folder}/config.json: has no key {error.args[0]!r}') from None
    except UserError as error:
        raise UserError(f'{folder}/{error}') from None
    if config.get('bias', True):
        wanted['linear.bias'] = (config['out_features'],)
    files = TensorFiles(folder)
    if files.names != wanted.keys():
        raise UserError(
            f'{folder}: has the tensors {", ".join(sorted(files.names))}, but config.json '
            f'describes {", ".join(wanted)}'
        )
    arrays = {name: files.read(name).astype('float32') for name in wanted}
    for name, array in arrays.items():
        if array.shape != wanted[name]:
            raise UserError(
                f'{files.describe_location(name)} has shape {list(array.shape)}, but config.json '
                f'describes {list(wanted[name])}'
            )
    replicated = jax.NamedSharding(mesh, P())
    placed = {
        name: jax.make_array_from_callback(array.shape, replicated, array.__getitem__)
        for name, array in arrays.items()
    }
    return Dense(placed['linear.weight'], placed.get('linear.bias'), activation)

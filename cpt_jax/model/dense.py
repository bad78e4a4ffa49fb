"""Dense modules of sentence-transformers: linear layers between pooling and normalization.

EmbeddingGemma has two of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from cpt_jax.model.config import DenseConfig
from cpt_jax.model.families.family import refuse_unless, translate_config_value
from cpt_jax.model.formats.safetensors_files import TensorFiles
from cpt_jax.model.formats.weight_files import open_weight_files
from cpt_jax.model.initializers import constant, normal
from cpt_jax.model.parameter import broadcast_vector, gather_weight, make_parameter
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import BATCH
from cpt_jax.storage.json_checks import FLAG, TEXT, allow_integers, check_values

# torch's classes of our activations, by the names that all versions of sentence-transformers read.
TORCH_ACTIVATIONS = {
    'identity': 'torch.nn.modules.linear.Identity',
    'tanh': 'torch.nn.modules.activation.Tanh',
}
_ACTIVATIONS = {name: ours for ours, name in TORCH_ACTIVATIONS.items()} | {
    'torch.nn.Identity': 'identity',
    'torch.nn.Tanh': 'tanh',
}
_KEYS = {
    'in_features': allow_integers(1, 10_000_000),
    'out_features': allow_integers(1, 10_000_000),
    'bias': FLAG,
    'activation_function': TEXT,
}


class Dense(nnx.Module):
    """A linear layer followed by an activation, replicated on each device."""

    def __init__(self, config: DenseConfig, width: int, rngs: nnx.Rngs):
        """Makes random parameters.

        Args:
          config: output dimension, bias and activation.
          width: input dimension.
          rngs: random keys of the weight.
        """
        self.activation = config.activation
        self.dense_weight = make_parameter(
            rngs, normal(width**-0.5), (config.width, None), (width, None)
        )
        if config.has_bias:
            self.dense_bias = make_parameter(rngs, constant(0.0), (config.width, None))

    @property
    def config(self) -> DenseConfig:
        """Output dimension, bias and activation."""
        return DenseConfig(
            self.dense_weight[...].shape[0], hasattr(self, 'dense_bias'), self.activation
        )

    def __call__(self, e_BxTxD: jax.Array) -> jax.Array:
        """Maps float32[B, T, D] to float32[B, T, E]."""
        # HIGHEST: by default TPUs multiply float32 in bfloat16.
        e_BxTxE = jnp.einsum(
            'btd,ed->bte',
            e_BxTxD,
            gather_weight(self.dense_weight, jnp.dtype('float32'), None, None),
            precision=jax.lax.Precision.HIGHEST,
            out_sharding=P(BATCH),
        )
        if hasattr(self, 'dense_bias'):
            e_BxTxE = e_BxTxE + broadcast_vector(self.dense_bias, e_BxTxE)
        return jnp.tanh(e_BxTxE) if self.activation == 'tanh' else e_BxTxE


def make_dense(configs: Sequence[DenseConfig], width: int, rngs: nnx.Rngs) -> tuple[Dense, ...]:
    """Returns layers with random parameters, the first of which has the input dimension `width`."""
    layers = []
    for config in configs:
        layers.append(Dense(config, width, rngs))
        width = config.width
    return tuple(layers)


def read_dense_configs(
    configs: Mapping[Path, Mapping[str, Any]], width: int
) -> tuple[DenseConfig, ...]:
    """Returns what the config.json of each Dense module describes; see `load_dense`."""
    found = []
    for folder, config in configs.items():
        found.append(_read_config(folder, config, width))
        width = found[-1].width
    return tuple(found)


def load_dense(
    configs: Mapping[Path, Mapping[str, Any]], width: int, mesh: jax.sharding.Mesh
) -> tuple[Dense, ...]:
    """Loads Dense modules in float32.

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
    for shape, (folder, _) in zip(read_dense_configs(configs, width), configs.items(), strict=True):
        layers.append(_load_layer(folder, shape, width, mesh))
        width = shape.width
    return tuple(layers)


def _read_config(folder: Path, config: Mapping[str, Any], width: int) -> DenseConfig:
    check_values(folder / 'config.json', config, _KEYS)
    try:
        activation = translate_config_value(
            config, 'activation_function', _ACTIVATIONS, TORCH_ACTIVATIONS['tanh']
        )
        refuse_unless(config, 'use_residual', False)
        refuse_unless(config, 'module_input_name', 'sentence_embedding')
        refuse_unless(config, 'module_output_name', 'sentence_embedding', None)
        refuse_unless(config, 'in_features', width)
        return DenseConfig(config['out_features'], bool(config.get('bias', True)), activation)
    except KeyError as error:
        raise UserError(f'{folder}/config.json: has no key {error.args[0]!r}') from None
    except UserError as error:
        raise UserError(f'{folder}/{error}') from None


def _load_layer(folder: Path, shape: DenseConfig, width: int, mesh: jax.sharding.Mesh) -> Dense:
    wanted = ['linear.weight', 'linear.bias'] if shape.has_bias else ['linear.weight']
    files = open_weight_files(folder)
    if files.names != set(wanted):
        raise UserError(
            f'{folder}: has the tensors {", ".join(sorted(files.names))}, but config.json '
            f'describes {", ".join(wanted)}'
        )
    return make_loaded_layer(files, {name: name for name in wanted}, shape, width, mesh)


def make_loaded_layer(
    files: TensorFiles,
    names: Mapping[str, str],
    shape: DenseConfig,
    width: int,
    mesh: jax.sharding.Mesh,
) -> Dense:
    """Returns a layer with the weights of files, in float32.

    Args:
      files: files with the weights.
      names: name in the files of linear.weight and, if there is a bias, linear.bias.
      shape: output dimension, bias and activation.
      width: input dimension.
      mesh: devices to load onto.

    Raises:
      UserError: a tensor has another shape.
    """
    wanted = {'linear.weight': (shape.width, width), 'linear.bias': (shape.width,)}
    arrays = {part: files.read(name).astype('float32') for part, name in names.items()}
    for part, array in arrays.items():
        if array.shape != wanted[part]:
            raise UserError(
                f'{files.describe_location(names[part])} has shape {list(array.shape)}, but '
                f'config.json describes {list(wanted[part])}'
            )
    replicated = jax.NamedSharding(mesh, P())
    placed = {
        part: jax.make_array_from_callback(array.shape, replicated, array.__getitem__)
        for part, array in arrays.items()
    }
    with jax.set_mesh(mesh):
        layer = jax.eval_shape(lambda: Dense(shape, width, nnx.Rngs(0)))
    layer.dense_weight = layer.dense_weight.replace(placed['linear.weight'])
    if shape.has_bias:
        layer.dense_bias = layer.dense_bias.replace(placed['linear.bias'])
    return layer

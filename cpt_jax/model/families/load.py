"""Loading pretrained weights onto devices, tensor by tensor."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.adapters.nf4 import QuantizedMatrix
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.family import Family, is_head_or_buffer
from cpt_jax.model.families.stored_names import choose_prefix
from cpt_jax.model.families.tensors import TensorMapping
from cpt_jax.model.formats.safetensors_files import TensorFiles
from cpt_jax.model.parameter import Frozen
from cpt_jax.runtime.allocator import map_large_blocks
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import assign_mesh_shardings, get_mesh


def load_encoder(
    family: Family,
    files: TensorFiles,
    config: EncoderConfig,
    mesh: jax.sharding.Mesh,
    dtype: jnp.dtype | None = None,
    fresh: Iterable[int] = (),
    lora: LoRA | None = None,
) -> Encoder:
    """Loads an Encoder from files.

    The host holds one tensor at a time. Each process reads all tensors, and keeps only the shards
    of its devices.

    Args:
      family: family of the files.
      files: files with the weights.
      config: architecture; the vocabulary may have more or fewer rows than the files.
      mesh: devices to load onto.
      dtype: dtype of the parameters; None: as in the file (for embedding only).
      fresh: ids that are new, whose rows of the token table are made by `resize_token_table`.
      lora: LoRA section, optional. The weights are then frozen as in `LoRA.freeze`, layer by layer,
        and `dtype` is ignored.

    Raises:
      UserError: a tensor is missing, unknown, or has another shape.
    """
    lora = lora if lora and lora.rank else None
    with jax.set_mesh(mesh):
        abstract = assign_mesh_shardings(jax.eval_shape(lambda: Encoder(config, nnx.Rngs(0))), mesh)
        stored = abstract
        if lora:
            frozen = jax.eval_shape(lambda: lora.freeze(Encoder(config, nnx.Rngs(0))))
            stored = assign_mesh_shardings(frozen, mesh)
    # `wanted` has the parameters as they are stored in files, `kept` as they are stored on devices
    # (as codes, with NF4).
    wanted, _ = _flatten_by_name(abstract)
    kept, tree = _flatten_by_name(stored)
    found: dict[str, jax.Array] = {}
    names = TensorNames(family, files, config)

    # Functions, so that nothing of a tensor is in memory any more when the next one is read.
    def load_outer(tensor: TensorMapping) -> None:
        location = files.describe_location(names.get_name(tensor))
        for parameter, array in _read_parameters(tensor, files, names.get_name(tensor)):
            if parameter == 'token_embedding':
                array = resize_token_table(array, config.table_rows, fresh)
            weight = _put_on_devices(array, wanted[parameter], parameter, location, dtype)
            found.update(_freeze_parts(lora, parameter, weight))

    def load_layer(tensor: TensorMapping, number: int) -> None:
        stack = 'blocks' if number < config.layers - 1 else 'last'
        if number < tensor.first:  # the file has no such tensor, and the model does not use it
            location = ''
            parts = [
                (name, np.ones(wanted[f'last.{name}'].shape, np.float32))
                for name in tensor.parameters
            ]
        else:
            location = files.describe_location(names.get_name(tensor, number))
            parts = _read_parameters(tensor, files, names.get_name(tensor, number))
        while parts:
            parameter, array = parts.pop(0)
            last_name = f'last.{parameter}'
            weight = _put_on_devices(array, wanted[last_name], parameter, location, dtype)
            del array  # before the stack of all layers is written
            for path, part in _freeze_parts(lora, last_name, weight).items():
                name = path.replace('last', stack, 1)
                if stack == 'blocks':
                    part = _set_stack_layer(found.get(name), kept[name], part, number)
                found[name] = part

    with map_large_blocks():
        for tensor in family.outer(config):
            load_outer(tensor)
        for tensor in family.layer(config):
            for number in range(config.layers):
                load_layer(tensor, number)
    if found.keys() != kept.keys():
        raise AssertionError(
            f'the tensors of {list(family.model_types)} leave out {kept.keys() ^ found.keys()}'
        )
    return jax.tree.unflatten(tree, [found[path] for path in kept])


class TensorNames:
    """Names of a family's tensors in some files, which all have the same prefix.

    Attributes:
      prefix: beginning of all names in the files.
      passed_over: names of tensors that no vector depends on, such as output heads.
    """

    def __init__(self, family: Family, files: TensorFiles, config: EncoderConfig):
        """Finds the prefix and checks the names.

        Raises:
          UserError: a tensor is missing or unknown.
        """
        inner = (
            tensor.name.format(i=i)
            for tensor in family.layer(config)
            for i in range(tensor.first, config.layers)
        )
        self._needed = [*(tensor.name for tensor in family.outer(config)), *inner]
        known = {name.format(i=i) for name in family.ignored_names for i in range(config.layers)}
        self.prefix = choose_prefix(family, files.names, self._needed)
        missing = [name for name in self._needed if self.prefix + name not in files.names]
        needed = {self.prefix + name for name in self._needed}
        others = {name: name.removeprefix(self.prefix) for name in files.names - needed}
        unknown = [
            name
            for name, bare in others.items()
            if bare not in known and not is_head_or_buffer(bare)
        ]
        self.passed_over = sorted(others.keys() - set(unknown))
        if missing or unknown:
            problems = [
                f'{problem} {len(some)}: {", ".join(some[:3])}'
                for problem, some in (('missing', missing), ('unknown', unknown))
                if some
            ]
            raise UserError(
                f'the tensors do not match config.json '
                f'({next(iter(family.model_types))}): {"; ".join(problems)}'
            )

    def get_name(self, tensor: TensorMapping, layer: int = 0) -> str:
        """Returns the name of a tensor, of the layer with this index if it belongs to a layer."""
        return self.prefix + tensor.name.format(i=layer)


def _flatten_by_name(parameters: Any) -> tuple[dict[str, Any], jax.tree_util.PyTreeDef]:
    """Returns arrays (or abstract arrays) by parameter name, such as 'blocks.attention.query', and
    the tree structure.
    """
    with_paths, tree = jax.tree_util.tree_flatten_with_path(parameters)
    return {
        jax.tree_util.keystr(path, simple=True, separator='.').removesuffix('.value'): leaf
        for path, leaf in with_paths
    }, tree


def _read_parameters(
    tensor: TensorMapping, files: TensorFiles, name: str
) -> list[tuple[str, np.ndarray]]:
    """Returns (name, array) of each parameter in one tensor of the files."""
    array = files.read(name)
    if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.itemsize < 2:
        raise UserError(
            f'{files.describe_location(name)} has dtype {array.dtype}: quantized weights are not '
            f'supported: save the model in float32, bfloat16 or float16'
        )
    try:
        return list(zip(tensor.parameters, tensor.read(array), strict=True))
    except ValueError as error:  # raised by reshape
        raise UserError(
            f'{files.describe_location(name)} has shape {list(array.shape)}, which does not match '
            f'config.json ({error})'
        ) from None


def resize_token_table(table_VxD: np.ndarray, rows: int, fresh: Iterable[int]) -> np.ndarray:
    """Returns a token table with `rows` rows: truncated, or extended.

    Fresh rows are initialized to the mean of the table (Hewitt 2021, "Initializing New Word
    Embeddings"), plus noise of a tenth of its standard deviation, so that they differ from each
    other. All other new rows are zero.

    Args:
      table_VxD: table of the file.
      rows: number of rows of the result.
      fresh: ids of new tokens.
    """
    fresh = list(fresh)
    if rows == len(table_VxD) and not fresh:
        return table_VxD  # the largest tensor, so a copy would be the peak of the memory in use
    resized_VxD = np.zeros((rows, table_VxD.shape[1]), table_VxD.dtype)
    resized_VxD[: len(table_VxD)] = table_VxD[:rows]
    if fresh:
        mean_D = table_VxD.mean(0, dtype=np.float32)
        std_D = table_VxD.astype(np.float32).std(0)
        noise_FxD = np.random.default_rng(0).normal(size=(len(fresh), len(mean_D)))
        resized_VxD[fresh] = mean_D + 0.1 * std_D * noise_FxD
    return resized_VxD


def _put_on_devices(
    array: np.ndarray,
    wanted: jax.ShapeDtypeStruct,
    name: str,
    location: str,
    dtype: jnp.dtype | None,
) -> jax.Array:
    """Puts each device's shard of an array onto the device, cast to `dtype` (None: unchanged).

    Raises:
      UserError: the shape is not the wanted one.
    """
    if array.shape != wanted.shape:
        raise UserError(
            f'{location} gives {name} the shape {list(array.shape)}, but config.json describes '
            f'{list(wanted.shape)}'
        )
    return jax.make_array_from_callback(
        array.shape,
        wanted.sharding,
        lambda index: array[index].astype(dtype or array.dtype, copy=False),
    )


def _freeze_parts(lora: LoRA | None, path: str, weight: jax.Array) -> dict[str, jax.Array]:
    """Returns the arrays in which a weight is stored, by name.

    It is the weight itself, or several arrays if LoRA quantizes it.
    """
    if lora is None:
        return {path: weight}
    with jax.set_mesh(get_mesh(weight)):
        parts: dict[str, jax.Array] = _flatten_by_name(_freeze_weight(lora, path, weight))[0]
    return {f'{path}.{part}' if part != 'value' else path: array for part, array in parts.items()}


@partial(jax.jit, static_argnums=(0, 1))
def _freeze_weight(lora: LoRA, path: str, weight: jax.Array) -> Frozen | QuantizedMatrix:
    return lora.freeze_weight(path, weight)


def _set_stack_layer(
    stack: jax.Array | None, wanted: jax.ShapeDtypeStruct, layer: jax.Array, number: int
) -> jax.Array:
    """Writes a layer into the stack of all layers, in place; for None, into a new stack.

    The function waits for the result, so that at most one layer exists outside of the stack, on the
    devices and on the host.
    """
    with jax.set_mesh(wanted.sharding.mesh):
        if stack is None:
            stack = _make_zeros(wanted.shape, layer.dtype, wanted.sharding)
        return _set_layer(stack, layer, number).block_until_ready()


@partial(jax.jit, static_argnums=(0, 1, 2))
def _make_zeros(
    shape: tuple[int, ...], dtype: jnp.dtype, sharding: jax.sharding.NamedSharding
) -> jax.Array:
    return jnp.zeros(shape, dtype, out_sharding=sharding.spec)


@partial(jax.jit, donate_argnums=0)
def _set_layer(stack: jax.Array, layer: jax.Array, number: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, number, 0)

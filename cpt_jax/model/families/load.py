"""Weights from files, tensor by tensor, onto the devices."""

from collections.abc import Iterable, Iterator
from functools import partial
from operator import attrgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cpt_jax.model.adapters.lora import LoRA, merged
from cpt_jax.model.adapters.nf4 import Codes
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.family import Family
from cpt_jax.model.families.tensors import Tensor
from cpt_jax.model.formats.safetensors_files import Files
from cpt_jax.model.parameter import Frozen
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import mesh_of, on_mesh


def load_encoder(
    family: Family,
    files: Files,
    config: EncoderConfig,
    mesh: jax.sharding.Mesh,
    dtype: jnp.dtype | None = None,
    fresh: Iterable[int] = (),
    lora: LoRA | None = None,
) -> Encoder:
    """An Encoder with the weights of some files.

    One tensor of the files is on the host at a time; each process reads all, and keeps what its
    devices hold.

    Args:
      config: architecture of the family, with any number of rows in its vocabulary.
      dtype: of the parameters; None: each as in its file, which is for embedding.
      fresh: ids whose rows of the table are new; see `grown`.
      lora: freeze the weights as its `base` says, layer after layer; `dtype` is then not used.

    Raises:
      UserError: a tensor is missing, is unknown, or has another shape.
    """
    lora = lora if lora and lora.rank else None
    with jax.set_mesh(mesh):
        abstract = on_mesh(jax.eval_shape(lambda: Encoder(config, nnx.Rngs(0))), mesh)
        held = (
            on_mesh(jax.eval_shape(lambda: lora.frozen(Encoder(config, nnx.Rngs(0)))), mesh)
            if lora
            else abstract
        )
    wanted, (kept, tree) = _by_name(abstract)[0], _by_name(held)
    found: dict[str, jax.Array] = {}
    names = Names(family, files, config)
    for tensor in family.outer(config):
        for parameter, array in _parts(tensor, files, names.of(tensor)):
            array = (
                grown(array, config.table_rows, fresh) if parameter == 'token_embedding' else array
            )
            one = _placed(array, wanted[parameter], parameter, files.place(names.of(tensor)), dtype)
            found |= _held(lora, parameter, one)
    for tensor in family.layer(config):
        for number in range(config.layers):
            stack = 'blocks' if number < config.layers - 1 else 'last'
            if number < tensor.first:  # no file has it, and nothing reads it
                where = ''
                parts = [
                    (name, np.ones(wanted[f'last.{name}'].shape, np.float32))
                    for name in tensor.parameters
                ]
            else:
                where = files.place(names.of(tensor, number))
                parts = _parts(tensor, files, names.of(tensor, number))
            for parameter, array in parts:
                one = _placed(array, wanted[f'last.{parameter}'], parameter, where, dtype)
                for path, part in _held(lora, f'last.{parameter}', one).items():
                    name = path.replace('last', stack, 1)
                    found[name] = (
                        part
                        if stack == 'last'
                        else _with_layer(found.get(name), kept[name], part, number)
                    )
    if found.keys() != kept.keys():
        raise AssertionError(
            f'the tensors of {list(family.model_types)} leave out {kept.keys() ^ found.keys()}'
        )
    return jax.tree.unflatten(tree, [found[path] for path in kept])


def written(family: Family, encoder: Encoder, rows: int) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of all tensors as the family's files hold them, without a prefix; of the
    vocabulary's table, the first rows.

    Adapters are merged into the weights that they stand beside.
    """

    def of(path: str) -> np.ndarray:
        module, _, name = path.rpartition('.')
        return merged(attrgetter(module)(encoder) if module else encoder, name)

    config = encoder.config
    for tensor in family.outer(config):
        arrays = [
            of(parameter)[:rows] if parameter == 'token_embedding' else of(parameter)
            for parameter in tensor.parameters
        ]
        yield tensor.name, tensor.write(*arrays)
    for tensor in family.layer(config):
        stacked = (
            [of(f'blocks.{parameter}') for parameter in tensor.parameters]
            if config.layers > 1
            else []
        )
        for i in range(tensor.first, config.layers - 1):
            yield tensor.name.format(i=i), tensor.write(*(array[i] for array in stacked))
        if tensor.first < config.layers:
            yield (
                tensor.name.format(i=config.layers - 1),
                tensor.write(*(of(f'last.{parameter}') for parameter in tensor.parameters)),
            )


class Names:
    """The names of a family's tensors as these files have them: all with one prefix."""

    def __init__(self, family: Family, files: Files, config: EncoderConfig):
        inner = (
            tensor.name.format(i=i)
            for tensor in family.layer(config)
            for i in range(tensor.first, config.layers)
        )
        self._needed = [*(tensor.name for tensor in family.outer(config)), *inner]
        known = {name.format(i=i) for name in family.passed_over for i in range(config.layers)}
        self._prefix = max(
            family.prefixes,
            key=lambda prefix: sum(prefix + name in files.names for name in self._needed),
        )
        missing = [name for name in self._needed if self._prefix + name not in files.names]
        bare = {name.removeprefix(self._prefix): name for name in files.names}
        unknown = [
            name
            for bare_name, name in bare.items()
            if bare_name not in known and bare_name not in set(self._needed)
        ]
        if missing or unknown:
            told = [
                f'{what} {len(some)}: {", ".join(some[:3])}'
                for what, some in (('missing', missing), ('unknown', unknown))
                if some
            ]
            raise UserError(
                f'the tensors are not those that config.json tells of '
                f'({next(iter(family.model_types))}): {"; ".join(told)}'
            )

    def of(self, tensor: Tensor, layer: int = 0) -> str:
        return self._prefix + tensor.name.format(i=layer)


def _by_name(parameters: Any) -> tuple[dict[str, Any], jax.tree_util.PyTreeDef]:
    """Arrays, or their types, by the parameters' names ('blocks.attention.query'), and the
    structure.
    """
    with_paths, tree = jax.tree_util.tree_flatten_with_path(parameters)
    return {
        jax.tree_util.keystr(path, simple=True, separator='.').removesuffix('.value'): leaf
        for path, leaf in with_paths
    }, tree


def _parts(tensor: Tensor, files: Files, name: str) -> list[tuple[str, np.ndarray]]:
    """What one tensor of the files holds, by parameter."""
    array = files.read(name)
    try:
        return list(zip(tensor.parameters, tensor.read(array), strict=True))
    except ValueError as error:  # of a reshape
        raise UserError(
            f'{files.place(name)} has shape {list(array.shape)}, which config.json does not tell '
            f'of ({error})'
        ) from None


def grown(table_VxD: np.ndarray, rows: int, fresh: Iterable[int]) -> np.ndarray:
    """A table with so many rows: without those at its end that no id reaches, or with more.

    Fresh ones start as the mean of its rows, which no other token stands out from (Hewitt 2021,
    "Initializing New Word Embeddings"), with a tenth of their standard deviation as noise, so that
    they are told apart. Rows beyond them are zero.
    """
    found_VxD = np.zeros((rows, table_VxD.shape[1]), table_VxD.dtype)
    found_VxD[: len(table_VxD)] = table_VxD[:rows]
    if fresh := list(fresh):
        mean_D, std_D = table_VxD.mean(0, dtype=np.float32), table_VxD.astype(np.float32).std(0)
        found_VxD[fresh] = mean_D + 0.1 * std_D * np.random.default_rng(0).normal(
            size=(len(fresh), len(mean_D))
        )
    return found_VxD


def _placed(
    array: np.ndarray, wanted: jax.ShapeDtypeStruct, name: str, where: str, dtype: jnp.dtype | None
) -> jax.Array:
    """On the devices, each its own part."""
    if array.shape != wanted.shape:
        raise UserError(
            f'{where} makes {name} {list(array.shape)}, and config.json tells of '
            f'{list(wanted.shape)}'
        )
    return jax.make_array_from_callback(
        array.shape,
        wanted.sharding,
        lambda index: array[index].astype(dtype or array.dtype, copy=False),
    )


def _held(lora: LoRA | None, path: str, weight: jax.Array) -> dict[str, jax.Array]:
    """The arrays that a weight is kept as, by name: itself, but for what LoRA freezes as codes."""
    if lora is None:
        return {path: weight}
    with jax.set_mesh(mesh_of(weight)):
        parts: dict[str, jax.Array] = _by_name(_frozen(lora, path, weight))[0]
    return {f'{path}.{part}' if part != 'value' else path: array for part, array in parts.items()}


@partial(jax.jit, static_argnums=(0, 1))
def _frozen(lora: LoRA, path: str, weight: jax.Array) -> Frozen | Codes:
    return lora.frozen_weight(path, weight)


def _with_layer(
    stack: jax.Array | None, wanted: jax.ShapeDtypeStruct, layer: jax.Array, number: int
) -> jax.Array:
    """The stack of all layers, in its place, with one more: beside it there is one layer on the
    devices and on the host.
    """
    with jax.set_mesh(wanted.sharding.mesh):
        stack = _zeros(wanted.shape, layer.dtype, wanted.sharding) if stack is None else stack
        return _set_layer(stack, layer, number).block_until_ready()


@partial(jax.jit, static_argnums=(0, 1, 2))
def _zeros(
    shape: tuple[int, ...], dtype: jnp.dtype, sharding: jax.sharding.NamedSharding
) -> jax.Array:
    return jnp.zeros(shape, dtype, out_sharding=sharding.spec)


@partial(jax.jit, donate_argnums=0)
def _set_layer(stack: jax.Array, layer: jax.Array, number: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, number, 0)

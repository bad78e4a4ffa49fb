"""Weights from files, tensor by tensor, onto the devices."""

from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cpt_jax.errors import UserError
from cpt_jax.mesh import on_mesh
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.family import Family
from cpt_jax.model.families.files import Files
from cpt_jax.model.families.tensors import Tensor
from cpt_jax.model.shape import Shape


def load_encoder(
    family: Family, files: Files, shape: Shape, mesh: jax.sharding.Mesh, dtype: jnp.dtype | None = None, fresh: Iterable[int] = ()
) -> Encoder:
    """An Encoder with the weights of some files.

    One tensor of all layers is on the host at a time; each process reads all, and keeps what its devices hold.

    Args:
      shape: of the family, with any number of rows in its vocabulary.
      dtype: of the parameters; None: each as in its file, which is for embedding.
      fresh: ids whose rows of the table are new; see `grown`.

    Raises:
      UserError: a tensor is missing, is unknown, or has another shape.
    """
    with jax.set_mesh(mesh):
        abstract = on_mesh(jax.eval_shape(lambda: Encoder(shape, nnx.Rngs(0))), mesh)
    wanted, tree = _by_name(abstract)
    found: dict[str, jax.Array] = {}
    names = _Names(family, files, shape)
    for tensor in family.outer(shape):
        for parameter, array in _parts(tensor, files, names.of(tensor)):
            if parameter == 'token_embedding':
                array = grown(array, shape.table_rows, fresh).astype(array.dtype)
            found[parameter] = _placed(array, wanted, parameter, files.place(names.of(tensor)), dtype)
    for tensor in family.layer(shape):
        if tensor.first >= shape.layers:  # which no layer uses
            ones = {parameter: np.ones(wanted[f'last.{parameter}'].shape, np.float32) for parameter in tensor.parameters}
            found |= {f'last.{parameter}': _placed(one, wanted, f'last.{parameter}', '', dtype) for parameter, one in ones.items()}
            continue
        for parameter, arrays in _parts_of_layers(tensor, files, names, shape.layers).items():
            where = files.place(names.of(tensor, tensor.first))
            found[f'last.{parameter}'] = _placed(arrays[-1], wanted, f'last.{parameter}', where, dtype)
            if shape.layers > 1:
                found[f'blocks.{parameter}'] = _placed(arrays[:-1], wanted, f'blocks.{parameter}', where, dtype)
    if found.keys() != wanted.keys():
        raise AssertionError(f'the tensors of {list(family.model_types)} leave out {wanted.keys() ^ found.keys()}')
    return jax.tree.unflatten(tree, [found[path] for path in wanted])


def written(family: Family, encoder: Encoder, rows: int) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of all tensors as the family's files hold them, without a prefix; of the vocabulary's table, the first rows."""

    def of(path: str) -> np.ndarray:
        return np.asarray(jax.device_get(attrgetter(path)(encoder)[...]))

    shape = encoder.shape
    for tensor in family.outer(shape):
        arrays = [of(parameter)[:rows] if parameter == 'token_embedding' else of(parameter) for parameter in tensor.parameters]
        yield tensor.name, tensor.write(*arrays)
    for tensor in family.layer(shape):
        stacked = [of(f'blocks.{parameter}') for parameter in tensor.parameters] if shape.layers > 1 else []
        for i in range(tensor.first, shape.layers - 1):
            yield tensor.name.format(i=i), tensor.write(*(array[i] for array in stacked))
        if tensor.first < shape.layers:
            yield tensor.name.format(i=shape.layers - 1), tensor.write(*(of(f'last.{parameter}') for parameter in tensor.parameters))


class _Names:
    """The names of a family's tensors as these files have them: all with one prefix."""

    def __init__(self, family: Family, files: Files, shape: Shape):
        inner = (tensor.name.format(i=i) for tensor in family.layer(shape) for i in range(tensor.first, shape.layers))
        self._needed = [*(tensor.name for tensor in family.outer(shape)), *inner]
        known = {name.format(i=i) for name in family.passed_over for i in range(shape.layers)}
        self._prefix = max(family.prefixes, key=lambda prefix: sum(prefix + name in files.names for name in self._needed))
        missing = [name for name in self._needed if self._prefix + name not in files.names]
        bare = {name.removeprefix(self._prefix): name for name in files.names}
        unknown = [name for bare_name, name in bare.items() if bare_name not in known and bare_name not in set(self._needed)]
        if missing or unknown:
            told = [f'{what} {len(some)}: {", ".join(some[:3])}' for what, some in (('missing', missing), ('unknown', unknown)) if some]
            raise UserError(f'the tensors are not those that config.json tells of ({next(iter(family.model_types))}): {"; ".join(told)}')

    def of(self, tensor: Tensor, layer: int = 0) -> str:
        return self._prefix + tensor.name.format(i=layer)


def _by_name(abstract: Encoder) -> tuple[dict[str, jax.ShapeDtypeStruct], jax.tree_util.PyTreeDef]:
    """The type of each parameter by its name ('blocks.attention.query'), and the structure."""
    with_paths, tree = jax.tree_util.tree_flatten_with_path(abstract)
    return {jax.tree_util.keystr(path, simple=True, separator='.').removesuffix('.value'): leaf for path, leaf in with_paths}, tree


def _parts(tensor: Tensor, files: Files, name: str) -> list[tuple[str, np.ndarray]]:
    """What one tensor of the files holds, by parameter."""
    array = files.read(name)
    try:
        return list(zip(tensor.parameters, tensor.read(array), strict=True))
    except ValueError as error:  # of a reshape
        raise UserError(f'{files.place(name)} has shape {list(array.shape)}, which config.json does not tell of ({error})') from None


def _parts_of_layers(tensor: Tensor, files: Files, names: _Names, layers: int) -> dict[str, np.ndarray]:
    """[layers, ...] of each parameter that a tensor of every layer holds."""
    stacked: dict[str, np.ndarray] = {}
    for number in range(tensor.first, layers):
        name = names.of(tensor, number)
        for parameter, array in _parts(tensor, files, name):
            if parameter not in stacked:
                stacked[parameter] = np.empty((layers, *array.shape), array.dtype)
                stacked[parameter][: tensor.first] = 1
            first = stacked[parameter].shape[1:]
            if array.shape != first:
                raise UserError(f'{files.place(name)} makes {parameter} {list(array.shape)}, and layer {tensor.first} has {list(first)}')
            stacked[parameter][number] = array
    return stacked


def grown(table_VxD: np.ndarray, rows: int, fresh: Iterable[int]) -> np.ndarray:
    """A table with so many rows: without those at its end that no id reaches, or with more.

    Fresh ones start as the mean of its rows, which no other token stands out from (Hewitt 2021, "Initializing New Word Embeddings"), with a
    tenth of their standard deviation as noise, so that they are told apart. Rows beyond them are zero.
    """
    table_VxD = table_VxD[:rows].astype(np.float32)
    mean_D, std_D = table_VxD.mean(0), table_VxD.std(0)
    table_VxD = np.pad(table_VxD, ((0, max(rows - len(table_VxD), 0)), (0, 0)))
    random = np.random.default_rng(0)
    for row in fresh:
        table_VxD[row] = mean_D + 0.1 * std_D * random.normal(size=len(mean_D))
    return table_VxD


def _placed(array: np.ndarray, wanted: Mapping[str, jax.ShapeDtypeStruct], name: str, where: str, dtype: jnp.dtype | None) -> jax.Array:
    """On the devices, each its own part."""
    if array.shape != wanted[name].shape:
        raise UserError(f'{where} makes {name} {list(array.shape)}, and config.json tells of {list(wanted[name].shape)}')
    return jax.make_array_from_callback(array.shape, wanted[name].sharding, lambda index: array[index].astype(dtype or array.dtype))

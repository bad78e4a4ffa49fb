"""What LoRA leaves as it is: where the base of a run lies, and that it is the one that the adapters were trained on."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from cpt_jax import checkpoint
from cpt_jax.errors import UserError
from cpt_jax.mesh import on_mesh
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.load import load_encoder
from cpt_jax.model.lora import LoRA
from cpt_jax.model.parameter import divided, joined
from cpt_jax.model.shape import Shape
from cpt_jax.pretrained import is_pretrained, open_pretrained
from cpt_jax.tokenizer import DELIMITERS

# Of each file so many pieces of so many bytes tell whether it is the same: another model differs all over.
_PIECES, _BYTES = 256, 4096


def describe_base(init_from: str) -> dict[str, str]:
    """Path and fingerprint of what a LoRA run starts from: a pretrained model, or a run whose parameters were all trained.

    Raises:
      UserError: see `refuse_adapters`.
    """
    if is_pretrained(init_from):
        return {'path': str(Path(init_from).absolute()), 'fingerprint': _fingerprint(open_pretrained(init_from).files.paths)}
    refuse_adapters(init_from)
    directory, step = checkpoint.find(init_from, 'init_from')
    return {'path': f'{directory.parent}@{step}', 'fingerprint': checkpoint.saved_at(directory, step)}


def refuse_adapters(init_from: str) -> None:
    """Raises UserError where a run that others start from holds adapters alone."""
    if init_from and not is_pretrained(init_from):
        directory, step = checkpoint.find(init_from, 'init_from')
        if checkpoint.read_about(directory, step)['config'].get('lora', {}).get('rank'):
            raise UserError(f'init_from={init_from}: its checkpoints hold adapters alone; start from an export of it (launch/export.py)')


def check_base(base: Mapping[str, str], run: str) -> None:
    """Raises UserError unless the base of a run is there, and is what it was."""
    path = base['path']
    try:
        found = describe_base(path)
    except UserError as error:
        raise UserError(f'{run} holds adapters, whose base cannot be read: {error}') from None
    if found['fingerprint'] != base['fingerprint']:
        raise UserError(f'{run} holds adapters that were trained on other weights than {path} holds now: put them back')


def load_base(path: str, shape: Shape, mesh: jax.sharding.Mesh, lora: LoRA, fresh: Iterable[int]) -> Encoder:
    """The weights of a base, frozen as `lora.base` says.

    Of a pretrained model one tensor is a float at a time; of a run all are at once, over the mesh.

    Args:
      path: of `describe_base`.
      fresh: ids that it has no rows for; see `load_encoder`.

    Raises:
      UserError: it is damaged, or not of this shape.
    """
    if is_pretrained(path):
        found = open_pretrained(path)
        return load_encoder(found.family, found.files, shape, mesh, fresh=fresh, lora=lora)
    directory, step = checkpoint.find(path, 'init_from')
    with jax.set_mesh(mesh):
        abstract = on_mesh(jax.eval_shape(lambda: Encoder(shape, nnx.Rngs(0))), mesh)
        try:
            encoder = checkpoint.load_params(directory, step, {'encoder': abstract})['encoder']
        except KeyError as error:
            raise UserError(f'init_from={path}: its model is not of the shape of this config: {error.args[0]}') from error
        # A language model has never read the delimiters; a run in a template does not either.
        new = bool([*fresh]) and checkpoint.objective_of(checkpoint.read_about(directory, step)) == 'lm'

        def freeze(encoder: Encoder) -> Encoder:
            if new:
                encoder.token_embedding = with_new_delimiters(encoder.token_embedding, shape.vocab_size)
            return lora.frozen(encoder)

        return jax.jit(freeze, donate_argnums=0)(encoder)


def with_new_delimiters(table: nnx.Param, vocab_size: int) -> nnx.Param:
    """The token table of a language model, to which the delimiters, the last ids, are new: their rows are made as those of
    `cpt_jax.model.families.load.grown`, on the devices, near the mean of the rows before them.
    """
    table_VxD, first, count = table[...], vocab_size - len(DELIMITERS), len(DELIMITERS)
    shard = jax.typeof(table_VxD).sharding.spec
    number_Vx1 = jnp.arange(len(table_VxD), out_sharding=P(shard[0]))[:, None]
    known_VxD = jnp.where(number_Vx1 < first, table_VxD, 0)
    mean_D = known_VxD.sum(0) / first
    std_D = jnp.sqrt(jnp.sum(jnp.where(number_Vx1 < first, (table_VxD - mean_D) ** 2, 0), 0) / first)
    noise_VxD = jax.random.normal(jax.random.key(0), table_VxD.shape, table_VxD.dtype, out_sharding=shard)
    fresh_Vx1 = (number_Vx1 >= first) & (number_Vx1 < first + count)
    return table.replace(jnp.where(fresh_Vx1, mean_D + 0.1 * std_D * noise_VxD, table_VxD))


def put_base(frozen: Encoder, base: Encoder) -> Encoder:
    """The frozen half of an adapted encoder (model/parameter.py: divided) with the weights of a base."""
    return checkpoint.like(frozen, checkpoint.by_name(base))


def load_adapted(
    directory: Path, step: int, about: Mapping[str, Any], shape: Shape, mesh: jax.sharding.Mesh, fresh: Iterable[int]
) -> Encoder:
    """The encoder of a LoRA run, its adapters beside its base.

    Raises:
      UserError: the base is not there any more, or is another one.
    """
    check_base(about['base'], str(directory.parent))
    lora = LoRA(**about['config']['lora'])
    lora.check(shape, mesh)
    trained, frozen = load_adapters(directory, step, lora, shape, mesh)
    return joined(trained, put_base(frozen, load_base(about['base']['path'], shape, mesh, lora, fresh)))


def load_adapters(directory: Path, step: int, lora: LoRA, shape: Shape, mesh: jax.sharding.Mesh) -> tuple[Encoder, Encoder]:
    """The adapters of a run alone, and the other half of the encoder as shapes, dtypes and shardings (model/parameter.py: divided)."""
    with jax.set_mesh(mesh):
        make = lambda: divided(lora.adapted(Encoder(shape, nnx.Rngs(0)), nnx.Rngs(0)))  # noqa: E731
        trained, frozen = on_mesh(jax.eval_shape(make), mesh)
        return checkpoint.load_params(directory, step, {'encoder': trained})['encoder'], frozen


def _fingerprint(paths: Sequence[Path]) -> str:
    """Of files' names and sizes, and of pieces of them all over: no minutes of reading before each start."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(f'{path.name} {size}\n'.encode())
        with path.open('rb') as file:
            for piece in range(_PIECES):
                file.seek(size * piece // _PIECES)
                digest.update(file.read(_BYTES))
    return digest.hexdigest()

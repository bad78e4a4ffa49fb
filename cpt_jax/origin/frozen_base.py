"""The frozen base of a LoRA run: describing it, checking that it is unchanged, and loading it."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.parameter import join_frozen, split_frozen
from cpt_jax.origin.earlier_run import EarlierRun
from cpt_jax.origin.pretrained import Pretrained
from cpt_jax.origin.resolve import Model, resolve_model
from cpt_jax.runs import checkpoint
from cpt_jax.runs.provenance import Base
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import assign_mesh_shardings
from cpt_jax.text.tokenizer import DELIMITERS

# The fingerprint of a file reads this many blocks of this many bytes, evenly spaced. The weights of
# another model differ everywhere.
_BLOCKS = 256
_BLOCK_BYTES = 4096


def describe_base(model: Model) -> Base:
    """Returns the path and the fingerprint of the model that a LoRA run starts from.

    Args:
      model: a pretrained model, or a run without adapters.

    Raises:
      UserError: the checkpoints of the run contain only adapters.
    """
    if isinstance(model, Pretrained):
        return Base(model.reference, _fingerprint_files(model.files.paths))
    return model.describe_base()


def open_checked_base(base: Base, run: str) -> Model:
    """Opens the base of a LoRA run, and checks that its weights are unchanged.

    Args:
      base: the base in the run's provenance.
      run: path of the run, for messages.

    Raises:
      UserError: the base cannot be read, or its weights have changed.
    """
    try:
        model = resolve_model(base.path, 'init_from')
        found = describe_base(model)
    except UserError as error:
        raise UserError(
            f'{run} holds adapters, whose base cannot be read: {error}; if it has moved, give its '
            f'place with --base (training: --config.init_from)'
        ) from None
    if found.fingerprint != base.fingerprint:
        raise UserError(
            f'{run} holds adapters that were trained on other weights than {base.path} holds now: '
            f'restore the original weights there'
        )
    return model


def load_base(
    model: Model, config: EncoderConfig, mesh: jax.sharding.Mesh, lora: LoRA, fresh: Iterable[int]
) -> Encoder:
    """Returns the weights of a base, in the storage format of `lora.base`.

    A pretrained model is converted tensor by tensor, so only one tensor at a time is in floating
    point. The weights of a run are loaded in floating point all at once, sharded over the mesh.

    Args:
      model: the base.
      config: architecture of the encoder.
      mesh: mesh of the run.
      lora: adapters of the run.
      fresh: ids without a row in the base's token table; see `load_encoder`.

    Raises:
      UserError: the base is damaged, or its weights have other shapes.
    """
    if isinstance(model, Pretrained):
        return model.load_encoder(config, mesh, fresh=fresh, lora=lora)
    # A language model was trained without delimiters, so their rows are new. With a template,
    # `fresh` is empty: delimiters are not used.
    has_new_delimiters = bool([*fresh]) and model.is_language_model

    def freeze(encoder: Encoder) -> Encoder:
        if has_new_delimiters:
            encoder.token_embedding = add_new_delimiters(encoder.token_embedding, config.vocab_size)
        return lora.freeze(encoder)

    encoder = model.load_encoder(config, mesh)
    with jax.set_mesh(mesh):
        return jax.jit(freeze, donate_argnums=0)(encoder)


def add_new_delimiters(table: nnx.Variable, vocab_size: int) -> Any:
    """Returns a language model's token table with new rows for the delimiters, the last ids.

    The rows are the mean of the rows before them plus noise, as in
    `cpt_jax.model.families.load.grown`, but computed on the devices.
    """
    table_VxD = table[...]
    count = len(DELIMITERS)
    first = vocab_size - count
    shard = jax.typeof(table_VxD).sharding.spec
    number_Vx1 = jnp.arange(len(table_VxD), out_sharding=P(shard[0]))[:, None]
    known_VxD = jnp.where(number_Vx1 < first, table_VxD, 0)
    mean_D = known_VxD.sum(0) / first
    std_D = jnp.sqrt(
        jnp.sum(jnp.where(number_Vx1 < first, (table_VxD - mean_D) ** 2, 0), 0) / first
    )
    noise_VxD = jax.random.normal(
        jax.random.key(0), table_VxD.shape, table_VxD.dtype, out_sharding=shard
    )
    fresh_Vx1 = (number_Vx1 >= first) & (number_Vx1 < first + count)
    return table.replace(jnp.where(fresh_Vx1, mean_D + 0.1 * std_D * noise_VxD, table_VxD))


def fill_frozen_from_base(frozen: Encoder, base: Encoder) -> Encoder:
    """Returns the frozen half of an adapted encoder with the weights of a base.

    Args:
      frozen: the frozen half, from `split_frozen` in model/parameter.py.
      base: encoder with the weights.
    """
    return checkpoint.from_nested_dict(frozen, checkpoint.to_nested_dict(base))


def load_adapted(
    run: EarlierRun, config: EncoderConfig, mesh: jax.sharding.Mesh, fresh: Iterable[int]
) -> Encoder:
    """Returns the encoder of a LoRA run, with its adapters and its base.

    Raises:
      UserError: the base is missing, or its weights have changed.
    """
    base = open_checked_base(get_adapter_base(run), str(run.run_dir.path))
    lora = run.lora
    lora.check(config, mesh)
    trained, frozen = load_adapters(run, lora, config, mesh)
    return join_frozen(
        trained, fill_frozen_from_base(frozen, load_base(base, config, mesh, lora, fresh))
    )


def load_adapters(
    run: EarlierRun, lora: LoRA, config: EncoderConfig, mesh: jax.sharding.Mesh
) -> tuple[Encoder, Encoder]:
    """Returns the two halves of a LoRA run's encoder (see `split_frozen` in model/parameter.py).

    The trained half has the arrays of the adapters. The frozen half has ShapeDtypeStructs with
    shardings.
    """
    with jax.set_mesh(mesh):

        def init():
            return split_frozen(lora.add_adapters(Encoder(config, nnx.Rngs(0)), nnx.Rngs(0)))

        trained, frozen = assign_mesh_shardings(jax.eval_shape(init), mesh)
        return run.load_params({'encoder': trained})['encoder'], frozen


def get_adapter_base(run: EarlierRun) -> Base:
    """Returns the base in a LoRA run's provenance, at its place of today.

    Raises:
      UserError: the metadata of the run have no base.
    """
    base = run.provenance.base
    if base is None:
        raise UserError(f'{run.run_dir.path} holds adapters, but its metadata has no base')
    return dataclasses.replace(base, path=run.base_path) if run.base_path else base


def _fingerprint_files(paths: Sequence[Path]) -> str:
    """Returns a digest of the files' names and sizes, and of blocks of their contents.

    The files are not read completely, which would take minutes at every start.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(f'{path.name} {size}\n'.encode())
        with path.open('rb') as file:
            for block in range(_BLOCKS):
                file.seek(size * block // _BLOCKS)
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()

"""What LoRA leaves as it is: where the base of a run lies, and that it is the one that the adapters
were trained on.
"""

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
from cpt_jax.model.parameter import divided, joined
from cpt_jax.origin.earlier_run import EarlierRun
from cpt_jax.origin.pretrained import Pretrained
from cpt_jax.origin.resolve import Model, resolve_model
from cpt_jax.runs import checkpoint
from cpt_jax.runs.provenance import Base
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import on_mesh
from cpt_jax.text.tokenizer import DELIMITERS

# Of each file so many pieces of so many bytes tell whether it is the same: another model differs
# all over.
_PIECES, _BYTES = 256, 4096


def describe_base(model: Model) -> Base:
    """Returns path and fingerprint of what a LoRA run starts from: a pretrained model, or a run
    whose parameters were all trained.

    Raises:
      UserError: its checkpoints hold adapters alone.
    """
    if isinstance(model, Pretrained):
        return Base(str(model.directory), _fingerprint(model.files.paths))
    return model.describe_base()


def check_base(base: Base, run: str) -> Model:
    """Returns the base of a run, opened.

    Raises:
      UserError: it is not there, or is not what it was.
    """
    try:
        model = resolve_model(base.path, 'init_from')
        found = describe_base(model)
    except UserError as error:
        raise UserError(f'{run} holds adapters, whose base cannot be read: {error}') from None
    if found.fingerprint != base.fingerprint:
        raise UserError(
            f'{run} holds adapters that were trained on other weights than {base.path} holds now: '
            f'put them back'
        )
    return model


def load_base(
    model: Model, config: EncoderConfig, mesh: jax.sharding.Mesh, lora: LoRA, fresh: Iterable[int]
) -> Encoder:
    """Returns the weights of a base, frozen as `lora.base` says.

    Of a pretrained model one tensor is a float at a time; of a run all are at once, over the mesh.

    Args:
      model: the base, opened.
      fresh: ids that it has no rows for; see `load_encoder`.

    Raises:
      UserError: it is damaged, or not of this shape.
    """
    if isinstance(model, Pretrained):
        return model.load_encoder(config, mesh, fresh=fresh, lora=lora)
    # A language model has never read the delimiters; a run in a template does not either.
    has_new_delimiters = bool([*fresh]) and model.is_language_model

    def freeze(encoder: Encoder) -> Encoder:
        if has_new_delimiters:
            encoder.token_embedding = with_new_delimiters(
                encoder.token_embedding, config.vocab_size
            )
        return lora.frozen(encoder)

    encoder = model.load_encoder(config, mesh)
    with jax.set_mesh(mesh):
        return jax.jit(freeze, donate_argnums=0)(encoder)


def with_new_delimiters(table: nnx.Variable, vocab_size: int) -> Any:
    """The token table of a language model, to which the delimiters, the last ids, are new: their
    rows are made as those of `cpt_jax.model.families.load.grown`, on the devices, near the mean of
    the rows before them.
    """
    table_VxD, first, count = table[...], vocab_size - len(DELIMITERS), len(DELIMITERS)
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


def put_base(frozen: Encoder, base: Encoder) -> Encoder:
    """The frozen half of an adapted encoder (model/parameter.py: divided) with the weights of a
    base.
    """
    return checkpoint.like(frozen, checkpoint.by_name(base))


def load_adapted(
    run: EarlierRun, config: EncoderConfig, mesh: jax.sharding.Mesh, fresh: Iterable[int]
) -> Encoder:
    """Returns the encoder of a LoRA run, its adapters beside its base.

    Raises:
      UserError: the base is not there any more, or is another one.
    """
    base = check_base(base_of_adapters(run), str(run.run_dir.path))
    lora = run.lora
    lora.check(config, mesh)
    trained, frozen = load_adapters(run, lora, config, mesh)
    return joined(trained, put_base(frozen, load_base(base, config, mesh, lora, fresh)))


def load_adapters(
    run: EarlierRun, lora: LoRA, config: EncoderConfig, mesh: jax.sharding.Mesh
) -> tuple[Encoder, Encoder]:
    """Returns the adapters of a run, and the other half of the encoder as shapes, dtypes and
    shardings (model/parameter.py: divided).
    """
    with jax.set_mesh(mesh):

        def make():
            return divided(lora.adapted(Encoder(config, nnx.Rngs(0)), nnx.Rngs(0)))

        trained, frozen = on_mesh(jax.eval_shape(make), mesh)
        return run.load_params({'encoder': trained})['encoder'], frozen


def base_of_adapters(run: EarlierRun) -> Base:
    """Returns the base in a LoRA run's provenance. Raises UserError if its metadata has none."""
    if run.provenance.base is None:
        raise UserError(f'{run.run_dir.path} holds adapters, and its metadata name no base')
    return run.provenance.base


def _fingerprint(paths: Sequence[Path]) -> str:
    """Of files' names and sizes, and of pieces of them all over: no minutes of reading before each
    start.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(f'{path.name} {size}\n'.encode())
        with path.open('rb') as file:
            for piece in range(_PIECES):
                file.seek(size * piece // _PIECES)
                digest.update(file.read(_BYTES))
    return digest.hexdigest()

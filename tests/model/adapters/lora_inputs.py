"""Models and adapters, for the tests of LoRA and the writer of their golden."""

import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from cpt_jax.exporting.adapter import adapters_of
from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.adapters.peft import write_adapter
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.known import family_of
from cpt_jax.model.families.load import load_encoder
from cpt_jax.model.formats.safetensors_files import Files
from cpt_jax.model.parameter import divided, joined
from cpt_jax.origin.frozen_base import put_base
from cpt_jax.runtime.mesh import make_mesh, on_mesh

VOCABULARY = 77
LENGTHS = 11, 7
OURS = LoRA(rank=4, alpha=8.0, dropout=0.3)


class Base:
    """A pretrained directory.

    Attributes:
      folder, content, family, config: where it is, its config.json, its family, and ours.
    """

    def __init__(self, folder: Path, content: dict):
        self.folder, self.content = folder, content
        self.family = family_of(content)
        shape = self.family.shape(content)
        self.config = EncoderConfig(vocab_size=VOCABULARY, remat='full', **shape).on('cpu')

    def load(self, files: Files | None = None, lora: LoRA | None = None) -> Encoder:
        """Returns the encoder of this base's files, or of others of its family."""
        mesh = make_mesh(devices=jax.devices()[:1])
        files = files or Files(self.folder)
        return load_encoder(self.family, files, self.config, mesh, jnp.float32, lora=lora)


def adapted(base: Base, lora: LoRA) -> Encoder:
    """Returns a base with adapters that are not at their beginning."""
    random, mesh = np.random.default_rng(1), make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        whole = jax.eval_shape(lambda: lora.adapted(Encoder(base.config, nnx.Rngs(0)), nnx.Rngs(0)))
        trained, frozen = divided(on_mesh(whole, mesh))
        trained = jax.tree.map(
            lambda w: jax.device_put(random.normal(0, 0.2, w.shape).astype(np.float32), w.sharding),
            trained,
        )
    return joined(trained, put_base(frozen, base.load(lora=lora)))


def write_ours(base: Base, folder: Path) -> Encoder:
    """Writes our adapter of a base as PEFT keeps one; returns the encoder that it is from."""
    encoder = adapted(base, OURS)
    told = {
        'base_model_name_or_path': 'base',
        'r': OURS.rank,
        'lora_alpha': OURS.alpha,
        'lora_dropout': OURS.dropout,
    }
    write_adapter(folder, base.family, base.config, told, adapters_of(encoder, OURS))
    return encoder


def checksums(folder: Path) -> dict[str, int]:
    """Returns a checksum of the bytes of each tensor of an adapter."""
    tensors = load_file(folder / 'adapter_model.safetensors')
    return {name: zlib.crc32(array.tobytes()) for name, array in sorted(tensors.items())}


def tokens() -> np.ndarray:
    """int32[2, S]: two texts, a row each."""
    return np.random.default_rng(2).integers(5, VOCABULARY, (2, max(LENGTHS))).astype(np.int32)

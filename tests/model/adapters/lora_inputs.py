"""Models and adapters, for the tests of LoRA and for the writer of their golden."""

import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from cpt_jax.exporting.adapter import collect_adapters
from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.adapters.peft import write_adapter
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.known import find_family
from cpt_jax.model.families.load import load_encoder
from cpt_jax.model.formats.safetensors_files import TensorFiles
from cpt_jax.model.parameter import join_frozen, split_frozen
from cpt_jax.origin.frozen_base import fill_frozen_from_base
from cpt_jax.runtime.mesh import assign_mesh_shardings, make_mesh

VOCABULARY = 77
LENGTHS = 11, 7
OURS = LoRA(rank=4, alpha=8.0, dropout=0.3)


class Base:
    """A pretrained directory.

    Attributes:
      folder: its path.
      content: content of its config.json.
      family: its family.
      config: its architecture as an EncoderConfig.
    """

    def __init__(self, folder: Path, content: dict):
        self.folder = folder
        self.content = content
        self.family = find_family(content)
        shape = self.family.shape(content)
        self.config = EncoderConfig(vocab_size=VOCABULARY, remat='full', **shape).resolve_auto(
            'cpu'
        )

    def load(self, files: TensorFiles | None = None, lora: LoRA | None = None) -> Encoder:
        """Returns the encoder of this base's files, or of others of its family."""
        mesh = make_mesh(devices=jax.devices()[:1])
        files = files or TensorFiles(self.folder)
        return load_encoder(self.family, files, self.config, mesh, jnp.float32, lora=lora)


def make_adapted(base: Base, lora: LoRA) -> Encoder:
    """Returns a base with random adapters, none of which is zero."""
    random, mesh = np.random.default_rng(1), make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        whole = jax.eval_shape(
            lambda: lora.add_adapters(Encoder(base.config, nnx.Rngs(0)), nnx.Rngs(0))
        )
        trained, frozen = split_frozen(assign_mesh_shardings(whole, mesh))
        trained = jax.tree.map(
            lambda w: jax.device_put(random.normal(0, 0.2, w.shape).astype(np.float32), w.sharding),
            trained,
        )
    return join_frozen(trained, fill_frozen_from_base(frozen, base.load(lora=lora)))


def write_our_adapter(base: Base, folder: Path) -> Encoder:
    """Writes an adapter of a base in PEFT's format; returns the encoder with this adapter."""
    encoder = make_adapted(base, OURS)
    adapter_config = {
        'base_model_name_or_path': 'base',
        'r': OURS.rank,
        'lora_alpha': OURS.alpha,
        'lora_dropout': OURS.dropout,
    }
    write_adapter(folder, base.family, base.config, adapter_config, collect_adapters(encoder, OURS))
    return encoder


def checksums(folder: Path) -> dict[str, int]:
    """Returns a checksum of the bytes of each tensor of an adapter."""
    tensors = load_file(folder / 'adapter_model.safetensors')
    return {name: zlib.crc32(array.tobytes()) for name, array in sorted(tensors.items())}


def tokens() -> np.ndarray:
    """Returns the ids of two texts, one per row, int32[2, S]."""
    return np.random.default_rng(2).integers(5, VOCABULARY, (2, max(LENGTHS))).astype(np.int32)

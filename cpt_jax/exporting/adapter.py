"""From a LoRA run to its adapter alone, as PEFT loads it."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from cpt_jax.exporting.directory import refuse_existing, whole
from cpt_jax.model.adapters.lora import MATRICES, LoRA
from cpt_jax.model.adapters.peft import is_adapter, write_adapter
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.load import Names, grown
from cpt_jax.model.formats.llama2c import LLAMA2C
from cpt_jax.origin.earlier_run import find_run
from cpt_jax.origin.frozen_base import base_of_adapters, check_base, load_adapters
from cpt_jax.origin.pretrained import Pretrained
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import make_mesh


class Adapter(NamedTuple):
    """What was written.

    Attributes:
      base: the directory of what it is to be loaded on.
      rows: of the token table that its delimiters need; 0: as many as the base has.
      template: what its texts stood in, which its files do not say; '': delimiters.
    """

    base: str
    rows: int
    template: str


def export_adapter(reference: str, output: Path) -> Adapter:
    """Writes the adapters of a LoRA run as adapter_config.json and adapter_model.safetensors.

    The base's table has no rows for the delimiters that stand around texts: they go along as PEFT's
    trainable tokens.

    Args:
      reference: a run, or run@step.
      output: must not be there yet; it is whole or not there.

    Raises:
      UserError: the run is none of LoRA, its base is no pretrained model, or PEFT has no such
        adapter.
    """
    refuse_existing(output)
    run = find_run(reference, '--model')
    template = run.provenance.template
    if not run.provenance.has_adapters:
        raise UserError(
            f'--adapter: {reference} holds no adapters (lora.rank=0); leave the flag out'
        )
    described = base_of_adapters(run)
    found, path = check_base(described, reference), described.path
    if not isinstance(found, Pretrained) or is_adapter(found.directory):
        raise UserError(
            f'--adapter: PEFT needs a base that is a model of its own, not {path}; leave the flag '
            f'out to export the whole model'
        )
    lora, tokenizer = run.lora, run.load_tokenizer()
    if found.family is LLAMA2C:
        raise UserError(
            f'--adapter: {path} is a model of llama2.c, which PEFT cannot load, and whose rotary '
            'positions turn other units than those of transformers: embed with launch/embed.py'
        )
    encoder_config = run.encoder_config(tokenizer.vocab_size)
    encoder, _ = load_adapters(run, lora, encoder_config, make_mesh())
    adapter_config = {
        'base_model_name_or_path': path,
        'r': lora.rank,
        'lora_alpha': lora.alpha,
        'lora_dropout': lora.dropout,
    }
    added = [] if template else tokenizer.added  # texts in a template have no delimiters
    fresh = sorted(set(added))
    with whole(output) as folder:
        write_adapter(
            folder,
            found.family,
            encoder_config,
            adapter_config,
            adapters_of(encoder, lora),
            (fresh, _rows(found, encoder_config, added, fresh)) if fresh else None,
        )
    return Adapter(path, max(fresh) + 1 if fresh and max(fresh) >= found.rows else 0, template)


def adapters_of(encoder: Encoder, lora: LoRA) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """A and B of each layer, by the names of the weights that they stand beside."""
    found = {}
    for name in lora.targets:
        part = MATRICES[name][0]
        stacks = [
            getattr(getattr(encoder, stack), part)
            for stack in ('blocks', 'last')
            if hasattr(encoder, stack)
        ]
        adapters = [
            getattr(stack, f'{name}_adapter')
            for stack in stacks
            if hasattr(stack, f'{name}_adapter')
        ]
        if adapters:
            *inner, last = [
                tuple(np.asarray(jax.device_get(low[...])) for low in (one.lora_a, one.lora_b))
                for one in adapters
            ]
            found[f'{part}.{name}'] = [
                layer for stack in inner for layer in zip(*stack, strict=True)
            ] + [last]
    return found


def _rows(
    found: Pretrained, config: EncoderConfig, added: Iterable[int], ids: list[int]
) -> np.ndarray:
    """float32[n, E]: what the token table has for these ids in training."""
    names = Names(found.family, found.files, config)
    (table,) = (
        tensor for tensor in found.family.outer(config) if 'token_embedding' in tensor.parameters
    )
    return grown(found.files.read(names.of(table)), config.table_rows, added)[ids].astype(
        np.float32
    )

"""Export of the adapters of a LoRA run in PEFT's format."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from cpt_jax.embed.load import load_embedder
from cpt_jax.exporting.golden import Golden, make_golden, write_golden
from cpt_jax.exporting.output import (
    atomic_directory,
    check_can_export,
    check_is_single_process,
)
from cpt_jax.model.adapters.lora import MATRICES, LoRA
from cpt_jax.model.adapters.peft import AdaptedFiles, is_adapter_directory, write_adapter
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.load import TensorNames, resize_token_table
from cpt_jax.model.formats.llama2c import LLAMA2C
from cpt_jax.origin.earlier_run import EarlierRun, find_run
from cpt_jax.origin.frozen_base import get_adapter_base, load_adapters, open_checked_base
from cpt_jax.origin.pretrained import Pretrained, is_gguf_file
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import make_mesh
from cpt_jax.storage.paths import is_remote
from cpt_jax.text.pretrained_tokenizer import PretrainedTokenizer
from cpt_jax.text.prompt_tokenizer import TextTokenizer
from cpt_jax.text.tokenizer import SIDES, Side


class ExportedAdapter(NamedTuple):
    """An adapter that was written.

    Attributes:
      base: directory of the base model that the adapter must be loaded on.
      rows: int, rows that the base's token table must have for the delimiters; 0 if the base has
        enough.
      template: template around the texts, which the adapter's files cannot store; '' if texts have
        delimiters instead.
    """

    base: str
    rows: int
    template: str

    def list_notes(self) -> list[str]:
        """Returns what must be done before PEFT loads the adapter, one line each."""
        notes = []
        if is_remote(self.base):
            notes.append(
                f'PEFT cannot read {self.base}: copy it to a disk, and export again with --base '
                f'COPY, or set base_model_name_or_path in adapter_config.json to the copy'
            )
        if self.template:
            notes.append(
                f'it was trained with a template, which the files of an adapter cannot store: '
                f'embed or evaluate it with --template {shlex.quote(self.template)}'
            )
        if self.rows:
            notes.append(
                f'the base has no token ids for the delimiters around texts: call '
                f'model.resize_token_embeddings({self.rows}) before PeftModel.from_pretrained'
            )
        return notes


def export_adapter(reference: str, output: Path, base: str = '') -> ExportedAdapter:
    """Writes the adapters of a LoRA run as adapter_config.json and adapter_model.safetensors.

    The base's token table has no trained rows for the delimiters around texts, so these rows are
    written as PEFT's trainable tokens. golden.json is written too if the adapter's directory gives
    the vectors of the run.

    Args:
      reference: a run, or RUN@STEP.
      output: directory to create. It must not exist yet, and exists afterwards only if the export
        succeeds.
      base: where the base is now. Default '': where it was in training.

    Raises:
      UserError: the run has no adapters, its base is not a pretrained model, or PEFT has no
        equivalent of the adapter.
    """
    check_is_single_process('an adapter')
    check_can_export(output)
    run = find_run(reference, '--model', base)
    template = run.provenance.template
    if not run.provenance.has_adapters:
        raise UserError(
            f'--adapter: {reference} has no adapters (lora.rank=0): remove the flag to export the '
            f'model'
        )
    described = get_adapter_base(run)
    found = open_checked_base(described, reference)
    path = described.path
    if not isinstance(found, Pretrained) or is_adapter_directory(found.directory):
        raise UserError(
            f'--adapter: PEFT needs a pretrained model as the base, and {path} is not one: remove '
            f'the flag to export the merged model'
        )
    if is_gguf_file(found.directory):
        raise UserError(
            f'--adapter: {path} is a GGUF file, which PEFT cannot load as a base: remove the flag '
            f'to export the merged model'
        )
    lora = run.lora
    tokenizer = run.load_tokenizer()
    if found.family is LLAMA2C:
        raise UserError(
            f'--adapter: {path} is a model of llama2.c, which PEFT cannot load and whose rotary '
            'embeddings pair other dimensions than those of transformers: use launch/embed.py to '
            'embed texts'
        )
    encoder_config = run.encoder_config(run.get_vocab_size(tokenizer))
    _check_base_has_form(found, tokenizer, encoder_config)
    encoder, _ = load_adapters(run, lora, encoder_config, make_mesh())
    adapters = collect_adapters(encoder, lora)
    del encoder  # before the run is loaded for golden.json
    adapter_config = {
        'base_model_name_or_path': path,
        'r': lora.rank,
        'lora_alpha': lora.alpha,
        'lora_dropout': lora.dropout,
    }
    added_ids = [] if template else tokenizer.added_ids  # texts in a template have no delimiters
    new_ids = sorted(set(added_ids))
    new_tokens = None
    if new_ids:
        new_tokens = new_ids, _read_token_rows(found, encoder_config, added_ids, new_ids)
    with atomic_directory(output) as folder:
        write_adapter(
            folder,
            found.family,
            encoder_config,
            adapter_config,
            adapters,
            new_tokens,
        )
        files = AdaptedFiles(found.files, found.family, folder)
        if _gives_vectors_of_run(found, files.read_merged_dtype().name, run, tokenizer):
            write_golden(folder, _make_golden(found, run))
    table_is_too_small = bool(new_ids) and max(new_ids) >= found.rows
    return ExportedAdapter(path, max(new_ids) + 1 if table_is_too_small else 0, template)


def _gives_vectors_of_run(
    base: Pretrained, dtype: str, run: EarlierRun, tokenizer: TextTokenizer
) -> bool:
    """Whether the adapter on the files of its base, which have a dtype, gives the vectors of the
    run.
    """
    if run.lora.base not in ('float32', dtype):
        return False  # the run rounds the weights of the base
    if run.provenance.template:
        return list(run.bos_ids or ()) == list(base.tokenizer.find_begin_ids('tokenizer'))
    return isinstance(tokenizer, PretrainedTokenizer)  # otherwise texts have delimiters


def _make_golden(base: Pretrained, run: EarlierRun) -> Golden:
    """Embeds texts with the run, truncated to the lengths of the base as in the other readers."""
    sides: tuple[Side, ...] = ('x',) if run.provenance.template else SIDES
    goldens = []
    for limit in sorted({base.limits[side] for side in sides}):
        embed = load_embedder(run.reference, dtype='float32', max_tokens=limit, base=run.base_path)
        goldens.append(
            make_golden(embed, tuple(side for side in sides if base.limits[side] == limit))
        )
    found = {side: vectors for golden in goldens for side, vectors in golden.vectors.items()}
    return goldens[0]._replace(vectors={side: found[side] for side in sides})


def _check_base_has_form(
    base: Pretrained, tokenizer: TextTokenizer, encoder_config: EncoderConfig
) -> None:
    """Raises UserError if vectors of the run depend on more than the adapters and the base."""
    changed = {'another model.causal': encoder_config.causal != base.shape.get('causal', True)}
    # Texts in a template or with delimiters do not use the form of the base.
    if isinstance(tokenizer, PretrainedTokenizer):
        changed |= {
            'trained Dense modules': encoder_config.dense and not encoder_config.freeze_dense,
            'another model.pooling': encoder_config.pooling != base.shape['pooling'],
            'other data.prompts': tokenizer.prompts != base.tokenizer.prompts,
        }
    if names := [name for name, is_changed in changed.items() if is_changed]:
        raise UserError(
            f'--adapter: the run has {" and ".join(names)}, which an adapter cannot hold: remove '
            f'the flag to export the merged model'
        )


def collect_adapters(
    encoder: Encoder, lora: LoRA
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Returns the matrices (A, B) of each layer's adapter.

    Args:
      encoder: encoder with adapters.
      lora: which weights have adapters.

    Returns:
      A list with the pair of every layer, from first to last, by 'module.weight'.
    """
    found = {}
    for name in lora.targets:
        part = MATRICES[name][0]
        modules = [
            getattr(getattr(encoder, stack), part)
            for stack in ('blocks', 'last')
            if hasattr(encoder, stack)
        ]
        adapters = [
            getattr(module, f'{name}_adapter')
            for module in modules
            if hasattr(module, f'{name}_adapter')
        ]
        if not adapters:
            continue
        # `blocks` holds all layers but the last, stacked along the first axis.
        *stacked, last = [
            tuple(np.asarray(jax.device_get(low[...])) for low in (adapter.lora_a, adapter.lora_b))
            for adapter in adapters
        ]
        layers = [layer for pair in stacked for layer in zip(*pair, strict=True)]
        found[f'{part}.{name}'] = [*layers, last]
    return found


def _read_token_rows(
    found: Pretrained, config: EncoderConfig, added_ids: Iterable[int], ids: list[int]
) -> np.ndarray:
    """Returns the rows of the token table for `ids` as they are in training, float32 [n, E]."""
    names = TensorNames(found.family, found.files, config)
    (table,) = (
        tensor for tensor in found.family.outer(config) if 'token_embedding' in tensor.parameters
    )
    table_VxE = resize_token_table(
        found.files.read(names.get_name(table)), config.table_rows, added_ids
    )
    return table_VxE[ids].astype(np.float32)

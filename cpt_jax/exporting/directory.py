"""Export of a run as a directory that other libraries load."""

import importlib.metadata
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cpt_jax.embed.embedder import Embedder
from cpt_jax.embed.load import load_embedder
from cpt_jax.exporting.card import ExportedPart, ExportedRun, write_card
from cpt_jax.exporting.golden import GOLDEN_TEXTS, compute_differences, make_golden, write_golden
from cpt_jax.exporting.output import (
    ExportFolder,
    check_can_export,
    open_export_folder,
    remove_unfinished_export,
)
from cpt_jax.exporting.sentence_transformers import write_layout, write_tokenizer
from cpt_jax.exporting.tokenizer import (
    PROMPT_NAMES,
    ExportedTokenizer,
    export_pretrained_tokenizer,
    export_template_tokenizer,
    export_tokenizer,
)
from cpt_jax.exporting.transformer import make_config_json, write_weights
from cpt_jax.model.adapters.nf4 import BLOCK
from cpt_jax.origin.earlier_run import EarlierRun
from cpt_jax.origin.pretrained import Pretrained
from cpt_jax.origin.resolve import resolve_model
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.multihost import check_processes_agree
from cpt_jax.storage.json_files import write_json
from cpt_jax.text.pretrained_tokenizer import PretrainedTokenizer
from cpt_jax.text.tokenizer import SIDES, Side

PARITY = 'parity.json'


def export(
    reference: str, output: Path, *, dtype: str, shard_bytes: int, license_id: str, base: str = ''
) -> list[ExportedPart]:
    """Writes a run as one directory, or as `query/` and `document/` if each side has its own
    closing delimiter.

    A run with a template becomes a plain transformers model. sentence-transformers cannot express
    it: its prompts only add text at the beginning, and template and text must be tokenized as one
    string. The card and golden.json contain the template.

    Several processes hold the weights together, and share the work of writing them; all must call
    the function.

    Args:
      reference: a run, or RUN@STEP.
      output: directory to create, local or in a bucket. It must not exist yet, and exists
        afterwards only if the export succeeds. What a killed export left in a bucket is removed.
      dtype: dtype of the weights, a key of DTYPES.
      shard_bytes: int, maximum bytes of weights per file.
      license_id: license identifier for the model card.
      base: where the base of a LoRA run is now. Default '': where it was in training.

    Returns:
      The directories that were written.

    Raises:
      UserError: there is no such run, no other library has an equivalent of its architecture, or
        `output` already exists; or the processes have other arguments, or another disk.
    """
    remove_unfinished_export(output)
    check_can_export(output)
    run = resolve_model(reference, '--model', base_path=base)
    if isinstance(run, Pretrained):
        raise UserError(
            f'--model {reference}: is a pretrained model, which other libraries already load; give '
            f'a run of launch/train.py'
        )
    if jax.process_count() > 1:
        mine = [run.name, run.saved, str(output), dtype, shard_bytes]
        check_processes_agree(
            mine,
            f'--model {reference}: the processes would write different exports; this one has '
            f'{mine}: give RUN@STEP, and the same flags on every host',
        )
    with open_export_folder(output) as folder:
        written = [_write_part(run, part, folder, dtype, shard_bytes) for part in _plan_parts(run)]
        if folder.writes_files:
            exported_run = ExportedRun(run.run_dir, run.step, run.provenance, dtype, license_id)
            write_card(folder.path, exported_run, output.name, written)
    return written


class _Part(NamedTuple):
    """A directory to write.

    Attributes:
      name: path within the export; '' for the export itself.
      max_tokens: maximum tokens of a text in the run, for each side that the directory embeds; 0:
        the limit of the model.
      delimiters: side whose opening and closing delimiters the tokenizer adds; None: the opening
        one is a prompt, or there is none.
    """

    name: str
    max_tokens: Mapping[Side, int]
    delimiters: Side | None


def _plan_parts(run: EarlierRun) -> list[_Part]:
    if run.provenance.template:
        return [_Part('', {'x': 0}, None)]
    data = run.provenance.config['data']
    max_tokens: dict[Side, int] = {side: data[f'max_tokens_{side}'] for side in SIDES}
    tokenizer = run.load_tokenizer()
    if isinstance(tokenizer, PretrainedTokenizer) or tokenizer.closing == 'shared':
        return [_Part('', max_tokens, None)]
    return [_Part(PROMPT_NAMES[side], {side: max_tokens[side]}, side) for side in SIDES]


def _write_part(
    run: EarlierRun, part: _Part, folder: ExportFolder, dtype: str, shard_bytes: int
) -> ExportedPart:
    """Writes one directory of an export.

    Args:
      run: the exported checkpoint.
      part: the directory to write.
      folder: folder of the export. If it has weights of another part, they are linked.
      dtype, shard_bytes: see `export`.
    """
    directory = folder.path / part.name
    directory.mkdir(exist_ok=True)
    sides = tuple(part.max_tokens)
    longest = max(part.max_tokens.values())
    fsdp = _choose_fsdp(run)
    embed = load_embedder(
        run.reference, dtype='float32', max_tokens=longest, base=run.base_path, fsdp=fsdp
    )
    if embed.model_name != run.name:  # the card would describe the checkpoint that is damaged
        raise UserError(
            f'--model {run.reference}: step {run.step} is damaged: export {embed.model_name}'
        )
    encoder_config = embed.encoder.config
    family, config = make_config_json(encoder_config, run.provenance.pretrained, dtype)
    longest = embed.settings['max_tokens_y']
    text = _convert_tokenizer(run, part)
    ids = dict(text.ids)
    if encoder_config.padding_id >= 0:
        # This family counts positions from its own padding id, whatever pads a batch.
        ids['pad_token_id'] = encoder_config.padding_id
    if folder.writes_files:
        _write_tokenizer_files(run, text, directory, embed, longest)
        write_json(directory / 'config.json', config | ids)
    if folder.shared:
        first, *_ = weights = list(folder.shared)
        if folder.writes_files:
            for path in first.parent.glob('model*'):
                _link(path, directory / path.name)
        folder.share_weights([directory / path.name for path in weights])
    else:
        rows = encoder_config.vocab_size
        plan = write_weights(family, embed.encoder, rows, directory, dtype, shard_bytes)
        if folder.writes_files:
            plan.write_index(directory)
        folder.share_weights([directory / file for file in plan.names_by_file])
    golden = make_golden(embed, sides)
    if folder.writes_files:
        write_golden(directory, golden)
    parity = compute_differences(directory, golden, fsdp)
    if folder.writes_files:
        # Vectors may be NaN: the export is written all the same, so that it can be examined.
        write_json(directory / PARITY, _make_parity_report(embed, parity, dtype), allow_nan=True)
    limits = {PROMPT_NAMES[side]: limit or longest for side, limit in part.max_tokens.items()}
    return ExportedPart(
        name=part.name,
        sides=sides,
        prompts=text.prompts,
        max_tokens=longest,
        difference=max(parity.values()),
        kind=config['model_type'],
        width=embed.width,
        shorter={side: limit for side, limit in limits.items() if limit < longest},
    )


def _choose_fsdp(run: EarlierRun) -> int:
    """Returns the number of devices over which one copy of the parameters is sharded: 1 with one
    process, and otherwise as many as possible, because the model may be larger than a host.
    """
    if jax.process_count() == 1:
        return 1
    config = run.encoder_config(run.get_vocab_size(run.load_tokenizer()))
    # Blocks of NF4 are not split.
    has_blocks = run.provenance.has_adapters and run.lora.base == 'nf4'
    width = config.width // BLOCK if has_blocks else config.width
    return math.gcd(jax.device_count(), width, config.embedding_width)


def _convert_tokenizer(run: EarlierRun, part: _Part) -> ExportedTokenizer:
    tokenizer = run.load_tokenizer()
    if isinstance(tokenizer, PretrainedTokenizer):
        assert run.provenance.pretrained is not None
        return export_pretrained_tokenizer(tokenizer, run.provenance.pretrained)
    if run.provenance.template:
        return export_template_tokenizer(tokenizer, run.provenance.begin or ())
    return export_tokenizer(tokenizer, part.delimiters)


def _write_tokenizer_files(
    run: EarlierRun, text: ExportedTokenizer, directory: Path, embed: Embedder, longest: int
) -> None:
    """Writes the tokenizer and, unless texts are in a template, the files of
    sentence-transformers.
    """
    has_own_form = run.provenance.own_tokenizer is not None
    if run.provenance.template and not has_own_form:
        write_tokenizer(directory, text, longest, text.special_tokens)
    else:
        write_layout(directory, text, embed.encoder.config, longest, embed.dense)


def _make_parity_report(
    embed: Embedder, parity: Mapping[Side, float], dtype: str
) -> dict[str, Any]:
    """Returns the content of parity.json."""
    return {
        'model': embed.model_name,
        'weights': dtype,
        'computed_in': 'float32',
        'texts_a_side': len(GOLDEN_TEXTS),
        'largest_difference_of_a_unit': parity,
        'against': "the run's own vectors, after a reload by cpt_jax's importer",
        'libraries': {
            name: importlib.metadata.version(name)
            for name in ('jax', 'flax', 'tokenizers', 'safetensors')
        },
    }


def _link(path: Path, other: Path) -> None:
    """Hard-links a file under another name, or copies it if the file system has no hard links."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)

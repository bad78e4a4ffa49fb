"""Writes a trained model as a directory that other libraries load unchanged, or checks such a
directory.

--model and --output write: config.json and safetensors as transformers reads them (GPT-2's,
LLaMA's, or those of the pretrained model that training started from), tokenizer.json, and the files
of sentence-transformers in the layout that all its versions and text-embeddings-inference read; a
model card (README.md); texts with their vectors (golden.json), and how far a reload through our own
importer is from the run (parity.json). A model whose sides have closing delimiters of their own
(tokenizer.closing='own') becomes two directories, query/ and document/; one that was trained with
'shared' becomes one, with a prompt for each side. One whose texts stand in a template
(prompt.template) becomes a plain model of transformers, without the files of sentence-transformers,
whose prompts have no end.

A run with LoRA (lora.rank) is written with its adapters merged into the weights, those that were
trained beside: of a base in NF4 what the codes stand for. --adapter writes the adapters alone
instead: adapter_config.json and adapter_model.safetensors, which peft loads.

--check DIR goes through the files of any such directory, says what would break where, and ends with
1 if anything would.

Example:
  python launch/export.py --model runs/quickstart --output exports/quickstart
  python launch/export.py --model runs/adapted --adapter --output exports/adapter
  python launch/export.py --check exports/quickstart
"""

import shlex
from pathlib import Path

from absl import flags

from cpt_jax.cli.program import run_program, use_compilation_cache
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.local_path import local_path

_MODEL = flags.DEFINE_string('model', '', 'The run to export: its directory, or run@step.')
_OUTPUT = flags.DEFINE_string('output', '', 'The directory to make.')
_DTYPE = flags.DEFINE_enum(
    'dtype', 'float32', ['float32', 'bfloat16', 'float16'], 'Of the weights.'
)
_SHARD_GB = flags.DEFINE_float(
    'shard_gb', 5.0, 'Gigabytes of weights in a file; more are split.', lower_bound=1e-6
)
_ADAPTER = flags.DEFINE_boolean(
    'adapter',
    False,
    "Of a LoRA run, write the adapter alone, in PEFT's layout, not the merged model.",
)
_LICENSE = flags.DEFINE_string(
    'license', 'unknown', 'For the model card: an identifier such as apache-2.0.'
)
_CHECK = flags.DEFINE_string('check', '', 'Check this directory instead.')


def main() -> None:
    if bool(_CHECK.value) == bool(_MODEL.value or _OUTPUT.value):
        raise UserError('give --model and --output to write a directory, or --check to check one')
    use_compilation_cache()
    if _ADAPTER.value:
        _export_adapter()
    elif _CHECK.value:
        _check(Path(_CHECK.value))
    else:
        _export()


def _export_adapter() -> None:
    from cpt_jax.exporting.adapter import export_adapter

    if not _MODEL.value or not _OUTPUT.value:
        raise UserError('--adapter goes with --model and --output')
    written = export_adapter(_MODEL.value, local_path(_OUTPUT.value, '--output'))
    print(f'{_OUTPUT.value}: an adapter for {written.base}')
    if written.template:
        given = f'--template {shlex.quote(written.template)}'
        print(
            f'its texts stood in a template, which no file of an adapter says: embed or evaluate '
            f'it with {given}'
        )
    if written.rows:
        print(
            f'texts stand between delimiters whose ids the base lacks: '
            f'model.resize_token_embeddings({written.rows}) before'
            ' PeftModel.from_pretrained'
        )


def _export() -> None:
    from cpt_jax.exporting.directory import export
    from cpt_jax.exporting.golden import TOLERANCE

    if not _MODEL.value or not _OUTPUT.value:
        raise UserError('--model and --output go together')
    output = local_path(_OUTPUT.value, '--output')
    parts = export(
        _MODEL.value,
        output,
        dtype=_DTYPE.value,
        shard_bytes=int(_SHARD_GB.value * 1e9),
        license_id=_LICENSE.value,
    )
    for part in parts:
        sides = (
            ' and '.join(part.prompts)
            or part.name
            or 'a plain model of transformers, whose texts stand in a template (see its card)'
        )
        print(
            f'{output / part.name}: {sides}, at most {part.max_tokens} tokens; a reload differs '
            f'by {part.difference:.1e} at most'
        )
    worst = max(part.difference for part in parts)
    if not worst <= TOLERANCE[_DTYPE.value]:  # nor if it is no number
        raise UserError(
            f'--output {output}: written, but a reload differs by {worst:.1e}, and {_DTYPE.value} '
            f'explains {TOLERANCE[_DTYPE.value]:.0e}: look at golden.json before you publish it'
        )
    print(f'model card: {output}/README.md; check it with --check {output}')


def _check(directory: Path) -> None:
    from cpt_jax.exporting.check import check

    for part in [
        directory / name
        for name in ('query', 'document')
        if (directory / name / 'config.json').is_file()
    ] or [directory]:
        report = check(part)
        print(report.table())
        if report.defects:
            raise UserError(
                f'--check {part}: something would break: {len(report.defects)} lines above'
            )


def run() -> None:
    """The console script cpt-export."""
    run_program(main)

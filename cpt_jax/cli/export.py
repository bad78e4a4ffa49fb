"""Exports a trained model for other libraries, or checks an exported directory.

--model and --output write a directory with:
  - config.json and safetensors as transformers reads them (GPT-2's, LLaMA's, or those of the
    pretrained model that training started from), and tokenizer.json
  - the files of sentence-transformers, in the layout that all its versions and
    text-embeddings-inference can read
  - a model card (README.md)
  - texts with their vectors (golden.json), and the largest difference between the run's vectors and
    those after reloading the export with cpt_jax (parity.json)

If each side has its own closing delimiter (tokenizer.closing='own'), there are two directories,
query/ and document/; with 'shared' there is one, with a prompt for each side. A model with a
template (prompt.template) becomes a plain transformers model without the files of
sentence-transformers, because a prompt of sentence-transformers cannot add text at the end.

Adapters of a LoRA run (lora.rank) are merged into the weights that they were trained with; if the
base is in NF4, these are the dequantized weights. With --adapter, only the adapters are written:
adapter_config.json and adapter_model.safetensors, which PEFT loads.

To export a model that is larger than one host, start the same command on several hosts, as for
launch/train.py: they hold the parameters together, and each writes some of the files. --output must
be on a disk that all of them see, or in a bucket.

--check DIR inspects the files of any such directory or adapter, reports what would fail in which
library, and exits with status 1 if anything would fail.

Example:
  python launch/export.py --model runs/quickstart --output exports/quickstart
  python launch/export.py --model runs/adapted --adapter --output exports/adapter
  python launch/export.py --check exports/quickstart
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from cpt_jax.cli.model_flags import define_base_flag
from cpt_jax.cli.program import define_process_flags, run_program, use_compilation_cache
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.paths import make_path
from cpt_jax.storage.remote import fetch

if TYPE_CHECKING:
    # Imports JAX, whose platform is only chosen when the flags are parsed.
    from cpt_jax.exporting.card import ExportedPart

_MODEL = flags.DEFINE_string(
    'model', '', 'Run to export: its directory, RUN@STEP, RUN@best or RUN@best:TASK.'
)
_OUTPUT = flags.DEFINE_string(
    'output', '', 'Directory to create, local or in a bucket (gs://...); must not exist yet.'
)
_DTYPE = flags.DEFINE_enum(
    'dtype', 'float32', ['float32', 'bfloat16', 'float16'], 'Dtype of the exported weights.'
)
_SHARD_GB = flags.DEFINE_float(
    'shard_gb', 5.0, 'Maximum gigabytes of weights per file.', lower_bound=1e-6
)
_ADAPTER = flags.DEFINE_boolean(
    'adapter',
    False,
    "Export only the adapter of a LoRA run, in PEFT's format, instead of the merged model.",
)
_LICENSE = flags.DEFINE_string(
    'license', 'unknown', 'License identifier for the model card, such as apache-2.0.'
)
_BASE = define_base_flag()
_CHECK = flags.DEFINE_string('check', '', 'Directory to check, instead of exporting.')
_join_processes = define_process_flags()


def main() -> None:
    if bool(_CHECK.value) == bool(_MODEL.value or _OUTPUT.value):
        raise UserError('give --model and --output to write a directory, or --check to check one')
    if _ADAPTER.value or _CHECK.value:
        _refuse_process_flags()
    use_compilation_cache()
    if _ADAPTER.value:
        _export_adapter()
    elif _CHECK.value:
        _check_export(fetch(_CHECK.value, '--check'))
    else:
        with _join_processes():
            _export_model()


def _refuse_process_flags() -> None:
    """Raises UserError if a flag names several processes, which would all do the same.

    They are not joined, because on a host of a TPU pod that would wait for the other hosts, even
    with JAX_PLATFORMS=cpu.
    """
    for name in ('coordinator', 'processes', 'process'):
        if flags.FLAGS[name].present:
            raise UserError(f'--{name}: --adapter and --check run on one process: remove the flag')


def _export_adapter() -> None:
    from cpt_jax.exporting.adapter import export_adapter

    if not _MODEL.value or not _OUTPUT.value:
        raise UserError('--adapter needs --model and --output')
    written = export_adapter(_MODEL.value, make_path(_OUTPUT.value, '--output'), _BASE.value)
    print(f'{_OUTPUT.value}: an adapter for {written.base}')
    for note in written.list_notes():
        print(note)
    print(f'check the adapter with --check {_OUTPUT.value}')


def _export_model() -> None:
    import jax  # here, because run_program chooses the platform first

    from cpt_jax.exporting.directory import export
    from cpt_jax.exporting.golden import TOLERANCE

    if not _MODEL.value or not _OUTPUT.value:
        raise UserError('give both --model and --output')
    output = make_path(_OUTPUT.value, '--output')
    parts = export(
        _MODEL.value,
        output,
        dtype=_DTYPE.value,
        shard_bytes=int(_SHARD_GB.value * 1e9),
        license_id=_LICENSE.value,
        base=_BASE.value,
    )
    if jax.process_index() == 0:
        _print_parts(output, parts)
    worst = max(part.difference for part in parts)
    if not worst <= TOLERANCE[_DTYPE.value]:  # also true for NaN
        raise UserError(
            f'--output {output}: written, but vectors after a reload differ by {worst:.1e}; '
            f'rounding to {_DTYPE.value} explains {TOLERANCE[_DTYPE.value]:.0e}: look at '
            f'golden.json before you publish it'
        )
    if jax.process_index() == 0:
        print(f'model card: {output}/README.md; check the export with --check {output}')


def _print_parts(output: Path, parts: 'Sequence[ExportedPart]') -> None:
    """Prints what was written."""
    for part in parts:
        sides = (
            ' and '.join(part.prompts)
            or part.name
            or 'a plain transformers model that needs its template around texts (see its card)'
        )
        print(
            f'{output / part.name}: {sides}, at most {part.max_tokens} tokens; vectors after a '
            f'reload differ by at most {part.difference:.1e}'
        )
        for side, limit in part.shorter.items():
            print(
                f'note: the run truncates a {side} to {limit} tokens; other libraries read up to '
                f'{part.max_tokens}, so a longer {side} gets another vector there'
            )


def _check_export(directory: Path) -> None:
    from cpt_jax.exporting.adapter_check import check_adapter
    from cpt_jax.exporting.check import check
    from cpt_jax.model.adapters.peft import is_adapter_directory

    parts = [
        directory / name
        for name in ('query', 'document')
        if (directory / name / 'config.json').is_file()
    ]
    for part in parts or [directory]:
        report = check_adapter(part) if is_adapter_directory(part) else check(part)
        print(report.format_table())
        if report.defects:
            raise UserError(
                f'--check {part}: {len(report.defects)} defects, listed above, would break a reader'
            )


def run() -> None:
    """Runs the console script cpt-export."""
    run_program(main)

r"""Makes pairs of corpora: reads, filters, removes duplicates, cuts, and writes a data set.

The sources of the config are read in parallel by --workers processes. The result is a tfds data set
of ArrayRecord files, with summary.json (counts) and card.md. `launch/train.py` reads it with a
source {'kind': 'tfds', 'path': DIR}, and the source `text` of configs/cpt_*.py takes DIR as its
path. The result does not depend on the number of workers. If the program is killed, run the same
command again: tasks that are complete are not done again.

It needs the extra `prepare`: pip install -e '.[prepare]'.

Example:
  python launch/prepare.py --config configs/prepare_text.py --output data/pairs --workers 8 \
      --config.sources.text.path=my/notes
"""

from collections.abc import Mapping
from typing import Any

from absl import flags

from cpt_jax.cli.config_flag import define_config_flag
from cpt_jax.cli.program import run_program
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.paths import is_on_bucket, make_path
from cpt_jax.storage.writable import check_writable

_read_config = define_config_flag()
_OUTPUT = flags.DEFINE_string(
    'output', None, 'Directory for the data set, which need not exist.', required=True
)
_WORKERS = flags.DEFINE_integer(
    'workers',
    0,
    'Number of processes, each with one core and up to 1 GB of memory; 0: one per core. On a '
    'cluster, the maximum number of tasks at a time; 0: no limit.',
    lower_bound=0,
)
_DATA_DIR = flags.DEFINE_string(
    'data_dir',
    None,
    'Folder with test sets, as for launch/evaluate.py: pairs that contain one of their texts are '
    'removed, and reported by test set. Default: decontamination.data_dir of the config.',
)
_EXECUTOR = flags.DEFINE_enum(
    'executor',
    'local',
    ['local', 'slurm', 'ray'],
    'Where tasks run: processes of this machine, jobs of Slurm, or a Ray cluster. A cluster must '
    'see --output, the input files and this Python environment.',
)
_SLURM_PARTITION = flags.DEFINE_string('slurm_partition', '', 'Partition for --executor slurm.')
_SLURM_TIME = flags.DEFINE_string(
    'slurm_time', '24:00:00', 'Time limit of a task for --executor slurm.'
)


def main() -> None:
    from cpt_jax.prepare.run import prepare

    output = make_path(_OUTPUT.value, '--output')
    if is_on_bucket(output):
        raise UserError(f'--output {output}: must be a local or mounted directory; copy it later')
    check_writable(output, '--output')
    if _EXECUTOR.value == 'slurm' and not _SLURM_PARTITION.value:
        raise UserError('--executor slurm needs --slurm_partition')
    config = _read_config().config.to_dict()
    if _DATA_DIR.value is not None:
        config.setdefault('decontamination', {})['data_dir'] = _DATA_DIR.value
    summary = prepare(
        config,
        output.absolute(),
        _WORKERS.value,
        _EXECUTOR.value,
        (_SLURM_PARTITION.value, _SLURM_TIME.value),
    )
    if summary is None:
        print(f'submitted to Slurm; {output}/summary.json is written at the end')
    else:
        print(format_summary(summary, output))


def format_summary(summary: Mapping[str, Any], output: object) -> str:
    """Returns the lines that report what came in, what was dropped, and what was written."""
    total = summary['total']
    lines = [
        f'read {total["records"]:,} records of {total["files"]:,} files '
        f'({total["bytes"] / 1e6:,.1f} MB)'
    ]
    for title, counts in (('dropped', total['dropped']), ('unreadable', total['unreadable'])):
        found = [f'{number:,} {reason}' for reason, number in counts.items() if number]
        if found:
            lines.append(f'{title}: {", ".join(found)}')
    sets = summary.get('decontamination', {}).get('sets', {})
    if sets:
        hit = {name: found['pairs'] for name, found in sets.items() if found['pairs']}
        listed = ', '.join(f'{number:,} of {name}' for name, number in hit.items())
        lines.append(f'pairs with texts of {len(sets)} test sets: {listed or "none"}')
    for split, number in summary['pairs'].items():
        documents = total['documents'][split]
        lines.append(f'{split}: {number:,} pairs of {documents:,} documents')
    lines.append(f'written to {output}')
    return '\n'.join(lines)


def run() -> None:
    """Runs the console script cpt-prepare."""
    run_program(main)

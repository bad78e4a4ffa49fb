"""Generates the tables of plans in docs/planning.md.

They list configs with TPU slices on which they fit, for training and for embedding. Programs are
compiled ahead of time, without a TPU.

Example:
  python benchmarks/plans.py --json plans.json --document docs/planning.md

This takes hours on two cores. Each row is in the JSON file as soon as it is compiled, and the same
command goes on after a kill. Rows of other code, or of another JAX or libtpu, are compiled again.
--only NAME compiles the rows of one config; the document keeps the other rows.
"""

import os
from pathlib import Path

os.environ |= {
    'JAX_PLATFORMS': 'cpu',
    'TPU_SKIP_MDS_QUERY': '1',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true',
}

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from importlib.metadata import version
from typing import Any

from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.plan.embedding import AnyPlan, make_embedding_plan
from cpt_jax.plan.forecast import PUBLISHED_MFU
from cpt_jax.plan.planning import make_plan
from cpt_jax.plan.table import format_seconds
from cpt_jax.runs.config_file import load_config
from cpt_jax.storage.atomic_write import write_atomically

ROOT = Path(__file__).resolve().parents[1]

# Training: config (FILE or FILE:ARGUMENT), topology, slices, changed keys.
PLANS = [
    ('quickstart', 'v5e:2x2', 1, {}),
    ('small_pairs', 'v5e:2x2', 1, {}),
    ('small_text', 'v5e:2x2', 1, {}),
    ('lm_tiny', 'v5e:2x2', 1, {}),
    ('base', 'v5e:8x8', 1, {}),
    ('lm_s', 'v5e:8x8', 1, {}),
    ('cpt_s', 'v5e:8x8', 1, {}),
    ('cpt_s', 'v5e:4x4', 1, {'train.encode_chunks': 8}),
    ('cpt_s', 'v6e:4x8', 1, {}),
    ('cpt_s', 'v5e:4x8', 2, {}),
    ('cpt_code_s', 'v5e:8x8', 1, {}),
    ('cpt_m', 'v5e:8x8', 1, {}),
    ('cpt_m', 'v5p:2x4x4', 1, {}),
    ('cpt_code_m', 'v5e:8x16', 1, {}),
    ('cpt_l', 'v5e:16x16', 1, {}),
    ('cpt_l', 'v5p:4x4x4', 1, {}),
    ('cpt_xl', 'v5p:8x8x8', 1, {}),
    ('cpt_xl', 'v5p:4x4x8', 1, {}),
    ('cpt_nli', 'v5e:4x4', 1, {}),
    ('cpt_msmarco', 'v5e:8x8', 1, {}),
    ('prompteol:opt-2.7b', 'v5e:2x4', 1, {}),
    ('prompteol_cse_tiny', 'v5e:2x2', 1, {}),
    ('prompteol_cse:opt-1.3b', 'v5e:2x2', 1, {}),
    ('prompteol_cse:opt-2.7b', 'v5e:2x2', 1, {}),
    ('prompteol_cse:opt-6.7b', 'v5e:2x4', 1, {}),
    ('prompteol_cse:opt-13b', 'v5e:2x4', 1, {}),
    ('prompteol_cse:llama-7b', 'v5e:2x4', 1, {}),
    ('prompteol_cse:llama-13b', 'v5e:2x4', 1, {}),
    ('prompteol_cse:llama-30b', 'v6e:2x4', 1, {}),
    ('prompteol_cse:llama-30b', 'v5e:2x4', 1, {'train.encode_chunks': 5}),
]
# Embedding: config, topology, devices that share one copy of the parameters. The models are
# language models without fine-tuning, as in most of the PromptEOL paper.
EMBEDDINGS = [
    ('prompteol:opt-125m', 'v5e:1x1', 1),
    ('prompteol:opt-350m', 'v5e:1x1', 1),
    ('prompteol:opt-1.3b', 'v5e:1x1', 1),
    ('prompteol:opt-2.7b', 'v5e:1x1', 1),
    ('prompteol:opt-6.7b', 'v5e:1x1', 1),
    ('prompteol:opt-13b', 'v5e:2x2', 4),
    ('prompteol:opt-30b', 'v5e:2x4', 8),
    ('prompteol:opt-66b', 'v5e:4x4', 16),
    ('prompteol:opt-66b', 'v5p:2x2x1', 4),
    ('prompteol:llama-7b', 'v5e:1x1', 1),
    ('prompteol:llama-13b', 'v5e:2x2', 4),
    ('prompteol:llama-30b', 'v5e:2x4', 8),
    ('prompteol:llama-65b', 'v5e:4x4', 16),
]
HEAD = (
    'config',
    'slice',
    'chips',
    'mesh',
    'memory a chip',
    'step at least',
    'forecast',
    'limited by',
    'program / model',
    'MFU at most',
    'MFU forecast',
    "MaxText's MFU",
    'compiled in',
)
EMBEDDING_HEAD = (
    *HEAD[:5],
    'texts a second at most',
    *HEAD[6:11],
    'compiled in',
)
Row = dict[str, Any]


def load_named_config(name: str) -> dict[str, Any]:
    """Returns the config of a name in the tables, such as 'cpt_s' or 'prompteol:opt-13b'."""
    file, colon, argument = name.partition(':')
    return load_config(f'{ROOT}/configs/{file}.py{colon}{argument}')


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the tables that is still to be compiled.

    Attributes:
      config: name of the config.
      topology: a TPU slice, such as v5e:8x8.
      slices: number of slices.
      changes: changed keys of the config and their values.
      fsdp: devices that share one copy of an embedder's parameters; 0 for training.
    """

    config: str
    topology: str
    slices: int = 1
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fsdp: int = 0

    def is_case_of(self, row: Row) -> bool:
        """Returns whether the row is this case, of this code and the installed JAX and libtpu."""
        wanted = dataclasses.asdict(self) | {
            'jax': version('jax'),
            'libtpu': version('libtpu'),
            'code': compute_code_digest(),
        }
        return all(row.get(key) == value for key, value in wanted.items())


@functools.cache
def compute_code_digest() -> str:
    """Returns a digest of the package and the configs.

    The commit would not do: it also changes with the document that this program writes.
    """
    digest = blake2b(digest_size=8)
    for folder in ('cpt_jax', 'configs'):
        for path in sorted((ROOT / folder).rglob('*.py')):
            digest.update(f'{path.relative_to(ROOT)} {path.stat().st_size} '.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def list_cases(names: Sequence[str] = ()) -> list[Case]:
    """Returns the rows of both tables; with `names`, only those of these configs."""
    cases = [Case(*case) for case in PLANS]
    cases += [Case(name, topology, fsdp=fsdp) for name, topology, fsdp in EMBEDDINGS]
    return [case for case in cases if not names or case.config in names]


def compile_case(case: Case) -> Row:
    """Compiles the program of a row; returns the values of its plan."""
    config = load_named_config(case.config)
    for key, value in case.changes.items():
        section, leaf = key.split('.')
        config[section][leaf] = value
    plan: AnyPlan
    if case.fsdp:
        plan = make_embedding_plan(config, case.topology, fsdp=case.fsdp)
    else:
        plan = make_plan(config, case.topology, case.slices)
    about = {'config': case.config, 'changes': dict(case.changes), 'fsdp': case.fsdp}
    return about | {'code': compute_code_digest()} | dataclasses.asdict(plan)


def make_rows(
    cases: Sequence[Case], path: Path | None, compile_row: Callable[[Case], Row] = compile_case
) -> list[Row]:
    """Returns the rows of all cases; each is reported, and stored in `path`, as soon as it exists.

    Args:
      cases: what to compile.
      path: JSON file of rows. Those that it has and that are current are not compiled again, so a
        run that was killed goes on where it was.
      compile_row: compiles one case.
    """
    stored: list[Row] = []
    if path and path.exists():
        stored = json.loads(path.read_text())
    rows = []
    for case in cases:
        row = next((row for row in stored if case.is_case_of(row)), None)
        if row is None:
            row = compile_row(case)
            stored.append(row)
            if path:
                write_atomically(path, json.dumps(stored, indent=2) + '\n')
        rows.append(row)
        cells = make_cells(row)
        print(*cells[:2], cells[HEAD.index('forecast')] or 'does not fit', flush=True)
    return rows


def make_cells(row: Row) -> list[str]:
    """Returns the cells of a row of a table."""
    slices = f'{row["slices"]} x {row["topology"]}' if row['slices'] > 1 else row['topology']
    mesh = ' x '.join(f'{axis} {size}' for axis, size in row['mesh'].items() if size > 1)
    memory = f'{row["hbm_bytes_per_chip"] / 2**30:.1f} of {row["hbm_limit_bytes"] / 2**30:.1f} GiB'
    changed_keys = [f'`{key.partition(".")[2]}={value}`' for key, value in row['changes'].items()]
    first = [', '.join([f'`{row["config"]}`', *changed_keys]), slices, str(row['chips']), mesh]
    compiled_in = format_seconds(row['compile_seconds'])
    if row['lower_bound_seconds'] is None:
        blanks = [''] * (len(EMBEDDING_HEAD if row['fsdp'] else HEAD) - 6)
        return [*first, f'{memory}: does not fit', *blanks, compiled_in]
    bounds = {name: row[f'{name}_seconds'] for name in ('compute', 'memory', 'network')}
    limit = max(bounds, key=bounds.__getitem__).replace('compute', 'arithmetic')
    times = [row['lower_bound_seconds'], row['forecast_seconds']]
    speeds = [format_seconds(seconds) for seconds in times]
    if row['fsdp']:
        speeds = [f'{row["texts_per_step"] / seconds:,.0f}' for seconds in times]
    ratio = f'{row["compiled_flops_per_step"] / row["model_flops_per_step"]:.2f}'
    mfu = [f'{row["mfu_bound"]:.0%}', f'{row["mfu_forecast"]:.0%}']
    published = PUBLISHED_MFU.get(row['topology'].partition(':')[0])
    if not row['fsdp']:  # MaxText's are of training
        mfu.append(f'{100 * published.low:.0f} to {published.high:.0%}' if published else '')
    return [*first, memory, *speeds, limit, ratio, *mfu, compiled_in]


def format_row(cells: Sequence[str]) -> str:
    """Returns a row of a Markdown table."""
    return f'| {" | ".join(cells)} |'


def replace_rows(text: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a document with new rows of the table that has this head.

    A row replaces the one with equal first two cells (config and slice); others stay as they are.
    """
    lines = text.splitlines()
    first = lines.index(format_row(head)) + 2
    last = next((index for index in range(first, len(lines)) if not lines[index]), len(lines))
    new = {tuple(row[:2]): format_row(row) for row in rows}
    for index in range(first, last):
        cells = lines[index].strip('| ').split(' | ')
        lines[index] = new.pop(tuple(cells[:2]), lines[index])
    return '\n'.join([*lines[:last], *new.values(), *lines[last:]]) + '\n'


def main() -> None:
    rows = make_rows(list_cases(_ONLY.value), Path(_JSON.value) if _JSON.value else None)
    tables = [
        (HEAD, [make_cells(row) for row in rows if not row['fsdp']]),
        (EMBEDDING_HEAD, [make_cells(row) for row in rows if row['fsdp']]),
    ]
    for head, table in tables:
        print('\n'.join(['', *map(format_row, [head, ['---'] * len(head), *table])]))
    if _DOCUMENT.value:
        path = Path(_DOCUMENT.value)
        text = path.read_text()
        for head, table in tables:
            text = replace_rows(text, head, table)
        write_atomically(path, text)


if __name__ == '__main__':
    # Flags are defined here because tests import several of these modules.
    _JSON = flags.DEFINE_string(
        'json', '', 'File for all values of all plans. Rows that it has are not compiled again.'
    )
    _ONLY = flags.DEFINE_list('only', [], 'Names of the configs to plan. Default: all.')
    _DOCUMENT = flags.DEFINE_string(
        'document', '', 'Also write the rows into the tables of this file, docs/planning.md.'
    )
    run_program(main)

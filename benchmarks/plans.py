"""Generates the tables of plans in docs/planning.md.

They list configs with TPU slices on which they fit, for training and for embedding. Programs are
compiled ahead of time, without a TPU.

Example:
  python benchmarks/plans.py --json plans.json

This takes about two hours on two cores, most of it for QLoRA; --only NAME generates the rows of one
config. Times are lower bounds: arithmetic, memory and network each at their peak rate and fully
overlapped.
"""

import os
from pathlib import Path

os.environ |= {
    'JAX_PLATFORMS': 'cpu',
    'TPU_SKIP_MDS_QUERY': '1',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true',
}

import dataclasses
import json
from typing import Any

from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.runs.config_file import load_config

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
    'limited by',
    'program / model',
    'MFU at most',
)
EMBEDDING_HEAD = tuple(
    'texts a second at most' if name == 'step at least' else name for name in HEAD
)


def load_named_config(name: str) -> dict[str, Any]:
    """Returns the config of a name in the tables, such as 'cpt_s' or 'prompteol:opt-13b'."""
    file, colon, argument = name.partition(':')
    return load_config(f'{ROOT}/configs/{file}.py{colon}{argument}')


def main() -> None:
    from cpt_jax.plan.embedding import make_embedding_plan
    from cpt_jax.plan.planning import make_plan

    def is_selected(name: str) -> bool:
        return not _ONLY.value or name in _ONLY.value

    found = []

    def report(name: str, changes: dict, plan) -> None:
        found.append({'config': name, 'changes': changes} | dataclasses.asdict(plan))
        print(_format_row(_make_cells(name, changes, plan)), flush=True)
        if _JSON.value:
            Path(_JSON.value).write_text(json.dumps(found, indent=2) + '\n')

    _print_head(HEAD)
    for name, topology, slices, changes in PLANS:
        if is_selected(name):
            config = load_named_config(name)
            for key, value in changes.items():
                section, leaf = key.split('.')
                config[section][leaf] = value
            report(name, changes, make_plan(config, topology, slices))
    print()
    _print_head(EMBEDDING_HEAD)
    for name, topology, fsdp in EMBEDDINGS:
        if is_selected(name):
            plan = make_embedding_plan(load_named_config(name), topology, fsdp=fsdp)
            report(name, {}, plan)


def _make_cells(name: str, changes: dict, plan) -> list[str]:
    from cpt_jax.plan.embedding import EmbeddingPlan

    slices = f'{plan.slices} x {plan.topology}' if plan.slices > 1 else plan.topology
    mesh = ' x '.join(f'{axis} {size}' for axis, size in plan.mesh.items() if size > 1)
    memory = f'{plan.hbm_bytes_per_chip / 2**30:.1f} of {plan.hbm_limit_bytes / 2**30:.1f} GiB'
    changed_keys = [f'`{key.partition(".")[2]}={value}`' for key, value in changes.items()]
    config = ', '.join([f'`{name}`', *changed_keys])
    if plan.lower_bound_seconds is None:
        return [config, slices, str(plan.chips), mesh, f'{memory}: does not fit', '', '', '', '']
    bounds = {
        'arithmetic': plan.compute_seconds,
        'memory': plan.memory_seconds,
        'network': plan.network_seconds,
    }
    seconds = plan.lower_bound_seconds
    speed = f'{seconds:.2f} s' if seconds >= 0.1 else f'{seconds * 1e3:.2g} ms'
    if isinstance(plan, EmbeddingPlan):
        speed = f'{plan.texts_per_second_bound:,.0f}'
    return [
        config, slices, str(plan.chips), mesh, memory, speed,
        max(bounds, key=bounds.__getitem__),
        f'{plan.compiled_flops_per_step / plan.model_flops_per_step:.2f}', f'{plan.mfu_bound:.0%}',
    ]  # fmt: skip


def _print_head(head: tuple[str, ...]) -> None:
    print(_format_row(head) + '\n' + _format_row(['---'] * len(head)), flush=True)


def _format_row(cells) -> str:
    return f'| {" | ".join(cells)} |'


if __name__ == '__main__':
    # Flags are defined here because tests import several of these modules.
    _JSON = flags.DEFINE_string('json', '', 'Also write all values of all plans to this file.')
    _ONLY = flags.DEFINE_list('only', [], 'Names of the configs to plan. Default: all.')
    run_program(main)

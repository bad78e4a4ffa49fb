"""Contrastive training from a language model against the same from scratch, in the same time:
held-out code search.

Example:
  python benchmarks/lm_start.py --seeds=3

Both train configs/lm_tiny.py's transformer on docstrings and functions of the Python installation
with configs/quickstart.py's batches. One side spends part of its time as a language model. How many
steps of the other that costs is measured first, the two taking turns.
"""

import json
import statistics
import tempfile
from pathlib import Path

from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.runs.config_file import load_config
from cpt_jax.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    language, contrastive = configs()
    seconds = step_seconds({'lm': language, 'pairs': contrastive})
    more = round(_LM_STEPS.value * seconds['lm'] / seconds['pairs'])
    print(
        f'processor time of a step: {seconds["lm"]:.2f} s of the language model, '
        f'{seconds["pairs"]:.2f} s of pairs'
    )
    print(f'the {_LM_STEPS.value} steps of the one cost {more} of the other')
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(_WORKDIR.value or temporary)
        for seed in range(_SEEDS.value):
            rows.append(compare(language, contrastive, seed, more, folder))
            print(f'seed {seed}: {json.dumps(rows[-1])}', flush=True)
    found = {
        'ratio': mean(rows, 'mrr_from_lm') / mean(rows, 'mrr_from_scratch'),
        'seconds': seconds,
        'steps_for_lm': more,
        'seeds': rows,
    }
    print(
        '\n| seed | bits per byte (unigram) | MRR from the language model | MRR from scratch |\n| '
        '--- | --- | --- | --- |'
    )
    for row in rows:
        bits = f'{row["bits_per_byte"]:.3f} ({row["unigram"]:.3f})'
        print(
            f'| {row["seed"]} | {bits} | {row["mrr_from_lm"]:.4f} | {row["mrr_from_scratch"]:.4f} |'
        )
    print(f'| mean | | {mean(rows, "mrr_from_lm"):.4f} | {mean(rows, "mrr_from_scratch"):.4f} |')
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(found, indent=2) + '\n')


def step_seconds(sides: dict[str, dict]) -> dict[str, float]:
    """Of processors, which other programs disturb less than the clock; medians over turns."""
    from training import TrainingStep, run_of
    from turns import Moment

    steps = {name: TrainingStep(run_of(config, 'config'), 4) for name, config in sides.items()}
    found: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(_REPEATS.value + 1):
        for name, step in steps.items():
            start = Moment.now()
            step()
            if turn:
                found[name].append(start.until(Moment.now())['cpu_seconds'])
    return {name: statistics.median(values) for name, values in found.items()}


def configs() -> tuple[dict, dict]:
    """Of the language model and of the contrastive runs, which have its transformer and the same
    sort of tokenizer.
    """
    if _LM_STEPS.value < 2 or _STEPS.value < 2:
        raise UserError('--lm_steps and --steps must be 2 or more')
    language, contrastive = (
        load_config(ROOT / f'configs/{name}.py') for name in ('lm_tiny', 'quickstart')
    )
    for config in (language, contrastive):
        config['checkpoint'] |= {'every_steps': 10**6, 'keep_every': 0}
        config['evaluation']['every_steps'] = 10**6  # at the last step alone
        config['data']['row_choices'] = 1
    language['train']['steps'] = _LM_STEPS.value
    language['optimizer']['warmup_steps'] = min(
        language['optimizer']['warmup_steps'], _LM_STEPS.value // 4
    )
    contrastive['tokenizer'] = language['tokenizer']
    # The better one from scratch (cpt_jax/model/initializers.py).
    contrastive['model'] = language['model'] | {'init': 'passthrough'}
    contrastive['train'] |= {'steps': _STEPS.value, 'batch_pairs': _PAIRS.value}
    return language, contrastive


def compare(language: dict, contrastive: dict, seed: int, more: int, folder: Path) -> dict:
    """Three runs of a seed: the language model, from it, and from scratch with `more` steps."""
    start = str(folder / f'lm{seed}')
    before = last_row(language, seed, Path(start), steps=language['train']['steps'])
    steps = contrastive['train']['steps']
    from_lm = last_row(contrastive | {'init_from': start}, seed, folder / f'from_lm{seed}', steps)
    scratch = last_row(contrastive, seed, folder / f'scratch{seed}', steps + more)
    row = {
        'seed': seed,
        'bits_per_byte': before['heldout_bits_per_byte'],
        'unigram': before['unigram_bits_per_byte'],
    }
    return row | {'mrr_from_lm': from_lm['heldout_mrr'], 'mrr_from_scratch': scratch['heldout_mrr']}


def last_row(config: dict, seed: int, workdir: Path, steps: int) -> dict:
    """Of the metrics of a run."""
    from cpt_jax.training.loop import train

    warmup = min(config['optimizer']['warmup_steps'], steps // 4)
    changes = {
        'seed': seed,
        'train': config['train'] | {'steps': steps},
        'optimizer': config['optimizer'] | {'warmup_steps': warmup},
    }
    if train(config | changes, workdir):
        raise UserError('stopped by SIGTERM: with --workdir it goes on when started again')
    return json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[-1])


def mean(rows: list[dict], name: str) -> float:
    return statistics.mean(row[name] for row in rows)


if __name__ == '__main__':
    # Here, as the tests import several of these programs.
    _SEEDS = flags.DEFINE_integer('seeds', 3, 'Runs of each side.', lower_bound=1)
    _LM_STEPS = flags.DEFINE_integer(
        'lm_steps', 150, 'Of the language model, with the batches of configs/lm_tiny.py.'
    )
    _STEPS = flags.DEFINE_integer('steps', 100, 'Of the contrastive run that starts from it.')
    _PAIRS = flags.DEFINE_integer('pairs', 128, 'In a contrastive batch.')
    _REPEATS = flags.DEFINE_integer(
        'repeats', 5, 'Steps of each side that are timed.', lower_bound=1
    )
    _WORKDIR = flags.DEFINE_string(
        'workdir', '', 'Keep the runs in this folder; started again it goes on.'
    )
    _JSON = flags.DEFINE_string('json', '', 'Also write the figures to this file.')
    run_program(main)

"""Compares contrastive training from a language model with training from scratch, at equal time.

The metric is held-out code search.

Example:
  python benchmarks/lm_start.py --seeds=3

Both sides train the transformer of configs/lm_tiny.py on docstrings and functions of the Python
installation, with the data of configs/quickstart.py. One side is first trained as a language model.
The program first times both kinds of step in turn; the side from scratch gets as many more steps as
the language model's steps cost.
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
    language, contrastive = load_configs()
    seconds = time_steps({'lm': language, 'pairs': contrastive}, _REPEATS.value)
    extra_steps = round(_LM_STEPS.value * seconds['lm'] / seconds['pairs'])
    print(
        f'CPU time of a step: {seconds["lm"]:.2f} s for the language model, '
        f'{seconds["pairs"]:.2f} s for pairs'
    )
    print(f'{_LM_STEPS.value} steps of the language model cost {extra_steps} steps of pairs')
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(_WORKDIR.value or temporary)
        for seed in range(_SEEDS.value):
            rows.append(compare(language, contrastive, seed, extra_steps, folder))
            print(f'seed {seed}: {json.dumps(rows[-1])}', flush=True)
    found = {
        'ratio': compute_mean(rows, 'mrr_from_lm') / compute_mean(rows, 'mrr_from_scratch'),
        'seconds': seconds,
        'steps_for_lm': extra_steps,
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
    from_lm = compute_mean(rows, 'mrr_from_lm')
    from_scratch = compute_mean(rows, 'mrr_from_scratch')
    print(f'| mean | | {from_lm:.4f} | {from_scratch:.4f} |')
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(found, indent=2) + '\n')


def time_steps(sides: dict[str, dict], repeats: int) -> dict[str, float]:
    """Returns the CPU seconds of a training step of each config, as medians over turns.

    Other programs disturb CPU time less than wall-clock time.
    """
    from training import TrainingStep, make_run
    from turns import Moment

    steps = {name: TrainingStep(make_run(config, 'config'), 4) for name, config in sides.items()}
    found: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            start = Moment.now()
            step()
            if turn:
                found[name].append(start.until(Moment.now())['cpu_seconds'])
    return {name: statistics.median(values) for name, values in found.items()}


def load_configs() -> tuple[dict, dict]:
    """Returns the configs of the language model and of the contrastive runs.

    Both have the same transformer and the same tokenizer settings.
    """
    if _LM_STEPS.value < 2 or _STEPS.value < 2:
        raise UserError('--lm_steps and --steps must be 2 or more')
    language, contrastive = (
        load_config(ROOT / f'configs/{name}.py') for name in ('lm_tiny', 'quickstart')
    )
    for config in (language, contrastive):
        config['checkpoint'] |= {'every_steps': 10**6, 'keep_every': 0}
        config['evaluation']['every_steps'] = 10**6  # only at the last step
        config['data']['row_choices'] = 1
    language['train']['steps'] = _LM_STEPS.value
    language['optimizer']['warmup_steps'] = min(
        language['optimizer']['warmup_steps'], _LM_STEPS.value // 4
    )
    contrastive['tokenizer'] = language['tokenizer']
    # The better initialization from scratch (cpt_jax/model/initializers.py).
    contrastive['model'] = language['model'] | {'init': 'passthrough'}
    contrastive['train'] |= {'steps': _STEPS.value, 'batch_pairs': _PAIRS.value}
    contrastive['optimizer']['warmup_steps'] = min(
        contrastive['optimizer']['warmup_steps'], _STEPS.value // 4
    )
    return language, contrastive


def compare(language: dict, contrastive: dict, seed: int, extra_steps: int, folder: Path) -> dict:
    """Trains three runs with a seed: the language model, a contrastive run from it, and one from
    scratch with `extra_steps` more steps.

    Returns:
      The final metrics: bits per byte of the language model, and MRR of the contrastive runs.
    """
    lm_workdir = folder / f'lm{seed}'
    lm = train_run(language, seed, lm_workdir, steps=language['train']['steps'])
    steps = contrastive['train']['steps']
    from_lm_config = contrastive | {'init_from': str(lm_workdir)}
    from_lm = train_run(from_lm_config, seed, folder / f'from_lm{seed}', steps)
    scratch = train_run(contrastive, seed, folder / f'scratch{seed}', steps + extra_steps)
    return {
        'seed': seed,
        'bits_per_byte': lm['heldout_bits_per_byte'],
        'unigram': lm['unigram_bits_per_byte'],
        'mrr_from_lm': from_lm['heldout_mrr'],
        'mrr_from_scratch': scratch['heldout_mrr'],
    }


def train_run(config: dict, seed: int, workdir: Path, steps: int) -> dict:
    """Trains a run; returns its metrics at the last step."""
    from cpt_jax.training.loop import train

    warmup = min(config['optimizer']['warmup_steps'], steps // 4)
    changes = {
        'seed': seed,
        'train': config['train'] | {'steps': steps},
        'optimizer': config['optimizer'] | {'warmup_steps': warmup},
    }
    if train(config | changes, workdir):
        raise UserError('stopped by SIGTERM; with --workdir, the same command resumes')
    return json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[-1])


def compute_mean(rows: list[dict], name: str) -> float:
    """Returns the mean of a metric over seeds."""
    return statistics.mean(row[name] for row in rows)


if __name__ == '__main__':
    # Flags are defined here because tests import several of these modules.
    _SEEDS = flags.DEFINE_integer(
        'seeds', 3, 'Number of seeds, each with one run per side.', lower_bound=1
    )
    _LM_STEPS = flags.DEFINE_integer(
        'lm_steps', 150, 'Steps of the language model, with the batches of configs/lm_tiny.py.'
    )
    _STEPS = flags.DEFINE_integer(
        'steps', 100, 'Steps of the contrastive run from the language model.'
    )
    _PAIRS = flags.DEFINE_integer('pairs', 128, 'Pairs in a contrastive batch.')
    _REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed steps of each side.', lower_bound=1)
    _WORKDIR = flags.DEFINE_string(
        'workdir', '', 'Keep the runs in this folder; the same command resumes them.'
    )
    _JSON = flags.DEFINE_string('json', '', 'Also write the results to this file.')
    run_program(main)

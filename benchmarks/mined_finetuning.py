r"""Fine-tunes a model on a BEIR collection without and with mined negatives, and compares nDCG@10.

The pairs are the relevant documents of the queries in qrels/train.tsv, the score is that of
qrels/test.tsv. The arms train on the same pairs, in the same order for the same seed:

  in-batch           in-batch negatives alone
  mask_margin        the same, without those that the margin masks (loss.mask_margin)
  mined              with the nearest documents that are no positives
  mined-max_share    with those that have at most 95 % of the positive's score
  mined-mask_margin  those of mined, without the negatives that the margin masks

The margin of 0.1 above the positive's cosine, by the model's own scores, is that of Qwen3-Embedding
(arXiv 2506.05176). Intervals are those of evaluate.py: bootstrap over the test queries, each with
its mean score over the seeds; for a difference, the same queries are drawn for both arms.

Everything is done by the programs in launch/, which resume: the same command continues after a
kill, and arms that have a score are not trained again.

Example:
  python benchmarks/mined_finetuning.py --model models/all-MiniLM-L6-v2 \
      --data_dir data --collection scifact --output runs/mined --json mined_finetuning.json

In the JSON, `ratio` is the mean score of mined-max_share over that of in-batch.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from etils import epath

from cpt_jax.cli.program import run_program
from cpt_jax.evals.intervals.bootstrap import DESCRIPTION, compute_interval
from cpt_jax.evals.intervals.item_scores import QueryScores, read_item_scores
from cpt_jax.runtime.errors import UserError

# Flags of launch/mine.py by arm; None: no mined negatives.
MINING = {
    'in-batch': None,
    'mask_margin': None,
    'mined': ['--max_share=inf'],
    'mined-max_share': ['--max_share=0.95'],
    'mined-mask_margin': ['--max_share=inf'],
}
BASELINE = 'in-batch'
METRIC = 'ndcg@10'

_MODEL = flags.DEFINE_string('model', None, 'Directory of the model to start from.', required=True)
_DATA_DIR = flags.DEFINE_string('data_dir', 'data', 'Folder with retrieval/COLLECTION.')
_COLLECTION = flags.DEFINE_string('collection', 'scifact', 'Collection with a train split.')
_OUTPUT = flags.DEFINE_string('output', 'runs/mined', 'Folder of the rows, runs and scores.')
_ARMS = flags.DEFINE_list('arms', [*MINING], 'Arms to compare.')
_SEEDS = flags.DEFINE_integer('seeds', 3, 'Seeds of each arm.', lower_bound=1)
_RANGE = flags.DEFINE_string('range', '0:50', '--range of launch/mine.py.')
_NEGATIVES = flags.DEFINE_integer('negatives', 3, 'Mined negatives per pair.', lower_bound=1)
_MASK_MARGIN = flags.DEFINE_float('mask_margin', 0.1, 'loss.mask_margin of the arms with it.')
_BATCH = flags.DEFINE_integer('batch', 32, 'Pairs in a batch.', lower_bound=2)
_EPOCHS = flags.DEFINE_float('epochs', 1.0, 'How often the pairs are read.')
_PEAK_LR = flags.DEFINE_float('peak_lr', 2e-5, 'Maximum learning rate.')
_MAX_TOKENS = flags.DEFINE_integer('max_tokens', 128, 'Maximum tokens of a document in training.')
_JSON = flags.DEFINE_string('json', '', 'Also write the results to this file.')

ROOT = Path(__file__).parents[1]


def main() -> None:
    output = Path(_OUTPUT.value).absolute()
    scores = {'start': [_evaluate(_MODEL.value, output / 'start')]}
    for arm in _ARMS.value:
        rows = _mine(arm, output)
        scores[arm] = [_train(arm, rows, seed, output) for seed in range(_SEEDS.value)]
    summaries = _summarize(scores)
    _print_table(summaries)
    if _JSON.value:
        means = {arm: summary['mean'] for arm, summary in summaries.items()}
        ratio = means.get('mined-max_share', 0.0) / means.get(BASELINE, 1.0)
        results = {'ratio': ratio, 'arms': summaries, 'flags': _get_settings()}
        Path(_JSON.value).write_text(json.dumps(results, indent=2) + '\n')


def _summarize(scores: dict[str, list[QueryScores]]) -> dict[str, dict[str, Any]]:
    """Returns mean, interval and seeds of each arm, and its difference to the baseline."""
    # All evaluations have the same queries in the same order.
    means = {arm: np.mean([one.values[METRIC] for one in each], 0) for arm, each in scores.items()}
    drawn = QueryScores(items='', values=means).draw_scores()
    summaries: dict[str, dict[str, Any]] = {}
    for arm, each in scores.items():
        summary = {'mean': float(means[arm].mean()), 'interval': compute_interval(drawn[arm])}
        summary['seeds'] = [float(one.values[METRIC].mean()) for one in each]
        if BASELINE in scores and arm != BASELINE:
            summary['difference'] = float((means[arm] - means[BASELINE]).mean())
            summary['difference_interval'] = compute_interval(drawn[arm] - drawn[BASELINE])
        summaries[arm] = summary
    return summaries


def _print_table(summaries: dict[str, dict[str, Any]]) -> None:
    print(f'\nnDCG@10 of {_COLLECTION.value}, test, x100; {_SEEDS.value} seeds')
    print(f'{"":<18}{"mean":<24}{"std":<6}{f"minus {BASELINE}":<26}each seed')
    for arm, summary in summaries.items():
        low, high = (100 * bound for bound in summary['interval'])
        mean = f'{100 * summary["mean"]:.2f} ({low:.2f} to {high:.2f})'
        seeds = summary['seeds']
        spread = f'{100 * statistics.stdev(seeds):.2f}' if len(seeds) > 1 else ''
        difference = ''
        if 'difference' in summary:
            low, high = (100 * bound for bound in summary['difference_interval'])
            difference = f'{100 * summary["difference"]:+.2f} ({low:+.2f} to {high:+.2f})'
        each = '  '.join(f'{100 * score:.2f}' for score in seeds)
        print(f'{arm:<18}{mean:<24}{spread:<6}{difference:<26}{each}')
    print(DESCRIPTION)


def _mine(arm: str, output: Path) -> Path:
    """Mines the rows of an arm; returns their file."""
    # In-batch negatives alone: data.negatives=0 ignores those of any file.
    given = MINING[arm] or ['--max_share=0.95']
    path = output / f'{"mined" if given == MINING["mined"] else "mined-max_share"}.jsonl'
    if not path.exists():
        _run(
            'mine',
            f'--model={_MODEL.value}',
            f'--data={_DATA_DIR.value}/retrieval/{_COLLECTION.value}',
            f'--output={path}',
            f'--work_dir={output / "work"}',
            f'--range={_RANGE.value}',
            f'--negatives={_NEGATIVES.value}',
            *given,
        )
    return path


def _train(arm: str, rows: Path, seed: int, output: Path) -> QueryScores:
    """Trains an arm with a seed; returns its scores."""
    run = output / f'{arm}-{seed}'
    if not (run / 'results.json').exists():
        negatives = 0 if MINING[arm] is None else _NEGATIVES.value
        source = 'config.data.sources.pairs'
        masks = arm.endswith('mask_margin')
        _run(
            'train',
            f'--config={ROOT}/configs/finetune.py:{_MODEL.value}',
            f'--workdir={run}',
            f'--{source}.path={rows}',
            f'--{source}.holdout=0.0',
            f'--config.seed={seed}',
            f'--config.data.negatives={negatives}',
            f'--config.data.max_tokens_y={_MAX_TOKENS.value}',
            f'--config.train.batch_pairs={_BATCH.value}',
            f'--config.train.epochs={_EPOCHS.value}',
            f'--config.optimizer.peak_lr={_PEAK_LR.value}',
            '--config.evaluation.patience=0',
            '--config.checkpoint.keep_best=False',
            *([f'--config.loss.mask_margin={_MASK_MARGIN.value}'] if masks else []),
        )
    return _evaluate(str(run), run)


def _evaluate(model: str, output: Path) -> QueryScores:
    """Returns the scores of a model on the test queries."""
    path = output / 'results.json'
    task = f'retrieval/{_COLLECTION.value}'
    if not path.exists():
        _run(
            'evaluate',
            f'--model={model}',
            f'--tasks={task}',
            f'--data_dir={_DATA_DIR.value}',
            f'--output={output}',
            '--baselines=none',
        )
    row = json.loads(path.read_text())['tasks'][task]
    scores = read_item_scores(epath.Path(output), task, row['main_score'])
    if not isinstance(scores, QueryScores):
        raise UserError(f'{output}: no scores of its queries: remove {path} and start again')
    return scores


def _run(program: str, *given: str) -> None:
    print(f'launch/{program}.py {" ".join(given)}', flush=True)
    command = [sys.executable, str(ROOT / 'launch' / f'{program}.py'), *given]
    subprocess.run(command, check=True)


def _get_settings() -> dict[str, object]:
    names = 'model collection range negatives mask_margin batch epochs peak_lr max_tokens'.split()
    return {name: flags.FLAGS[name].value for name in names}


if __name__ == '__main__':
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    run_program(main)

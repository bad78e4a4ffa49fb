r"""Trains a search model for one domain along the whole road, and scores every stage.

  small model    the quickstart's model, from random weights, for comparison
  contrastive    a language model, trained on the pairs with in-batch negatives
  mined          that model, trained further with hard negatives that it has mined itself
  merged         the mean of the weights of the two

The merged model is exported. Each stage is a command of launch/, which is printed, so that you can
change it. The pairs are docstrings and functions of the Python installation, tested
on packages that are held out, or your own with --pairs, --tasks and --data_dir.

Example:
  python benchmarks/fetch_models.py --folder models
  python benchmarks/whole_road.py --output runs/road --json whole_road.json \
      --language_model models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf

Finished commands are not repeated: the same command continues after a kill.
"""

import json
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.data.pairs import spread_indices
from cpt_jax.data.sources.python_source import PythonSource
from cpt_jax.evals.store.results import format_score
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_rows import append_row, read_complete_rows
from sweep import run_command

COMMANDS = 'commands.jsonl'
SOURCE = '--config.data.sources.pairs'


def main() -> None:
    road = Road(Path(_OUTPUT.value).absolute())
    pairs = Path(_PAIRS.value).absolute() if _PAIRS.value else write_pairs(road.folder)
    sample = write_sample(pairs, road.folder, _MINED_PAIRS.value)
    contrastive, mined, merged = (road.folder / name for name in ('contrastive', 'mined', 'merged'))
    language_model = f'--config.init_from={Path(_LANGUAGE_MODEL.value).absolute()}'

    road.train('small model', road.folder / 'small', f'{SOURCE}.path={pairs}')
    large = [
        '--config.model.remat=full',  # a model of 135M parameters then trains in 6 GB
        '--config.model.layer_loop=scan',
        f'--config.train.batch_pairs={_BATCH.value}',
        '--config.optimizer.warmup_steps=6',
    ]
    road.train(
        'contrastive',
        contrastive,
        language_model,
        *large,
        f'{SOURCE}.path={pairs}',
        f'--config.train.steps={_STEPS.value}',
        f'--config.optimizer.peak_lr={_PEAK_LR.value}',
    )
    rows = road.folder / 'mined.jsonl'
    road.run(
        'mined',
        'mine',
        f'--model={contrastive}',
        f'--data={sample}',
        f'--output={rows}',
        '--range=5:50',
        '--negatives=1',
        '--max_share=0.95',
    )
    road.train(
        'mined',
        mined,
        f'--config.init_from={contrastive}',
        *large,
        f'{SOURCE}.path={rows}',
        '--config.data.negatives=1',
        f'--config.train.steps={_MINED_STEPS.value}',
        f'--config.optimizer.peak_lr={_PEAK_LR.value / 3:.3g}',
    )
    road.run('merged', 'merge', f'--models={contrastive},{mined}', f'--output={merged}')
    road.evaluate('merged', merged)
    road.print_table()
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(road.summarize(), indent=2) + '\n')
    road.run('exported', 'export', f'--model={merged}', f'--output={road.folder / "export"}')


class Road:
    """The commands of all stages, in one folder.

    Attributes:
      folder: the folder, created if missing.
      scores: stage -> task -> entry of results.json.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.scores: dict[str, dict[str, Any]] = {}

    def train(self, stage: str, run: Path, *given: str) -> None:
        """Trains the model of a stage, and scores it."""
        self.run(
            stage,
            'train',
            '--config=configs/small_pairs.py',
            f'--workdir={run}',
            f'{SOURCE}.holdout=0',
            '--config.evaluation.every_steps=0',
            '--config.checkpoint.every_steps=20',
            '--config.checkpoint.keep_latest=1',
            *given,
        )
        self.evaluate(stage, run)

    def evaluate(self, stage: str, model: Path) -> None:
        """Scores the model of a stage."""
        results = self.folder / 'results' / stage.replace(' ', '_')
        data = [f'--data_dir={Path(_DATA_DIR.value).absolute()}'] if _DATA_DIR.value else []
        self.run(
            stage,
            'evaluate',
            f'--model={model}',
            f'--tasks={",".join(_TASKS.value)}',
            f'--output={results}',
            '--baselines=bm25',
            *data,
        )
        self.scores[stage] = json.loads((results / 'results.json').read_text())['tasks']

    def run(self, stage: str, program: str, *given: str) -> None:
        """Runs a program of launch/, unless it has finished earlier.

        Raises:
          UserError: the program failed.
        """
        arguments = [f'launch/{program}.py', *given]
        if any(row['arguments'] == arguments for row in self._read_rows()):
            return
        print(f'{stage}: python {shlex.join(arguments)}', flush=True)
        log = self.folder / f'{stage.replace(" ", "_")}-{program}.log'
        start = time.perf_counter()
        status, seconds = run_command(arguments, log)
        if status:
            lines = log.read_text(errors='replace').strip().splitlines()
            raise UserError(f'{stage}: status {status}: {"".join(lines[-1:])}; {log}')
        row = {'stage': stage, 'program': program, 'arguments': arguments}
        row['seconds'] = round(time.perf_counter() - start, 1)
        append_row(self.folder / COMMANDS, row | {'processor_seconds': round(seconds, 1)})

    def summarize(self) -> dict[str, Any]:
        """Returns scores and seconds of each stage."""
        rows = self._read_rows()
        return {
            stage: {
                'scores': {
                    task: {
                        'score': entry['main_score'],
                        'interval': entry['intervals'][entry['settings']['main_metric']],
                        'baselines': entry['baselines'],
                    }
                    for task, entry in tasks.items()
                },
                'minutes': {
                    kind: sum(row[kind] for row in rows if row['stage'] == stage) / 60
                    for kind in ('seconds', 'processor_seconds')
                },
            }
            for stage, tasks in self.scores.items()
        }

    def print_table(self) -> None:
        """Prints the scores of all stages, and the minutes."""
        first = next(iter(self.scores.values()))
        width = max(len(task) for task in first) + 2
        columns = ''.join(f'{task:>{max(width, 26)}}' for task in first)
        print(f'\n{"":<14}{columns}{"minutes":>10}{"of processor":>14}')
        for stage, found in self.summarize().items():
            cells = ''
            for task, entry in found['scores'].items():
                metric = first[task]['settings']['main_metric']
                score, low, high = (
                    format_score(metric, value) for value in (entry['score'], *entry['interval'])
                )
                cells += f'{f"{score} ({low} to {high})":>{max(width, 26)}}'
            minutes = found['minutes']
            print(
                f'{stage:<14}{cells}{minutes["seconds"]:>10.1f}'
                f'{minutes["processor_seconds"]:>14.1f}'
            )

    def _read_rows(self) -> list[Any]:
        return [row for _, row in read_complete_rows(self.folder / COMMANDS)]


def write_pairs(folder: Path) -> Path:
    """Writes the training pairs of the Python installation; returns their file."""
    path = folder / 'pairs.jsonl'
    if not path.exists():
        source = PythonSource('train')
        rows = [
            {'x': pair.x, 'y': pair.y, 'id': pair.id}
            for pair in (source[index] for index in range(len(source)))
        ]
        _write_rows(path, [json.dumps(row) for row in rows])
    return path


def write_sample(pairs: Path, folder: Path, count: int) -> Path:
    """Writes `count` pairs, spread over all of them, for mining; returns their file."""
    path = folder / 'sample.jsonl'
    if not path.exists():
        if not pairs.is_file():
            raise UserError(f'--pairs {pairs}: no such file')
        lines = pairs.read_text(encoding='utf-8').splitlines()
        _write_rows(path, [lines[index] for index in spread_indices(len(lines), count)])
    return path


def _write_rows(path: Path, lines: Sequence[str]) -> None:
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')


if __name__ == '__main__':
    _LANGUAGE_MODEL = flags.DEFINE_string(
        'language_model', None, 'Directory or GGUF file of the model to start from.', required=True
    )
    _OUTPUT = flags.DEFINE_string('output', 'runs/road', 'Folder of pairs, runs and results.')
    _PAIRS = flags.DEFINE_string(
        'pairs', '', 'JSON lines file with x and y. Default: those of the Python installation.'
    )
    _TASKS = flags.DEFINE_list('tasks', ['codesearch/python_source'], 'Tasks to score.')
    _DATA_DIR = flags.DEFINE_string('data_dir', '', 'Folder with the data of the tasks.')
    _BATCH = flags.DEFINE_integer('batch', 64, 'Pairs in a batch.', lower_bound=2)
    _STEPS = flags.DEFINE_integer('steps', 60, 'Steps of the contrastive stage.', lower_bound=8)
    _PEAK_LR = flags.DEFINE_float('peak_lr', 1e-4, 'Learning rate of the contrastive stage.')
    _MINED_PAIRS = flags.DEFINE_integer(
        'mined_pairs', 2000, 'Pairs for which negatives are mined.', lower_bound=64
    )
    _MINED_STEPS = flags.DEFINE_integer(
        'mined_steps', 20, 'Steps with mined negatives.', lower_bound=8
    )
    _JSON = flags.DEFINE_string('json', '', 'Also write the results to this file.')
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    run_program(main)

r"""Trains a search model for one domain along the whole road, and scores every stage.

  small          the quickstart's model, from random weights, for comparison
  contrastive    a language model, trained on the pairs with in-batch negatives
  mined          that model, trained further with hard negatives that it has mined itself
  merged         the mean of the weights of the two

The merged model is exported. Each stage is a command of launch/, which is printed, so that you can
change it. The pairs are docstrings and functions of the Python installation, tested
on packages that are held out, or your own with --pairs, --tasks and --data_dir.

Example:
  python benchmarks/fetch_models.py --folder ~/models
  python benchmarks/whole_road.py --output runs/road --json whole_road.json \
      --language_model ~/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf

Finished commands are not repeated: the same command continues after a kill.
"""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from etils import epath

from commands import CommandFailed, Commands
from cpt_jax.cli.program import run_program
from cpt_jax.data.pairs import spread_indices
from cpt_jax.data.sources.python_source import PythonSource
from cpt_jax.runtime.errors import EXIT_PREEMPTED, UserError
from cpt_jax.storage.atomic_write import write_atomically
from cpt_jax.storage.json_files import write_json
from cpt_jax.storage.text_lines import read_lines
from experiment_tables import format_estimate, make_estimate
from sweep import shorten_result

SOURCE = '--config.data.sources.pairs'


def main() -> int:
    road = Road(Path(_OUTPUT.value).absolute())
    keep_settings(road.folder)
    try:
        walk(road)
    except CommandFailed as failure:
        print(failure, flush=True)
        return EXIT_PREEMPTED if failure.status == EXIT_PREEMPTED else 1
    return 0


def walk(road: 'Road') -> None:
    """Runs all stages, and prints their scores.

    Raises:
      CommandFailed: a command failed or was stopped.
    """
    pairs = Path(_PAIRS.value).absolute() if _PAIRS.value else write_pairs(road.folder)
    sample = write_sample(pairs, road.folder, _MINED_PAIRS.value)
    contrastive, mined, merged = (road.folder / name for name in ('contrastive', 'mined', 'merged'))
    language_model = f'--config.init_from={Path(_LANGUAGE_MODEL.value).absolute()}'

    road.train('small', road.folder / 'small', f'{SOURCE}.path={pairs}')
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
    if not merged.exists():  # merge.py refuses a folder that exists
        road.run('merged', 'merge', f'--models={contrastive},{mined}', f'--output={merged}')
    road.evaluate('merged', merged)
    road.print_table()
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(road.summarize(), indent=2) + '\n')
    road.run('exported', 'export', f'--model={merged}', f'--output={road.folder / "export"}')


class Road:
    """The commands of all stages, in one folder.

    Attributes:
      folder: the folder.
      scores: stage -> task -> entry of results.json.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.scores: dict[str, dict[str, Any]] = {}
        self._commands = Commands(folder)

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
        results = self.folder / 'results' / stage
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
          CommandFailed: the program failed or was stopped.
        """
        name = f'{stage}-{program}'
        arguments = [f'launch/{program}.py', *given]
        if not self._commands.is_finished(name):
            print(f'{stage}: python {shlex.join(arguments)}', flush=True)
        self._commands.finish(name, arguments)

    def summarize(self) -> dict[str, Any]:
        """Returns scores, baselines and minutes of each stage."""
        return {
            stage: {
                'scores': {task: shorten_result(entry) for task, entry in tasks.items()},
                'minutes': {
                    kind: self._commands.sum_seconds(*_list_names(stage), kind=kind) / 60
                    for kind in ('seconds', 'processor_seconds')
                },
            }
            for stage, tasks in self.scores.items()
        }

    def print_table(self) -> None:
        """Prints the scores of all stages, and the minutes."""
        tasks = list(next(iter(self.scores.values())))
        width = 2 + max(26, *map(len, tasks))
        columns = ''.join(f'{task:>{width}}' for task in tasks)
        print(f'\n{"":<14}{columns}{"minutes":>10}{"of processor":>14}')
        for stage, found in self.summarize().items():
            cells = ''.join(
                f'{_format_score(entry):>{width}}' for entry in found['scores'].values()
            )
            minutes, processor = found['minutes'].values()
            print(f'{stage:<14}{cells}{minutes:>10.1f}{processor:>14.1f}')


def _list_names(stage: str) -> list[str]:
    return [f'{stage}-{program}' for program in ('train', 'mine', 'merge', 'evaluate')]


def _format_score(entry: Mapping[str, Any]) -> str:
    estimate = make_estimate([entry['score']], entry.get('interval'))
    return format_estimate(estimate, entry['metric'])


def keep_settings(folder: Path) -> None:
    """Stores the flags in the folder; a later call must have the same ones.

    Raises:
      UserError: the folder has stages of other flags.
    """
    names = 'language_model pairs tasks data_dir batch steps peak_lr mined_pairs mined_steps'
    settings = {name: flags.FLAGS[name].value for name in names.split()}
    path = folder / 'settings.json'
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
    before = json.loads(path.read_text())
    different = [f'--{name}' for name in settings if settings[name] != before.get(name)]
    if different:
        raise UserError(
            f'--output {folder}: its stages have another {", ".join(different)}; give a new folder'
        )


def write_pairs(folder: Path) -> Path:
    """Writes the training pairs of the Python installation; returns their file."""
    path = folder / 'pairs.jsonl'
    if not path.exists():
        source = PythonSource('train')
        pairs = (source[index] for index in range(len(source)))
        _write_lines(path, [json.dumps({'x': one.x, 'y': one.y, 'id': one.id}) for one in pairs])
    return path


def write_sample(pairs: Path, folder: Path, count: int) -> Path:
    """Writes `count` pairs, spread over all of them, for mining; returns their file.

    Raises:
      UserError: the file of the pairs is missing or not text.
    """
    path = folder / 'sample.jsonl'
    if not path.exists():
        lines = [line for _, line in read_lines(epath.Path(pairs))]
        _write_lines(path, [lines[index] for index in spread_indices(len(lines), count)])
    return path


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    write_atomically(path, ''.join(f'{line}\n' for line in lines))


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

"""One evaluation: tasks one after the other, with results.json and the report brought up to date
after each.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

from etils import epath
from tqdm import tqdm

from cpt_jax.embed.function import Embed
from cpt_jax.evals.report.embedding_map import map_json
from cpt_jax.evals.report.example import examples_json
from cpt_jax.evals.report.page import render
from cpt_jax.evals.store.embedding_cache import KeptVectors
from cpt_jax.evals.store.history import HISTORY, read_rows
from cpt_jax.evals.store.results import RESULTS, ResultsFile, read_earlier
from cpt_jax.evals.suites import with_means
from cpt_jax.evals.task import Result, Task, check_is_task
from cpt_jax.evals.tasks.bias import with_holm
from cpt_jax.storage.atomic_write import write_atomically
from cpt_jax.storage.json_files import write_json
from cpt_jax.storage.locks import CLAIMS, claimed, locked

EXAMPLES = 'examples.json'  # in report/
MAPS = 'maps.json'  # in report/


def run_tasks(
    embed: Embed | KeptVectors,
    model: str,
    settings: dict[str, object],
    tasks: Iterable[Task],
    output: epath.Path,
    metrics_path: epath.Path | None = None,
    again: bool = False,
) -> dict:
    """Runs the tasks and writes `output`/results.json and `output`/report/index.html.

    A task that `output` has with the same fingerprint, from the same model, is left as it is.

    Args:
      embed: the model; with KeptVectors a task that was killed goes on where it was.
      model: name of the model, as results.json shows it.
      settings: all that its vectors depend on, as plain JSON values.
      tasks: tasks to run; what an earlier evaluation of the same model left in `output` stays in
        the files.
      output: directory of the results, made where it is missing.
      metrics_path: metrics.jsonl of the training run, for the curves.
      again: measure all tasks again.

    Returns:
      The content of results.json at the end.
    """
    results = ResultsFile(output / RESULTS, model, settings)
    if replaced := results.replaced_by():
        tqdm.write(replaced)
    for task in tasks:
        check_is_task(task, getattr(task, 'name', '?'))
        fingerprint = task.fingerprint()
        with claimed(claim_path(output, model, task.name)) as mine:
            scored = results.row_of(task.name).get('fingerprint') == fingerprint
            if not mine:
                tqdm.write(f'{task.name}: another program is at it, and will write its scores')
            elif scored and not again:
                tqdm.write(f'{task.name}: already scored; --again scores it anew')
            else:
                tqdm.write(task.name)
                with embed.during(task.name) if isinstance(embed, KeptVectors) else nullcontext():
                    result = task.run(embed)
                store(results, task.name, result, fingerprint)
                write_report(output, metrics_path)
    return results.load()


def claim_path(output: epath.Path, model: str, task: str) -> Path:
    """Returns the file of the claim of the program that scores a task of a model."""
    return Path(output / CLAIMS / f'{model}-{task}'.replace('/', '-'))


def store(
    results: ResultsFile, name: str, result: Result, fingerprint: str, newest: bool = False
) -> None:
    """Adds a result to results.json, and its examples and its map to those of the report.

    Args:
      results: results of the model.
      name, result, fingerprint: name, result and fingerprint of the task.
      newest: leave results of a checkpoint that was saved later as they are.
    """
    output = results.path.parent
    report = output / 'report'
    with locked(Path(output / CLAIMS / 'results')):
        if newest and results.is_of_later_checkpoint():
            return
        examples: dict = {}
        maps: dict = {}
        if not results.replaced_by():
            examples, maps = read_earlier(report / EXAMPLES), read_earlier(report / MAPS)
        results.add(name, result, fingerprint, lambda rows: with_means(with_holm(rows)))
        report.mkdir(parents=True, exist_ok=True)
        write_json(Path(report / EXAMPLES), {**examples, name: examples_json(result.examples)})
        # Lines of one number each would be as long again.
        write_json(Path(report / MAPS), {**maps, **map_json(result.map)}, indent=None)


def write_report(output: epath.Path, metrics_path: epath.Path | None) -> None:
    """Draws report/index.html of what `output` holds."""
    report = output / 'report'
    with locked(Path(output / CLAIMS / 'results')):
        results, examples, maps = (
            read_earlier(path) for path in (output / RESULTS, report / EXAMPLES, report / MAPS)
        )
        rows = read_rows(Path(output / HISTORY))
        page = render(results, examples, metrics_path, rows, list(maps.values()))
        report.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(report / 'index.html'), page)

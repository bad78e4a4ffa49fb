"""Runs tasks one after the other, and updates results.json and the report after each task."""

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

from etils import epath
from tqdm import tqdm

from cpt_jax.embed.function import Embed
from cpt_jax.evals.intervals.item_scores import remove_item_scores, write_item_scores
from cpt_jax.evals.report.embedding_map import map_to_json
from cpt_jax.evals.report.example import examples_to_json
from cpt_jax.evals.report.page import render_page
from cpt_jax.evals.store.embedding_cache import CachingEmbed
from cpt_jax.evals.store.history import HISTORY, read_rows
from cpt_jax.evals.store.results import RESULTS, ResultsFile, read_earlier_json
from cpt_jax.evals.suites import add_suite_means
from cpt_jax.evals.task import Result, Task, check_is_task
from cpt_jax.evals.tasks.bias import add_holm
from cpt_jax.storage.atomic_write import write_atomically
from cpt_jax.storage.json_files import write_json
from cpt_jax.storage.locks import LOCKS_FOLDER, try_lock, wait_for_lock
from cpt_jax.storage.paths import as_path

# Files in report/.
EXAMPLES = 'examples.json'
MAPS = 'maps.json'


def run_tasks(
    embed: Embed | CachingEmbed,
    model: str,
    settings: dict[str, object],
    tasks: Iterable[Task],
    output: epath.Path,
    metrics_path: epath.Path | None = None,
    again: bool = False,
) -> dict:
    """Runs the tasks and writes `output`/results.json and `output`/report/index.html.

    A task is skipped if `output` already has its score for the same model and fingerprint.

    Args:
      embed: embedding function of the model. With a CachingEmbed, a killed task resumes.
      model: name of the model in results.json.
      settings: everything that the model's embeddings depend on, as plain JSON values.
      tasks: tasks to run. Results of other tasks, from earlier evaluations of the same model, stay
        in `output`.
      output: directory of the results, created if missing.
      metrics_path: metrics.jsonl of the training run, for the training curves; None draws none.
      again: whether to run tasks that already have a score.

    Returns:
      The final content of results.json.
    """
    results = ResultsFile(output / RESULTS, model, settings)
    if message := results.describe_replaced_results():
        tqdm.write(message)
    for task in tasks:
        check_is_task(task, getattr(task, 'name', '?'))
        fingerprint = task.fingerprint()
        with try_lock(make_claim_path(output, model, task.name)) as mine:
            row = results.get_row(task.name)
            scored = row.get('fingerprint') == fingerprint
            if not mine:
                tqdm.write(f'{task.name}: another program is scoring it')
            elif scored and not again:
                tqdm.write(f'{task.name}: already scored; give --again to score it again')
            else:
                tqdm.write(task.name)
                if row and not scored:
                    tqdm.write(
                        f'{task.name}: the earlier score, of other data or options, is replaced; '
                        f'give another --output to keep both'
                    )
                with (
                    embed.keep_during(task.name)
                    if isinstance(embed, CachingEmbed)
                    else nullcontext()
                ):
                    result = task.run(embed)
                store_result(results, task.name, result, fingerprint)
                write_report(output, metrics_path)
    return results.load()


def make_claim_path(output: epath.Path, model: str, task: str) -> Path:
    """Returns the path of the lock file that a program holds while it scores a task of a model."""
    return as_path(output / LOCKS_FOLDER / f'{model}-{task}'.replace('/', '-'))


def store_result(
    results: ResultsFile, name: str, result: Result, fingerprint: str, newest: bool = False
) -> None:
    """Adds a result to results.json, its examples and map to those of the report, and the scores of
    its queries or pairs to scores/.

    Args:
      results: results of the model.
      name: task name.
      result: result of the task.
      fingerprint: fingerprint of the task.
      newest: whether to keep the existing results instead of `result` if they are of a checkpoint
        that was saved later.
    """
    output = results.path.parent
    report = as_path(output / 'report')
    for warning in result.warnings:
        tqdm.write(f'{name}: WARNING: {warning}')
    with wait_for_lock(as_path(output / LOCKS_FOLDER / 'results')):
        if newest and results.holds_later_checkpoint():
            return
        examples: dict = {}
        maps: dict = {}
        if results.describe_replaced_results():
            remove_item_scores(output)
        else:
            examples, maps = read_earlier_json(report / EXAMPLES), read_earlier_json(report / MAPS)
        if result.item_scores:
            write_item_scores(output, name, result.item_scores, result.main_score)
        results.add(name, result, fingerprint, lambda rows: add_suite_means(add_holm(rows), output))
        report.mkdir(parents=True, exist_ok=True)
        write_json(
            as_path(report / EXAMPLES), {**examples, name: examples_to_json(result.examples)}
        )
        # Without indentation: one line per number would double the size of the file.
        write_json(report / MAPS, {**maps, **map_to_json(result.map)}, indent=None)


def write_report(output: epath.Path, metrics_path: epath.Path | None) -> None:
    """Writes report/index.html from the results in `output`.

    Args:
      output: directory of the results.
      metrics_path: metrics.jsonl of the training run, for the training curves; None draws none.
    """
    report = output / 'report'
    with wait_for_lock(as_path(output / LOCKS_FOLDER / 'results')):
        results = read_earlier_json(output / RESULTS)
        examples = read_earlier_json(report / EXAMPLES)
        maps = read_earlier_json(report / MAPS)
        rows = read_rows(as_path(output / HISTORY))
        page = render_page(results, examples, metrics_path, rows, list(maps.values()))
        report.mkdir(parents=True, exist_ok=True)
        write_atomically(as_path(report / 'index.html'), page)

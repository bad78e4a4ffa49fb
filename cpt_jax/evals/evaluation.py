"""One evaluation: tasks one after the other, with results.json and the report brought up to date after each."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path

from etils import epath
from tqdm import tqdm

from cpt_jax.evals.bias import with_holm
from cpt_jax.evals.claims import CLAIMS, claimed, locked
from cpt_jax.evals.embedding_cache import KeptVectors
from cpt_jax.evals.history import HISTORY, read_rows
from cpt_jax.evals.report import render
from cpt_jax.evals.results import (
    EXAMPLES,
    MAPS,
    RESULTS,
    add_result,
    continued,
    examples_json,
    map_json,
    new_results,
    read_json,
    write_json,
    write_text,
)
from cpt_jax.evals.suites import with_means
from cpt_jax.evals.task import Embed, Result, Task


def evaluate(
    embed: Embed | KeptVectors,
    model: str,
    settings: dict[str, object],
    tasks: Iterable[Task],
    output: epath.Path,
    metrics_path: epath.Path | None = None,
    fingerprints: Mapping[str, str] | None = None,
    again: bool = False,
) -> dict:
    """Runs the tasks and writes `output`/results.json and `output`/report/index.html.

    Args:
      embed: the model; with KeptVectors a task that was killed goes on where it was.
      model: its name, as results.json shows it.
      settings: all that its vectors depend on, as plain JSON values.
      tasks: what to run; what an earlier evaluation of the same model left in `output` stays in the files.
      output: a directory, made where it is missing.
      metrics_path: metrics.jsonl of the training run, for the curves.
      fingerprints: task -> what else its scores depend on (inputs.py). A task that `output` has with the same one, of the same model, is
        left as it is; one without is always run.
      again: run all.

    Returns:
      What results.json now holds.
    """
    new, told = new_results(model, settings), False
    for task in tasks:
        fingerprint = (fingerprints or {}).get(task.name, '')
        _, replaced = continued(new, read_json(output / RESULTS))
        if replaced and not told:
            tqdm.write(replaced)
        told = True
        with claimed(claim_path(output, model, task.name)) as mine:
            there = continued(new, read_json(output / RESULTS))[0]['tasks'].get(task.name, {})
            if not mine:
                tqdm.write(f'{task.name}: another program is at it, and will write its scores')
            elif fingerprint and not again and there.get('fingerprint') == fingerprint:
                tqdm.write(f'{task.name}: already scored; --again scores it anew')
            else:
                tqdm.write(task.name)
                with embed.during(task.name) if isinstance(embed, KeptVectors) else nullcontext():
                    result = task.run(embed)
                store(output, new, task.name, result, fingerprint)
                write_report(output, metrics_path)
    return continued(new, read_json(output / RESULTS))[0]


def claim_path(output: epath.Path, model: str, task: str) -> Path:
    """What the program that scores a task of a model has a claim to."""
    return Path(output / CLAIMS / f'{model}-{task}'.replace('/', '-'))


def store(output: epath.Path, new: dict, name: str, result: Result, fingerprint: str, newest: bool = False) -> None:
    """Adds a result to results.json, and its examples and its map to those of the report.

    Args:
      output: see `evaluate`.
      new: results without a task, of the same model.
      name, result, fingerprint: of the task.
      newest: leave results of a checkpoint that was saved later as they are.
    """
    report = output / 'report'
    with locked(Path(output / CLAIMS / 'results')):
        earlier = read_json(output / RESULTS)
        if newest and earlier.get('settings', {}).get('saved', '') > new['settings'].get('saved', ''):
            return
        results, replaced = continued(new, earlier)
        examples, maps = ({} if replaced else read_json(report / name) for name in (EXAMPLES, MAPS))
        write_json(output / RESULTS, with_means(with_holm(add_result(results, name, result, fingerprint))))
        write_json(report / EXAMPLES, {**examples, name: examples_json(result)})
        write_json(report / MAPS, {**maps, **map_json(result)}, indent=None)  # lines of one number each would be as long again


def write_report(output: epath.Path, metrics_path: epath.Path | None) -> None:
    """Draws report/index.html of what `output` holds."""
    report = output / 'report'
    with locked(Path(output / CLAIMS / 'results')):
        results, examples, maps = (read_json(path) for path in (output / RESULTS, report / EXAMPLES, report / MAPS))
        rows = read_rows(Path(output / HISTORY))
        write_text(report / 'index.html', render(results, examples, metrics_path, rows, list(maps.values())))

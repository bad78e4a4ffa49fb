"""One evaluation: tasks one after the other, with results.json and the report brought up to date after each."""

from collections.abc import Iterable

from etils import epath
from tqdm import tqdm

from cpt_jax.evals.bias import with_holm
from cpt_jax.evals.report import render
from cpt_jax.evals.results import EXAMPLES, RESULTS, add_result, continued, examples_json, new_results, read_json, write_json, write_text
from cpt_jax.evals.task import Embed, Task


def evaluate(
    embed: Embed, model: str, settings: dict[str, object], tasks: Iterable[Task], output: epath.Path, metrics_path: epath.Path | None = None
) -> dict:
    """Runs the tasks and writes `output`/results.json and `output`/report/index.html.

    Args:
      embed: the model.
      model: its name, as results.json shows it.
      settings: all that its vectors depend on, as plain JSON values.
      tasks: what to run; what an earlier evaluation of the same model left in `output` stays in the files.
      output: a directory, made where it is missing.
      metrics_path: metrics.jsonl of the training run, for the curves.

    Returns:
      What results.json now holds.
    """
    report = output / 'report'
    earlier = read_json(output / RESULTS)
    results, replaced = continued(new_results(model, settings), earlier)
    examples = {} if replaced else read_json(report / EXAMPLES)
    if replaced:
        tqdm.write(replaced)
    for task in tasks:
        tqdm.write(task.name)
        result = task.run(embed)
        results, examples = with_holm(add_result(results, task.name, result)), {**examples, task.name: examples_json(result)}
        write_json(output / RESULTS, results)
        write_json(report / EXAMPLES, examples)
        write_text(report / 'index.html', render(results, examples, metrics_path))
    return results

"""Named suites: the tasks of a paper's table and the mean of their scores."""

import json
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import NamedTuple

from etils import epath

from cpt_jax.evals.intervals.bootstrap import DESCRIPTION, compute_interval
from cpt_jax.evals.intervals.item_scores import ItemScores, draw_mean_score, read_item_scores
from cpt_jax.runtime.errors import UserError

CQADUPSTACK = (
    'android english gaming gis mathematica physics programmers stats tex unix webmasters wordpress'
).split()
# Settings that must be equal for all tasks that are averaged.
COMMON_SETTINGS = 'main_metric protocol split side direction text index rescore'.split()


class Suite(NamedTuple):
    """Tasks that are reported with their unweighted mean.

    Attributes:
      tasks: task names.
      source: source of the list.
    """

    tasks: tuple[str, ...]
    source: str


def _make_suite(kind: str, names: str, source: str) -> Suite:
    return Suite(tuple(f'{kind}/{name}' for name in names.split()), source)


SUITES = {
    'suite/cpt_beir': _make_suite(
        'retrieval',
        'arguana climate-fever dbpedia-entity fever fiqa hotpotqa nfcorpus quora scifact '
        'trec-covid webis-touche2020',
        "the 11 BEIR sets of the cpt paper's Table 6, by BEIR's folder names",
    ),
    'suite/cqadupstack': _make_suite(
        'retrieval',
        ' '.join(f'cqadupstack/{name}' for name in CQADUPSTACK),
        'BEIR: CQADupStack is the mean of 12',
    ),
    'suite/csn': _make_suite(
        'codesearch',
        'go ruby python java javascript php',
        "the six languages of CodeSearchNet, the cpt paper's Table 7",
    ),
    'suite/sts': _make_suite(
        'sts',
        'STS12 STS13 STS14 STS15 STS16 STSBenchmark SICK-R',
        'the seven sets of SimCSE and PromptEOL',
    ),
    'suite/senteval': _make_suite(
        'probe',
        'MR CR SUBJ MPQA SST2 TREC MRPC',
        "SentEval's seven transfer tasks, the cpt paper's Table 2",
    ),
}


def expand_suites(
    patterns: Iterable[str], tasks: Iterable[str], data_dir: str | None, allow_missing: bool
) -> list[str]:
    """Returns `patterns` with each suite replaced by its tasks.

    Args:
      patterns: task names, globs or names of suites, from the user.
      tasks: names of the available tasks.
      data_dir: data directory, for the message.
      allow_missing: whether to leave out missing tasks of a suite. A suite without any available
        task is an error in any case.

    Raises:
      UserError: tasks of a suite are missing.
    """
    available = set(tasks)
    expanded: list[str] = []
    for pattern in (pattern.strip() for pattern in patterns):
        if pattern not in SUITES:
            expanded.append(pattern)
            continue
        members = SUITES[pattern].tasks
        missing = [name for name in members if name not in available]
        if missing and (len(missing) == len(members) or not allow_missing):
            raise UserError(
                f'--tasks {pattern}: {len(missing)} of its {len(members)} tasks are not in '
                f'--data_dir {data_dir}: {", ".join(missing)}; add their data, or give '
                f'--allow_missing to run the others without a mean'
            )
        expanded += [name for name in members if name in available]
    return expanded


def add_suite_means(results: dict, output: epath.Path | None = None) -> dict:
    """Returns `results` with a row for each suite whose tasks all have comparable scores.

    Rows of other suites, from earlier evaluations, are removed.

    Args:
      results: content of results.json.
      output: its directory, in which scores/ has the scores of single queries and pairs; None
        computes no intervals.
    """
    rows = {name: row for name, row in results['tasks'].items() if name not in SUITES}
    means: dict[str, dict] = {}
    for name, suite in SUITES.items():
        if not rows.keys() >= {*suite.tasks}:
            continue
        mean = _compute_mean([rows[task] for task in suite.tasks], suite)
        if mean:
            earlier = results['tasks'].get(name, {})
            means[name] = _add_interval(mean, earlier, rows, output)
    return {**results, 'tasks': rows | means}


def _add_interval(
    mean: dict, earlier: dict, rows: Mapping[str, dict], output: epath.Path | None
) -> dict:
    """Returns a suite's row with its interval, if it can be computed.

    Args:
      mean: the row without the interval.
      earlier: the suite's row in the results before; {} if there was none.
      rows: task name -> row of results.json.
      output: directory of the results, or None.
    """
    metric = mean['settings']['main_metric']
    if earlier.get('main_score') == mean['main_score'] and 'intervals' in earlier:
        intervals = earlier['intervals']  # computing it takes seconds
    else:
        scores: list[ItemScores] = []
        for task in mean['settings']['tasks']:
            found = read_item_scores(output, task, rows[task]['main_score']) if output else None
            if found is None:
                return mean
            scores.append(found)
        intervals = {metric: [*compute_interval(draw_mean_score(scores, metric))]}
    settings = mean['settings'] | {'intervals': DESCRIPTION}
    return mean | {'intervals': intervals, 'settings': settings}


def explain_missing_means(results: dict, patterns: Iterable[str]) -> list[str]:
    """Returns one line for each suite in `patterns` without a mean in `results`: the reason."""
    lines = []
    for name in (pattern.strip() for pattern in patterns):
        if name in SUITES and name not in results['tasks']:
            rows = {
                task: results['tasks'][task]
                for task in SUITES[name].tasks
                if task in results['tasks']
            }
            metrics = ', '.join(
                f'{task} {row["settings"]["main_metric"]}' for task, row in rows.items()
            )
            missing = len(SUITES[name].tasks) - len(rows)
            reason = f'its tasks were scored with different settings: {metrics}'
            if missing:
                reason = f'{missing} of its tasks have no score'
            lines.append(f'{name}: no mean: {reason}')
    return lines


def _compute_mean(rows: list[dict], suite: Suite) -> dict | None:
    """Returns the suite's row of results.json; None if the settings of the tasks differ, for
    example the protocol or the split.
    """
    settings = {json.dumps([row['settings'].get(key) for key in COMMON_SETTINGS]) for row in rows}
    if len(settings) > 1:
        return None
    metric = rows[0]['settings']['main_metric']
    kinds = [
        kind
        for kind in rows[0]['baselines']
        if all(metric in row['baselines'].get(kind, {}) for row in rows)
    ]
    score = fmean(row['metrics'][metric] for row in rows)
    return {
        'main_score': score,
        'metrics': {metric: score},
        'n': len(rows),
        'counted': 'tasks',
        'settings': {
            'main_metric': metric,
            'protocol': f'unweighted mean of the tasks; {suite.source}',
            'tasks': list(suite.tasks),
        },
        'baselines': {
            kind: {metric: fmean(row['baselines'][kind][metric] for row in rows)} for kind in kinds
        },
    }

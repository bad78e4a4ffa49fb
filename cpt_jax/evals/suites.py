"""Named suites: the tasks of a paper's table, and the mean of their scores that it prints."""

import json
from collections.abc import Iterable
from statistics import fmean
from typing import NamedTuple

from cpt_jax.runtime.errors import UserError

CQADUPSTACK = (
    'android english gaming gis mathematica physics programmers stats tex unix webmasters wordpress'
).split()
# Settings that the tasks of a mean must have in common.
ALIKE = 'main_metric', 'protocol', 'split', 'side', 'direction', 'text', 'index'


class Suite(NamedTuple):
    """Tasks whose unweighted mean has a name.

    Attributes:
      tasks: their names.
      source: where the list comes from.
    """

    tasks: tuple[str, ...]
    source: str


def _suite(kind: str, names: str, source: str) -> Suite:
    return Suite(tuple(f'{kind}/{name}' for name in names.split()), source)


SUITES = {
    'suite/cpt_beir': _suite(
        'retrieval',
        'arguana climate-fever dbpedia-entity fever fiqa hotpotqa nfcorpus quora scifact '
        'trec-covid webis-touche2020',
        "the 11 BEIR sets of the cpt paper's Table 6, by BEIR's folder names",
    ),
    'suite/cqadupstack': _suite(
        'retrieval',
        ' '.join(f'cqadupstack/{name}' for name in CQADUPSTACK),
        'BEIR: CQADupStack is the mean of 12',
    ),
    'suite/csn': _suite(
        'codesearch',
        'go ruby python java javascript php',
        "the six languages of CodeSearchNet, the cpt paper's Table 7",
    ),
    'suite/sts': _suite(
        'sts',
        'STS12 STS13 STS14 STS15 STS16 STSBenchmark SICK-R',
        'the seven sets of SimCSE and PromptEOL',
    ),
    'suite/senteval': _suite(
        'probe',
        'MR CR SUBJ MPQA SST2 TREC MRPC',
        "SentEval's seven transfer tasks, the cpt paper's Table 2",
    ),
}


def expand_suites(
    patterns: Iterable[str], tasks: Iterable[str], data_dir: str | None, allow_missing: bool
) -> list[str]:
    """`patterns` with the tasks of each suite in its place.

    Args:
      patterns: what the user asks for.
      tasks: the names of those that there are.
      data_dir: for the message.
      allow_missing: leave out those that are missing, unless all are.

    Raises UserError for a suite of which tasks are missing; it lists them.
    """
    there, words = set(tasks), []
    for word in (pattern.strip() for pattern in patterns):
        members = SUITES[word].tasks if word in SUITES else (word,)
        missing = [name for name in members if name not in there] if word in SUITES else []
        if missing and (len(missing) == len(members) or not allow_missing):
            hint = 'give their data, or --allow_missing to run the others without a mean'
            raise UserError(
                f'--tasks {word}: {len(missing)} of its {len(members)} tasks are not in '
                f'--data_dir {data_dir}: {", ".join(missing)}; {hint}'
            )
        words += [name for name in members if name not in missing]
    return words


def with_means(results: dict) -> dict:
    """`results` with a row for each suite whose tasks are all there with the same main metric, and
    without the others' rows.
    """
    rows = {name: row for name, row in results['tasks'].items() if name not in SUITES}
    means = {
        name: _mean([rows[task] for task in suite.tasks], suite)
        for name, suite in SUITES.items()
        if rows.keys() >= {*suite.tasks}
    }
    return {**results, 'tasks': rows | {name: mean for name, mean in means.items() if mean}}


def without_mean(results: dict, patterns: Iterable[str]) -> list[str]:
    """A line for each suite among `patterns` that has no row in `results`: why."""
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
            why = (
                f'{missing} of its tasks have no score'
                if missing
                else f'they were not scored alike: {metrics}'
            )
            lines.append(f'{name}: no mean: {why}')
    return lines


def _mean(rows: list[dict], suite: Suite) -> dict | None:
    """A row of results.json; None where the tasks were not scored alike, as with different
    protocols or splits.
    """
    if len({json.dumps([row['settings'].get(key) for key in ALIKE]) for row in rows}) > 1:
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

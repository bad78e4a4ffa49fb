"""Association tests in one table: the size of each effect, and whether it may be chance."""

from collections.abc import Mapping
from typing import NamedTuple

from cpt_jax.evals.store.results import format_score

ALPHA = 0.01  # of the sent-bias analysis, after Holm's correction
WIDEST = 2.0  # effect size at which a bar is full: d of two halves cannot pass it by much
KIND = 'bias/'
# How the names of tests begin -> the group they belong to; of two that fit the first counts.
GROUPS = {
    'weat': 'Words (WEAT)',
    'sent-weat': 'Sentences (SEAT)',
    'angry_black_woman': 'Angry black woman stereotype',
    'sent-angry_black_woman': 'Angry black woman stereotype',
    'heilman_double_bind': 'Double bind',
    'sent-heilman_double_bind': 'Double bind',
    '': 'Others',
}


class Test(NamedTuple):
    """One test as it is shown; `low` and `high` are the ends of its bar, in percent of the track
    from -`WIDEST` to `WIDEST`.
    """

    name: str
    positive: str
    effect: str
    p: str
    p_holm: str
    significant: bool
    low: float
    high: float


class BiasTable(NamedTuple):
    """The tests by group, in a group the largest effect first; and the settings that all have
    alike.
    """

    groups: list[tuple[str, list[Test]]]
    settings: dict[str, object]
    tests: int
    significant: int


def bias_table(tasks: Mapping[str, Mapping]) -> BiasTable | None:
    """Of the bias tests among `tasks`, rows of results.json; None where there is none."""
    rows = {name: row for name, row in tasks.items() if is_test(name)}
    if not rows:
        return None
    ordered = sorted(rows, key=lambda name: (-rows[name]['metrics']['effect_size'], name))
    groups: dict[str, list[Test]] = {group: [] for group in GROUPS.values()}
    for name in ordered:
        groups[_group(name)].append(_test(name, rows[name]))
    first, *others = (row['settings'] for row in rows.values())
    alike = {
        key: value
        for key, value in first.items()
        if key != 'main_metric' and all(other.get(key) == value for other in others)
    }
    significant = sum(test.significant for tests in groups.values() for test in tests)
    return BiasTable(
        [(group, tests) for group, tests in groups.items() if tests], alike, len(rows), significant
    )


def is_test(task: str) -> bool:
    return task.startswith(KIND)


def _group(name: str) -> str:
    return next(
        group for begin, group in GROUPS.items() if name.removeprefix(KIND).startswith(begin)
    )


def _test(name: str, row: Mapping) -> Test:
    metrics = row['metrics']
    corrected = metrics.get('p_holm', metrics['p_value'])  # of one test alone they are the same
    ends = sorted((0.0, max(-WIDEST, min(WIDEST, metrics['effect_size']))))
    return Test(
        name.removeprefix(KIND),
        row['settings'].get('positive', ''),
        format_score('effect_size', metrics['effect_size']),
        format_score('p_value', metrics['p_value']),
        format_score('p_holm', corrected),
        corrected < ALPHA,
        *(50 + 50 * end / WIDEST for end in ends),
    )

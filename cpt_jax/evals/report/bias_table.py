"""The table of all association tests, with effect sizes and significance."""

from collections.abc import Mapping
from typing import NamedTuple

from cpt_jax.evals.store.results import format_score

ALPHA = 0.01  # significance level of the sent-bias analysis, after Holm's correction
MAX_EFFECT = 2.0  # effect size d of a full bar; the largest possible d is little more than 2
KIND = 'bias/'
# Prefix of a test's name -> its group. The first matching prefix counts.
GROUPS = {
    'weat': 'Words (WEAT)',
    'sent-weat': 'Sentences (SEAT)',
    'angry_black_woman': 'Angry black woman stereotype',
    'sent-angry_black_woman': 'Angry black woman stereotype',
    'heilman_double_bind': 'Double bind',
    'sent-heilman_double_bind': 'Double bind',
    '': 'Others',
}


class AssociationTestRow(NamedTuple):
    """One row of the table.

    Attributes:
      name: name of the test, without the kind.
      positive: meaning of a positive effect, such as 'A nearer to B'.
      effect: effect size, formatted.
      p: p-value, formatted.
      p_holm: p-value after Holm's correction, formatted.
      significant: whether `p_holm` is below `ALPHA`.
      low: left end of the bar, in percent of the track from -`MAX_EFFECT` to `MAX_EFFECT`.
      high: right end of the bar, in percent of the track.
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
    """All association tests.

    Attributes:
      groups: (name of the group, its tests), each sorted by descending effect.
      settings: settings that are equal for all tests.
      tests: number of tests.
      significant: number of significant tests.
    """

    groups: list[tuple[str, list[AssociationTestRow]]]
    settings: dict[str, object]
    tests: int
    significant: int


def make_bias_table(tasks: Mapping[str, Mapping]) -> BiasTable | None:
    """Returns the table of the bias tests in `tasks`, None if there are none.

    Args:
      tasks: task -> row of results.json.
    """
    rows = {name: row for name, row in tasks.items() if is_association_test(name)}
    if not rows:
        return None
    ordered = sorted(rows, key=lambda name: (-rows[name]['metrics']['effect_size'], name))
    groups: dict[str, list[AssociationTestRow]] = {group: [] for group in GROUPS.values()}
    for name in ordered:
        groups[_find_group(name)].append(_make_test(name, rows[name]))
    first, *others = (row['settings'] for row in rows.values())
    common = {
        key: value
        for key, value in first.items()
        if key != 'main_metric' and all(other.get(key) == value for other in others)
    }
    significant = sum(test.significant for tests in groups.values() for test in tests)
    nonempty = [(group, tests) for group, tests in groups.items() if tests]
    return BiasTable(nonempty, common, len(rows), significant)


def is_association_test(task: str) -> bool:
    return task.startswith(KIND)


def _find_group(name: str) -> str:
    test = name.removeprefix(KIND)
    return next(group for prefix, group in GROUPS.items() if test.startswith(prefix))


def _make_test(name: str, row: Mapping) -> AssociationTestRow:
    metrics = row['metrics']
    corrected = metrics.get('p_holm', metrics['p_value'])  # equal if there is only one test
    ends = sorted((0.0, max(-MAX_EFFECT, min(MAX_EFFECT, metrics['effect_size']))))
    return AssociationTestRow(
        name.removeprefix(KIND),
        row['settings'].get('positive', ''),
        format_score('effect_size', metrics['effect_size']),
        format_score('p_value', metrics['p_value']),
        format_score('p_holm', corrected),
        corrected < ALPHA,
        *(50 + 50 * end / MAX_EFFECT for end in ends),
    )

"""Scores in the rows of a source: a teacher's of the texts of a pair, or the grade of a pair."""

import math
from collections.abc import Sequence

from cpt_jax.data.problems import BadRow
from cpt_jax.runtime.errors import UserError


def check_score_fields(scores: Sequence[str], score: str) -> None:
    """Raises UserError if a source has both kinds of scores."""
    if scores and score:
        raise UserError(
            f'scores={", ".join(scores)} and score={score}: a source has scores of the texts of '
            f'each pair, or one score of each pair: remove one'
        )


def parse_number(name: str, value: object) -> float:
    """Returns a finite number.

    Raises:
      BadRow: the value is not one.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):  # type: ignore[arg-type]
        raise BadRow(f'{name!r} is not a number', repr(value)[:40])
    return float(value)  # type: ignore[arg-type]


def parse_scores(
    names: Sequence[str], values: Sequence[object], positives: int, is_kept: Sequence[bool]
) -> tuple[tuple[float, ...], ...]:
    """Returns the scores of each positive of a row, followed by those of its hard negatives.

    Args:
      names: names of the fields.
      values: their values; each is a list, or one number.
      positives: number of positives of the row.
      is_kept: whether each hard negative of the row is a text; the scores of others are left out.

    Raises:
      BadRow: there are not as many numbers as positives and hard negatives.
    """
    found: list[float] = []
    for name, value in zip(names, values, strict=True):
        listed = value if isinstance(value, list) else [value]
        found += [parse_number(name, number) for number in listed]
    wanted = positives + len(is_kept)
    if len(found) != wanted:
        raise BadRow(
            f'{" and ".join(map(repr, names))}: not as many scores as texts',
            f'{len(found)} scores of {positives} positives and {len(is_kept)} hard negatives',
        )
    negatives = tuple(score for score, kept in zip(found[positives:], is_kept, strict=True) if kept)
    return tuple((score, *negatives) for score in found[:positives])

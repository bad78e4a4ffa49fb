"""The result of one check of an acceptance run."""

import dataclasses
from collections.abc import Sequence

PASSED, FAILED, SKIPPED = 'passed', 'failed', 'skipped'


@dataclasses.dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
      name: what was checked.
      status: PASSED, FAILED or SKIPPED.
      measured: what was measured, as text.
      expected: what passes, or why the check was skipped, as text.
    """

    name: str
    status: str
    measured: str
    expected: str


def compare(name: str, value: float, bound: float, unit: str = '') -> Check:
    """Returns a check that passes if a value is at most a bound."""
    status = PASSED if value <= bound else FAILED
    return Check(name, status, f'{value:.3g}{unit}', f'at most {bound:.3g}{unit}')


def count_failed(checks: Sequence[Check]) -> int:
    """Returns the number of checks that failed."""
    return sum(check.status == FAILED for check in checks)

"""Values of a config have the types of the arguments that they become."""

from collections.abc import Mapping, Sequence

import pytest

from cpt_jax.runs.config_types import check_type
from cpt_jax.runtime.errors import UserError

GOOD = [
    (3, int), (-(2**63) + 1, int), (3, float), (3.5, float), (float('inf'), float), (True, bool),
    (0, bool), ('a', str), (None, str | None), ((), Sequence[int]), ([1, 2], tuple[int, ...]),
    ((('a', 1),), Sequence[tuple[str, float]]), ({'a': {'b': 1}}, Mapping[str, Mapping]),
    ('a', str | Sequence[str]), (('a',), str | Sequence[str]),
]  # fmt: skip
BAD = [
    (3.0, int, '3.0: must be an integer'),
    (True, int, 'True: must be an integer'),
    (2**63, int, 'must be an integer'),
    (float('nan'), float, 'nan: must be a number'),
    ('3', float, "'3': must be a number"),
    (2, bool, '2: must be True or False'),
    (None, str, 'None: must be a text'),
    (3, str | None, '3: must be a text or None'),
    (None, Sequence[int], 'None: must be a sequence, each item an integer'),
    ((1.5,), Sequence[int], 'each item an integer'),
    ((('a',),), Sequence[tuple[str, float]], 'each item a sequence, each item a text and a number'),
    ({'a': 1}, Mapping[str, str], 'a section, each value a text'),
]


def test_number_of_thousands_of_digits_is_refused():
    with pytest.raises(UserError, match='a.b=a number of thousands of digits: must be an integer'):
        check_type('a.b', 10**5000, int)


def test_values_of_the_right_type_are_accepted():
    for value, annotation in GOOD:
        check_type('a.b', value, annotation)


@pytest.mark.parametrize(('value', 'annotation', 'message'), BAD)
def test_other_values_are_refused_with_their_key(value, annotation, message):
    with pytest.raises(UserError) as error:
        check_type('a.b', value, annotation)
    assert str(error.value).startswith('a.b=') and message in str(error.value)

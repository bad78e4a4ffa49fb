import pytest

from cpt_jax.data.problems import BadRow, Problems, decode_text_field
from cpt_jax.runtime.errors import UserError


def make_problems(max_share):
    problems = Problems(max_share)
    problems.rows = 1000
    problems.add(BadRow('not JSON', 'line 1 column 5'), 'a.jsonl:7')
    problems.add(BadRow("'x' is empty"), 'a.jsonl:9')
    problems.add(BadRow('not JSON', 'line 1 column 1'), 'b.jsonl:1')
    return problems


def test_summary_has_counts_and_first_row_by_kind():
    assert make_problems(1.0).summary() == (
        "3 of 1,000 rows cannot be used: 2 not JSON (first: a.jsonl:7), 1 'x' is empty (first: "
        'a.jsonl:9)'
    )
    assert Problems().summary() == ''


def test_check_raises_only_above_max_share():
    make_problems(0.003).check()
    with pytest.raises(
        UserError,
        match=r"^a.jsonl:7: not JSON: line 1 column 5; 3 of 1,000 rows .*2 not JSON, 1 'x' is "
        r'empty.*0.0029',
    ):
        make_problems(0.0029).check()


def test_share_is_one_of_lines():
    problems = Problems(0.4)
    problems.rows, problems.more_lines = 5, 5
    problems.add(BadRow('not CSV'), 'a.csv:2', lines=4)
    problems.check()
    again = Problems.from_json(problems.to_json(), 0.3)
    with pytest.raises(UserError, match=r'1 of 5 rows \(4 of 10 lines\) cannot be used'):
        again.check()


def test_check_accepts_empty_input():
    Problems(0.0).check()


def test_problems_survive_a_round_trip_through_json():
    problems = make_problems(0.5)
    again = Problems.from_json(problems.to_json(), 0.001)
    assert again.summary() == problems.summary()
    assert again.max_share == 0.001
    with pytest.raises(UserError, match='line 1 column 5'):
        again.check()


@pytest.mark.parametrize(
    'value, kind',
    [
        (b'caf\xe9', "'x' is not UTF-8"),
        (7, "'x' is not text"),
        (None, "'x' is not text"),
        (' \n\t', "'x' is empty"),
        ('a' * 11, "'x' is longer than 10 characters"),
        ('a\ud800b', "'x' contains a lone surrogate"),
    ],
)
def test_check_text_reports_the_kind_of_problem(value, kind):
    with pytest.raises(BadRow) as error:
        decode_text_field('x', value, 10)
    assert error.value.kind == kind


def test_check_text_returns_decoded_text():
    assert decode_text_field('x', 'a' * 10, 10) == 'a' * 10
    assert decode_text_field('x', 'café'.encode(), 10) == 'café'

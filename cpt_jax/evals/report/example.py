"""Examples for the report: a query, a right answer, and the best answers of the model and BM25."""

from collections.abc import Iterable
from typing import NamedTuple

EXAMPLE_QUERIES = 10  # number of queries that the report shows for each task
EXAMPLE_ANSWERS = 3  # number of answers that the report shows for each query
EXAMPLE_CHARACTERS = 1_500  # maximum characters of a text, to keep the report small


class FoundAnswer(NamedTuple):
    """A retrieved answer: its text, its score and whether it is right."""

    text: str
    score: float
    right: bool


class Answers(NamedTuple):
    """The best answers to a query in one ranking.

    Attributes:
      found: the first answers.
      rank: rank of the first right answer, from 1; None if the ranking has none.
    """

    found: list[FoundAnswer]
    rank: int | None


class Example(NamedTuple):
    """A query of the report.

    Attributes:
      query: text of the query.
      right: text of a right answer.
      model: answers of the model.
      bm25: answers of BM25.
    """

    query: str
    right: str
    model: Answers
    bm25: Answers


def cut_text(text: str) -> str:
    """Returns a text, cut to `EXAMPLE_CHARACTERS`."""
    return text if len(text) <= EXAMPLE_CHARACTERS else text[:EXAMPLE_CHARACTERS] + ' …'


def examples_to_json(examples: Iterable[Example]) -> list[dict]:
    """Returns examples as JSON objects."""
    return [
        {
            **example._asdict(),
            'model': _answers_to_json(example.model),
            'bm25': _answers_to_json(example.bm25),
        }
        for example in examples
    ]


def _answers_to_json(answers: Answers) -> dict:
    return {'found': [found._asdict() for found in answers.found], 'rank': answers.rank}

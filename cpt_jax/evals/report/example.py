"""Examples for the report: a query, a right answer, and what the model and BM25 find."""

from collections.abc import Iterable
from typing import NamedTuple

EXAMPLE_QUERIES = 10  # queries that the report shows for each task
EXAMPLE_ANSWERS = 3  # answers that it shows for each query
EXAMPLE_CHARACTERS = 1_500  # of a text; keeps the report small where documents are long


class Found(NamedTuple):
    """One answer to a query: its text, its score and whether it is right."""

    text: str
    score: float
    right: bool


class Answers(NamedTuple):
    """The best answers to a query in one ranking, and the rank of the first right one (None: not
    among those kept).
    """

    found: list[Found]
    rank: int | None


class Example(NamedTuple):
    """A query for people to look at, a right answer to it, and what the model and BM25 find."""

    query: str
    right: str
    model: Answers
    bm25: Answers


def cut_text(text: str) -> str:
    """Returns a text as the report keeps it: cut where it is long."""
    return text if len(text) <= EXAMPLE_CHARACTERS else text[:EXAMPLE_CHARACTERS] + ' …'


def examples_json(examples: Iterable[Example]) -> list[dict]:
    """Returns examples as JSON objects."""
    return [
        {
            **example._asdict(),
            'model': _answers_json(example.model),
            'bm25': _answers_json(example.bm25),
        }
        for example in examples
    ]


def _answers_json(answers: Answers) -> dict:
    return {'found': [found._asdict() for found in answers.found], 'rank': answers.rank}

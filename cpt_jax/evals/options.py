"""Options of evaluation tasks: fields of frozen dataclasses, from which launch/evaluate.py makes
its flags.

An option that several kinds of task have is declared once, here, in a base class of their options.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cpt_jax.runtime.errors import UserError
from cpt_jax.search.searcher import BASELINES, INDEXES, Searcher


@dataclass(frozen=True)
class Flag:
    """How an option is given on the command line.

    Attributes:
      help: text for --help.
      choices: the only values that a text option accepts besides its default; (): any.
      lower_bound: smallest value of a number; None: any.
      parse: turns what the user gave into the option's value.
      in_fingerprint: whether a change of the value makes earlier scores invalid.
      in_model_scores: whether the model's own scores depend on it, and not only what is measured or
        written in addition, such as baselines.
    """

    help: str
    choices: Sequence[str] = ()
    lower_bound: float | None = None
    parse: Callable[[Any], Any] = lambda value: value
    in_fingerprint: bool = True
    in_model_scores: bool = True


def option(default: Any, help: str, **flag: Any) -> Any:
    """Returns a dataclass field for one option; `flag` are the other attributes of `Flag`."""
    return dataclasses.field(default=default, metadata={'flag': Flag(help, **flag)})


def flag_of(field: dataclasses.Field) -> Flag:
    return field.metadata['flag']


def parse_option(field: dataclasses.Field, value: Any) -> Any:
    """Returns the value of an option as its `Flag.parse` turns it out.

    Args:
      field: the option.
      value: what the user gave, on the command line or in Python.

    Raises:
      UserError: the value is not among the choices or below the lower bound.
    """
    flag = flag_of(field)
    value = flag.parse(value)
    if flag.choices and value not in (*flag.choices, field.default):
        raise UserError(f'--{field.name} {value!r}: must be one of {", ".join(flag.choices)}')
    if flag.lower_bound is not None:
        if not isinstance(value, int | float) or not value >= flag.lower_bound:
            raise UserError(
                f'--{field.name} {value!r}: must be a number of at least {flag.lower_bound}'
            )
    return value


@dataclass(frozen=True)
class Options:
    """Base class of the options of a kind of task; by itself: no options."""

    def scored(self) -> dict[str, object]:
        """Returns the options that belong to the fingerprint, by name."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if flag_of(field).in_fingerprint
        }


@dataclass(frozen=True)
class SplitOptions(Options):
    """The split to score. '' is the split of the published tables."""

    split: str = option(
        '',
        'Of retrieval tasks (qrels/<split>.tsv), sts/STSBenchmark and sts/SICK-R. By default '
        'test, and dev of msmarco; STS12 to 16 have test alone.',
        choices=['test', 'dev', 'train'],
    )


@dataclass(frozen=True)
class SideOptions(Options):
    """The side of texts in tasks that have one kind of text."""

    symmetric_side: str = option(
        'x',
        'Side of all texts of tasks with one kind of text (sts, bias): the papers do not say '
        'which.',
        choices=['x', 'y'],
    )


def _drop_none(names: Iterable[str]) -> list[str]:
    return [name for name in names if name != 'none']


@dataclass(frozen=True)
class SearchOptions(Options):
    """How the documents of a query are searched."""

    k: int = option(
        100,
        'Documents kept for each query of a retrieval task; recall is measured there.',
        lower_bound=10,
    )
    index: str = option(
        'exact',
        "What searches documents: exactly, or an index of FAISS's, whose recall against exact "
        'search is told too.',
        choices=INDEXES,
    )
    search_memory: float = option(
        2.0,
        'GiB for the blocks of documents and of scores of exact search, of all devices together.',
        lower_bound=0.001,
        in_fingerprint=False,  # the memory changes no ranking
    )
    baselines: Sequence[str] = option(
        BASELINES,
        f'What retrieval and openqa tasks are compared with: of {", ".join(BASELINES)}, or none.',
        parse=_drop_none,
        in_model_scores=False,
    )
    trec_runs: bool = option(
        False,
        "Write the rankings of retrieval and openqa tasks in TREC's form: OUTPUT/runs/<task>.trec.",
        in_model_scores=False,
    )

    def __post_init__(self) -> None:
        if unknown := {*self.baselines} - {*BASELINES}:
            raise UserError(
                f'--baselines {",".join(sorted(unknown))}: there are {", ".join(BASELINES)} and '
                f'none'
            )
        _ = self.searcher  # an index that is not installed is reported before the model is loaded

    @property
    def searcher(self) -> Searcher:
        return Searcher(self.index, self.search_memory, self.baselines)

"""Options of evaluation tasks, as fields of frozen dataclasses.

launch/evaluate.py has a flag for each option.

An option that several kinds of task share is declared once, in a base class in this module.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cpt_jax.runtime.errors import UserError
from cpt_jax.search.searcher import BASELINES, INDEXES, Searcher
from cpt_jax.storage.vector_codes import PRECISIONS


@dataclass(frozen=True)
class OptionFlag:
    """The command-line flag of an option.

    Attributes:
      help: text for --help.
      choices: accepted values of a text option, in addition to its default; () accepts any.
      lower_bound: smallest accepted number; None accepts any.
      parse: converts the user's value to the option's value.
      in_fingerprint: whether a change of the value invalidates earlier scores.
      in_model_scores: whether the model's own scores depend on the option. False for options that
        only change additional output, such as baselines.
      was_added_later: whether the default is left out of the fingerprint, so that scores from
        before the option existed stay valid.
    """

    help: str
    choices: Sequence[str] = ()
    lower_bound: float | None = None
    parse: Callable[[Any], Any] = lambda value: value
    in_fingerprint: bool = True
    in_model_scores: bool = True
    was_added_later: bool = False


def declare_option(default: Any, help: str, **flag: Any) -> Any:
    """Returns the dataclass field of one option.

    Args:
      default: default value.
      help: text for --help.
      flag: other attributes of `OptionFlag`.
    """
    return dataclasses.field(default=default, metadata={'flag': OptionFlag(help, **flag)})


def get_flag(field: dataclasses.Field) -> OptionFlag:
    return field.metadata['flag']


def parse_option(field: dataclasses.Field, value: Any) -> Any:
    """Returns the value of an option after conversion by its `OptionFlag.parse` and checks.

    Args:
      field: dataclass field of the option.
      value: user's value, from the command line or from Python.

    Raises:
      UserError: the value is not one of the choices, or is below the lower bound.
    """
    flag = get_flag(field)
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
    """Options of a kind of task. The base class has none."""

    def get_fingerprinted(self) -> dict[str, object]:
        """Returns the values of the options that are part of the fingerprint, by name."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if get_flag(field).in_fingerprint
            and not (get_flag(field).was_added_later and getattr(self, field.name) == field.default)
        }


@dataclass(frozen=True)
class SplitOptions(Options):
    """Split to score; '' selects the split that published results of the task use."""

    split: str = declare_option(
        '',
        'Split of retrieval tasks (qrels/<split>.tsv), sts/STSBenchmark and sts/SICK-R. Default: '
        'test (dev for msmarco). STS12 to STS16 have only a test split.',
        choices=['test', 'dev', 'train'],
    )


@dataclass(frozen=True)
class SideOptions(Options):
    """Which side (x or y, query or document) all texts are encoded as in symmetric tasks.

    A symmetric task has only one kind of text.
    """

    symmetric_side: str = declare_option(
        'x',
        'Side of all texts in tasks with one kind of text (sts, bias). The papers do not specify '
        'it.',
        choices=['x', 'y'],
    )


def _drop_none(names: Iterable[str]) -> list[str]:
    return [name for name in names if name != 'none']


@dataclass(frozen=True)
class SearchOptions(Options):
    """How the documents of a query are searched."""

    k: int = declare_option(
        100,
        'Documents kept for each query of a retrieval task; recall is measured at this rank.',
        lower_bound=10,
    )
    index: str = declare_option(
        'exact',
        'Search method: exact search, or a FAISS index. For a FAISS index, the recall against '
        'exact search is reported too.',
        choices=INDEXES,
    )
    precision: str = declare_option(
        'float32',
        'Precision of the document vectors in retrieval and openqa tasks: float32, int8 or binary. '
        'The recall against exact search with float32 vectors is reported too.',
        choices=PRECISIONS,
        was_added_later=True,
    )
    rescore: int = declare_option(
        4,
        'With --precision=binary: how many times --k documents the Hamming distance selects, which '
        'the float32 query then scores; 0 ranks by Hamming distance alone.',
        lower_bound=0,
        was_added_later=True,
    )
    search_memory: float = declare_option(
        2.0,
        'GiB for the blocks of documents and scores of exact search, on all devices together.',
        lower_bound=0.001,
        in_fingerprint=False,  # rankings do not depend on the block size
    )
    baselines: Sequence[str] = declare_option(
        BASELINES,
        f'Baselines of retrieval and openqa tasks: some of {", ".join(BASELINES)}, or none.',
        parse=_drop_none,
        in_model_scores=False,
    )
    trec_runs: bool = declare_option(
        False,
        'Write the rankings of retrieval and openqa tasks in TREC format: OUTPUT/runs/<task>.trec.',
        in_model_scores=False,
    )

    def __post_init__(self) -> None:
        if unknown := {*self.baselines} - {*BASELINES}:
            raise UserError(
                f'--baselines {",".join(sorted(unknown))}: choose from {", ".join(BASELINES)} or '
                f'none'
            )
        _ = self.searcher  # reports a missing FAISS installation before the model is loaded

    @property
    def searcher(self) -> Searcher:
        return Searcher(
            self.index, self.search_memory, self.baselines, self.precision, self.rescore
        )

"""The sections of a config of data preparation, one class a section."""

import dataclasses
from collections.abc import Sequence

from cpt_jax.prepare.languages import check_languages
from cpt_jax.prepare.packages import require_package
from cpt_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Filters:
    """Which documents are kept.

    Attributes:
      min_characters, max_characters: limits of a document's length.
      languages: languages of documents to keep, as ISO 639-1 codes such as 'en'; (): all.
      min_language_probability: minimum probability of the language.
      quality: whether documents that look like no prose are dropped (cpt_jax/prepare/quality.py).
    """

    min_characters: int = 1
    max_characters: int = 100_000_000
    languages: Sequence[str] = ()
    min_language_probability: float = 0.5
    quality: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.min_characters <= self.max_characters:
            raise UserError(
                f'filters.min_characters={self.min_characters}: must be from 0 to '
                f'filters.max_characters={self.max_characters}'
            )
        if not 0 <= self.min_language_probability <= 1:
            raise UserError(
                f'filters.min_language_probability={self.min_language_probability:g}: must be from '
                f'0 to 1'
            )
        if self.languages:
            check_languages(self.languages)


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Which duplicates are removed, across all sources; the first one is kept.

    Attributes:
      exact: whether documents with the same words are removed: equal in Unicode's form NFKC, with
        folded case and single spaces.
      near: whether near duplicates are removed too (cpt_jax/prepare/near_duplicates.py).
      near_similarity: minimum Jaccard similarity of near duplicates, in their windows of three
        words.
    """

    exact: bool = True
    near: bool = False
    near_similarity: float = 0.6

    def __post_init__(self) -> None:
        if not 0.5 <= self.near_similarity <= 1:
            raise UserError(
                f'duplicates.near_similarity={self.near_similarity:g}: must be from 0.5 to 1: '
                f'texts that are less similar are not always found'
            )
        if self.near:
            require_package('rensa', 'duplicates.near')


@dataclasses.dataclass(frozen=True)
class Decontamination:
    """Which pairs with texts of test sets are removed.

    Attributes:
      data_dir: folder with the test sets, as --data_dir of launch/evaluate.py; '': none are known,
        and nothing is removed. The flag --data_dir sets it.
      documents: whether relevant documents of retrieval sets, and functions of code search, count
        as test texts; otherwise only queries, questions and test sentences do.
    """

    data_dir: str = ''
    documents: bool = True


@dataclasses.dataclass(frozen=True)
class Consistency:
    """Which pairs a model finds consistent (cpt_jax/prepare/consistency.py).

    Attributes:
      model: model reference, as --model of the other programs; '': no filter.
      top_k: a pair stays if its y is among the `top_k` nearest to x.
      sample: number of random y among which it is ranked.
    """

    model: str = ''
    top_k: int = 2
    sample: int = 100_000

    def __post_init__(self) -> None:
        for name, value in (('top_k', self.top_k), ('sample', self.sample)):
            if value < 1:
                raise UserError(f'consistency.{name}={value}: must be 1 or more')


@dataclasses.dataclass(frozen=True)
class Output:
    """How the data set is written.

    Attributes:
      holdout: fraction of the documents, in [0, 1), that is in the split `test`. Documents of a
        group are held out together.
      fields: fields of the documents to store as texts with each pair, such as 'license'.
      shard_mb: megabytes of input for a task, whose pairs are a shard of the data set; 0: a
        thousandth of the input, from 4 to 256.
      max_bad_share: maximum fraction of records that cannot be read, above which the run stops.
    """

    holdout: float = 0.0
    fields: Sequence[str] = ()
    shard_mb: float = 0.0
    max_bad_share: float = 0.001

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise UserError(f'output.holdout={self.holdout:g}: must be a fraction from 0 to 1')
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(
                f'output.max_bad_share={self.max_bad_share:g}: must be a fraction from 0 to 1'
            )
        if self.shard_mb < 0:
            raise UserError(f'output.shard_mb={self.shard_mb:g}: must be 0 or more')
        taken = [name for name in self.fields if name in ('x', 'y', 'id', 'source', 'negatives')]
        if taken:
            raise UserError(f'output.fields: {taken[0]!r} is stored with every pair: leave it out')

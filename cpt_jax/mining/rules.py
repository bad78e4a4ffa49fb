"""Which candidates of a query become its negatives."""

from dataclasses import dataclass

from cpt_jax.data.equality import EQUALITY_RULES, NORMALIZED
from cpt_jax.runtime.errors import UserError

SAMPLINGS = 'top', 'random'


@dataclass(frozen=True)
class MiningRules:
    """Rules by which negatives are selected.

    The candidates of a query are its nearest documents without its positives. Those that are too
    near by `max_share` or `margin` are removed; of the others, the first `first` are skipped, and
    the negatives are selected up to rank `last`. This is the order of sentence-transformers'
    `mine_hard_negatives` (6.2).

    Attributes:
      first: number of nearest candidates to skip.
      last: number of candidates up to which negatives are selected.
      negatives: number of negatives per pair.
      max_share: maximum score of a negative, as a share of the positive's: at most
        positive - |positive| (1 - max_share), as in TopK-PercPos (arXiv 2407.15831). Infinity: no
        maximum. Of several positives of a query, the one with the lowest score counts.
      margin: minimum by which the score of the positive exceeds that of a negative; None: any.
      sampling: 'top' for the nearest candidates, 'random' for random ones.
      seed: seed of 'random'.
      bm25: how many of the negatives are taken from BM25's ranking.
      equal_texts: when a document is a positive of the query: one of EQUALITY_RULES
        (data/equality.py). With NORMALIZED, a document is no negative either if it equals the query
        or another negative, or if the model reads it as it reads a positive (equal vectors, as
        of texts that differ only behind the maximum length).
    """

    first: int = 10
    last: int = 100
    negatives: int = 7
    max_share: float = 0.95
    margin: float | None = None
    sampling: str = 'top'
    seed: int = 0
    bm25: int = 0
    equal_texts: str = NORMALIZED

    def __post_init__(self) -> None:
        """Raises UserError for values that cannot be used."""
        if not 0 <= self.first < self.last:
            raise UserError(
                f'--range {self.first}:{self.last}: must be FIRST:LAST with 0 <= FIRST < LAST'
            )
        if not 1 <= self.negatives <= self.last - self.first:
            raise UserError(
                f'--negatives {self.negatives}: --range {self.first}:{self.last} has '
                f'{self.last - self.first} candidates: lower it, or widen --range'
            )
        if not self.max_share > 0:
            raise UserError(f'--max_share {self.max_share:g}: must be above 0; inf: no maximum')
        if self.bm25 > self.negatives:
            raise UserError(f'--bm25 {self.bm25}: must be at most --negatives {self.negatives}')
        if self.equal_texts not in EQUALITY_RULES:
            raise UserError(f'--equal_texts {self.equal_texts}: choose from {EQUALITY_RULES}')


def parse_range(text: str) -> tuple[int, int]:
    """Returns the numbers of 'FIRST:LAST'.

    Raises:
      UserError: the text has another form.
    """
    first, _, last = text.partition(':')
    if not (first.isdigit() and last.isdigit()):
        raise UserError(f'--range {text}: must be FIRST:LAST, such as 10:100')
    return int(first), int(last)

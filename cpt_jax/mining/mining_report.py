"""The report of mining: counts, histograms of scores, and examples to read."""

from collections.abc import Iterator, Sequence

import numpy as np

from cpt_jax.data.pairs import spread_indices
from cpt_jax.mining.mined_rows import find_rows, make_row
from cpt_jax.mining.miner import Mined
from cpt_jax.mining.pair_index import PairIndex
from cpt_jax.mining.pairs_to_mine import PairsToMine
from cpt_jax.mining.rules import MiningRules

EXAMPLES = 10
_BINS = 20
_QUANTILES = {'lowest': 0.0, '25 %': 0.25, 'median': 0.5, '75 %': 0.75, 'highest': 1.0}
_BAR = 30  # characters of the longest bar
_CHARACTERS = 160  # of a text of an example


def format_report(
    data: PairsToMine,
    index: PairIndex,
    mined: Mined,
    rules: MiningRules,
    min_negatives: int,
    notes: Sequence[str] = (),
) -> str:
    """Returns the report as text.

    Args:
      data, index, mined: the pairs and their negatives.
      rules: rules by which they were selected.
      min_negatives: minimum number of negatives of a row.
      notes: lines about the settings, optional.
    """
    kept = find_rows(index, mined, min_negatives)
    parts = [
        '\n'.join([*notes, *_format_counts(index, mined, rules, len(kept))]),
        '\n'.join(_format_histogram(index, mined, kept)),
        *_format_examples(data, index, mined, kept),
    ]
    return '\n\n'.join(part for part in parts if part) + '\n'


def _format_counts(index: PairIndex, mined: Mined, rules: MiningRules, rows: int) -> Iterator[str]:
    found_Q = (mined.negatives.documents_QxM >= 0).sum(axis=1)
    yield (
        f'{len(index.queries_N):,} pairs of {len(found_Q):,} queries, '
        f'{index.documents.size:,} documents: {found_Q.sum():,} negatives'
    )
    yield (
        f'{(found_Q < rules.negatives).sum():,} queries have fewer than {rules.negatives} '
        f'negatives, {(found_Q == 0).sum():,} of them none; {rows:,} rows'
    )
    removed = [
        f'{count:,} {reason}'
        for reason, count in mined.counts.items()
        if count and reason != 'candidates'
    ]
    yield (
        f'nearest documents that were removed: {", ".join(removed) or "none"}; '
        f'{mined.counts["candidates"]:,} candidates were left'
    )


def _format_histogram(index: PairIndex, mined: Mined, kept: np.ndarray) -> Iterator[str]:
    """Yields a table of quantiles, and the histograms of the scores side by side."""
    positive_P = mined.positive_scores_N[kept]
    negative_PxM = mined.negatives.scores_QxM[index.queries_N[kept]]
    is_found_PxM = negative_PxM > -np.inf
    if not is_found_PxM.any() or np.isnan(positive_P).all():
        return
    differences = (positive_P[:, None] - negative_PxM)[is_found_PxM]
    columns = {
        'positives': positive_P[~np.isnan(positive_P)],
        'negatives': negative_PxM[is_found_PxM],
        'difference': differences[~np.isnan(differences)],
    }
    yield f'{"scores":<10}' + ''.join(f'{name:>12}' for name in columns)
    for name, share in _QUANTILES.items():
        values = ''.join(f'{np.quantile(column, share):>12.4f}' for column in columns.values())
        yield f'{name:<10}{values}'
    del columns['difference']
    both = np.concatenate([*columns.values()])
    edges = np.linspace(both.min(), both.max(), _BINS + 1)
    counts = [np.histogram(column, edges)[0] for column in columns.values()]
    yield ''
    yield f'{"from":>8}  {"positives":<{_BAR + 10}}  negatives'
    for low, *row in zip(edges, *counts, strict=False):
        bars = [
            f'{"#" * round(_BAR * count / max(column.max(), 1))} {count:,}'
            for count, column in zip(row, counts, strict=True)
        ]
        yield f'{low:>8.3f}  {bars[0]:<{_BAR + 10}}  {bars[1]}'


def _format_examples(
    data: PairsToMine, index: PairIndex, mined: Mined, kept: np.ndarray
) -> Iterator[str]:
    """Yields pairs with their negatives, spread over all rows."""
    for number in spread_indices(len(kept), EXAMPLES).tolist() if len(kept) else ():
        row = make_row(data, index, mined, int(kept[number]))
        scores = [f'{score:.4f}' for score in row.get('scores', ())]
        scores = scores or [''] * (1 + len(row['negatives']))
        lines = [f'{row["id"]}', f'  x         {_shorten(row["x"])}']
        lines.append(f'  y  {scores[0]:>6} {_shorten(row["y"])}')
        lines += [
            f'  -  {score:>6} {_shorten(text)}'
            for score, text in zip(scores[1:], row['negatives'], strict=True)
        ]
        yield '\n'.join(lines)


def _shorten(text: str) -> str:
    """Returns the beginning of a text, on one line."""
    line = ' '.join(text.split())
    return line if len(line) <= _CHARACTERS else line[:_CHARACTERS] + ' ...'

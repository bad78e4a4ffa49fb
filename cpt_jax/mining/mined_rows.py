"""Writes mined pairs as the rows that training reads."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cpt_jax.mining.miner import Mined
from cpt_jax.mining.pair_index import PairIndex
from cpt_jax.mining.pairs_to_mine import PairsToMine
from cpt_jax.mining.progress import Progress
from cpt_jax.storage.atomic_write import open_atomically

# Fields of the rows of --data that are copied, if a row has them: a config may hold out rows of
# the same group together (configs/finetune.py).
GROUP_FIELDS = 'group', 'file', 'path'


def make_row(data: PairsToMine, index: PairIndex, mined: Mined, pair: int) -> dict[str, Any]:
    """Returns the row of a pair: id, x, y, negatives, the scores of y and of the negatives, and the
    GROUP_FIELDS of the pair's row.

    Without a score of y, as with BM25 alone, the row has no scores.
    """
    x, y, *_ = found = data.pairs[pair]
    query = index.queries_N[pair]
    documents_M = mined.negatives.documents_QxM[query]
    documents_M = documents_M[documents_M >= 0]
    row: dict[str, Any] = {
        'id': found.id,
        'x': x,
        'y': y,
        'negatives': index.documents.read_texts(documents_M.tolist()),
    }
    positive_score = mined.positive_scores_N[pair]
    if not np.isnan(positive_score):
        scores_M = mined.negatives.scores_QxM[query][: len(documents_M)]
        # Nine digits distinguish all float32 numbers.
        row['scores'] = [float(f'{score:.9g}') for score in (positive_score, *scores_M)]
    fields = data.read_fields(pair)
    return row | {name: fields[name] for name in GROUP_FIELDS if name in fields}


def write_rows(
    path: Path, data: PairsToMine, index: PairIndex, mined: Mined, min_negatives: int
) -> int:
    """Writes the rows of all pairs that have enough negatives, atomically; returns their number.

    Args:
      path: the .jsonl file.
      data, index, mined: the pairs and their negatives.
      min_negatives: minimum number of negatives of a row.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = find_rows(index, mined, min_negatives)

    def encode_rows() -> Iterator[bytes]:
        with Progress('writing', len(kept), 'row') as progress:
            for pair in kept.tolist():
                row = make_row(data, index, mined, pair)
                yield json.dumps(row, ensure_ascii=False).encode('utf-8', 'surrogatepass') + b'\n'
                progress.update(1)

    with open_atomically(path) as file:
        file.writelines(encode_rows())
    return len(kept)


def find_rows(index: PairIndex, mined: Mined, min_negatives: int) -> np.ndarray:
    """Returns the indices of the pairs that have enough negatives."""
    found_Q = (mined.negatives.documents_QxM >= 0).sum(axis=1)
    return np.flatnonzero(found_Q[index.queries_N] >= min_negatives)

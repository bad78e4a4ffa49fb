"""The texts of the pairs to mine, each of which is embedded once."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cpt_jax.data.equality import NORMALIZED
from cpt_jax.data.pairs import digest_texts
from cpt_jax.mining.pairs_to_mine import PairsToMine
from cpt_jax.mining.progress import Progress
from cpt_jax.mining.text_table import TextTable, build_text_table
from cpt_jax.runtime.errors import UserError
from cpt_jax.text.tokenizer import Side


class PairIndex(NamedTuple):
    """The distinct queries and documents, and the N pairs as their indices.

    Attributes:
      queries: the x's.
      documents: the texts of the corpus, then the y's.
      queries_N: int64, index of the query of each pair.
      documents_N: int64, index of the document of each pair.
    """

    queries: TextTable
    documents: TextTable
    queries_N: np.ndarray
    documents_N: np.ndarray

    @property
    def fingerprint(self) -> str:
        """Digest of all texts, in order."""
        return digest_texts(self.queries.fingerprint, self.documents.fingerprint)


class Exclusions(NamedTuple):
    """The documents that are no negatives of a query.

    Attributes:
      queries_E: int64, ascending indices of queries.
      documents_E: int64, index of a document for each of them; a query may occur several times.
      most: largest number of documents of one query.
    """

    queries_E: np.ndarray
    documents_E: np.ndarray
    most: int


def index_pairs(
    data: PairsToMine, folder: Path, equal_texts: str, fold_case: bool = True
) -> PairIndex:
    """Reads all texts, and writes the distinct ones into a folder.

    Args:
      data: the pairs and the corpus.
      folder: the folder.
      equal_texts: one of EQUALITY_RULES (data/equality.py).
      fold_case: see `compute_merged_key`.

    Raises:
      UserError: there is no pair.
    """
    pairs = len(data.pairs)
    if not pairs:
        raise UserError('--data: there is no pair')

    def iterate_sides(side: Side) -> Iterator[str]:
        with Progress(f'reading {side}', pairs, 'pair') as progress:
            for index in range(pairs):
                pair = data.pairs[index]
                yield pair.x if side == 'x' else pair.y
                progress.update(1)

    def iterate_documents() -> Iterator[str]:
        yield from (text for text in data.iterate_corpus() if text.strip())
        yield from iterate_sides('y')

    queries, queries_N = build_text_table(
        folder / 'queries.txt', iterate_sides('x'), equal_texts, fold_case
    )
    documents, documents_M = build_text_table(
        folder / 'documents.txt', iterate_documents(), equal_texts, fold_case
    )
    return PairIndex(queries, documents, queries_N, documents_M[-pairs:])


def find_exclusions(index: PairIndex, equal_texts: str) -> Exclusions:
    """Returns the documents that are no negatives of a query: its positives and, with NORMALIZED,
    itself.
    """
    queries_E = index.queries_N
    documents_E = index.documents_N
    if equal_texts == NORMALIZED:
        own_Q = index.documents.find_keys(index.queries.keys_N)
        is_document_Q = own_Q >= 0
        queries_E = np.append(queries_E, np.flatnonzero(is_document_Q))
        documents_E = np.append(documents_E, own_Q[is_document_Q])
    both_Ex2 = np.unique(np.stack([queries_E, documents_E], axis=1), axis=0)
    queries_E, documents_E = both_Ex2.T
    return Exclusions(queries_E, documents_E, int(np.bincount(queries_E).max()))

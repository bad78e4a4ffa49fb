"""Scores of a reranker for queries and documents, read from a file of mined rows.

A row has the fields of a mined row: `x`, `y`, `negatives` and `scores`, where `scores` has the
reranker's score of y and then of each negative. So candidates are mined once, scored with a
reranker, and mined again among those with a score.
"""

from array import array
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from etils import epath

from cpt_jax.mining.text_table import compute_merged_key
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_checks import is_number
from cpt_jax.storage.text_lines import get_text_field, read_json_lines


class RerankerScores(NamedTuple):
    """Scores of pairs of texts; 12 bytes of memory per pair.

    Attributes:
      keys_M: uint64, ascending keys of pairs.
      scores_M: float32, their scores.
    """

    keys_M: np.ndarray
    scores_M: np.ndarray

    def find_scores(self, query_keys_M: np.ndarray, document_keys_M: np.ndarray) -> np.ndarray:
        """Returns float32[M]: the scores of pairs of texts; NaN where there is none.

        Args:
          query_keys_M, document_keys_M: uint64 keys of the texts.
        """
        keys_M = combine_keys(query_keys_M, document_keys_M)
        positions_M = np.minimum(np.searchsorted(self.keys_M, keys_M), len(self.keys_M) - 1)
        is_found_M = self.keys_M[positions_M] == keys_M
        return np.where(is_found_M, self.scores_M[positions_M], np.float32(np.nan))

    def compute_fingerprint(self) -> str:
        """Returns 32 hex digits, a digest of all scores."""
        digest = blake2b(self.keys_M.data, digest_size=16)
        digest.update(self.scores_M.data)
        return digest.hexdigest()


def combine_keys(a_M: np.ndarray, b_M: np.ndarray) -> np.ndarray:
    """Returns uint64[M]: keys of ordered pairs of texts, from their keys, which are hashes."""
    # An odd factor keeps all bits of `a`, and makes (a, b) and (b, a) different.
    return a_M * np.uint64(0x9E3779B97F4A7C15) ^ b_M


def read_reranker_scores(
    path: epath.Path, equal_texts: str, fold_case: bool = True
) -> RerankerScores:
    """Reads the scores of a file.

    Args:
      path: a .jsonl file, optionally compressed.
      equal_texts: one of EQUALITY_RULES (data/equality.py).
      fold_case: see `compute_merged_key`.

    Raises:
      UserError: a row has no scores, too few or too many; the message has file and line.
    """
    queries = array('Q')
    documents = array('Q')
    scores = array('f')
    for where, row in read_json_lines(path):
        x = get_text_field(row, where, 'x')
        texts = [get_text_field(row, where, 'y'), *_get_negatives(row, where)]
        found = row.get('scores')
        if not isinstance(found, list) or not all(map(is_number, found)):
            raise UserError(f'{where}: "scores" must be a list of numbers')
        if len(found) != len(texts):
            raise UserError(
                f'{where}: "scores" has {len(found)} numbers and must have {len(texts)}: that of y '
                f'and those of its {len(texts) - 1} negatives'
            )
        queries.extend([compute_merged_key(x, equal_texts, fold_case)] * len(texts))
        documents.extend(compute_merged_key(text, equal_texts, fold_case) for text in texts)
        scores.extend(found)
    if not scores:
        raise UserError(f'{path}: the file has no rows')
    keys_M = combine_keys(np.array(queries, np.uint64), np.array(documents, np.uint64))
    keys_M, first_M = np.unique(keys_M, return_index=True)
    return RerankerScores(keys_M, np.array(scores, np.float32)[first_M])


def _get_negatives(row: dict, where: str) -> list[str]:
    negatives = row.get('negatives')
    if not isinstance(negatives, list) or not all(isinstance(text, str) for text in negatives):
        raise UserError(f'{where}: "negatives" must be a list of texts')
    return negatives

"""Code search: find the function that a docstring was written for, among 1,000 candidates.

The protocol is that of CodeBERT's `codesearch/{process_data,mrr}.py`, which cpt-code's figures follow: the pairs are shuffled
with numpy's seed 0 and cut into chunks of 1,000, the last incomplete chunk is dropped, every docstring is a query to the code
of its own chunk, ties count against, and the mean of 1/rank is taken over all queries.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from etils import epath

from cpt_jax.errors import UserError
from cpt_jax.evals.baselines import BM25_SETTINGS, RANDOM_WIDTH, Bm25, random_embed
from cpt_jax.evals.code_pairs import CodePairs, file_pairs, python_source_pairs
from cpt_jax.evals.ranking import embed_texts, ranks_of_right
from cpt_jax.evals.task import EXAMPLES, SHOWN, Answers, Embed, Example, Found, Result, library_versions, shown

SEED = 0
CUTOFFS = 1, 5, 10
SUFFIXES = '.jsonl', '.jsonl.gz'

# Rows of a chunk -> float32 scores [rows, rows] of each query with each code; the right ones stand on the diagonal.
Scorer = Callable[[slice], np.ndarray]


@dataclass(frozen=True)
class CodeSearch:
    """One set of pairs.

    Attributes:
      name: of the task, such as 'codesearch/python_source'.
      load: reads the pairs.
      candidates: how many functions are searched for each query (1,000; the cpt paper has a table with 10,000).
    """

    name: str
    load: Callable[[], CodePairs]
    candidates: int = 1000

    def run(self, embed: Embed) -> Result:
        pairs = self.load()
        pieces = chunks(len(pairs.queries), self.candidates)
        order = np.concatenate(pieces)
        queries, codes = [pairs.queries[i] for i in order], [pairs.codes[i] for i in order]
        scorers = {
            'model': _vector_scores(embed, queries, codes),
            'bm25': _bm25_scores(queries, codes),
            'random': _vector_scores(random_embed(SEED), queries, codes),
        }
        ranks: dict[str, list[np.ndarray]] = {name: [] for name in scorers}
        examples: list[Example] = []
        for start in range(0, len(order), len(pieces[0])):
            rows = slice(start, start + len(pieces[0]))
            scores = {name: score(rows) for name, score in scorers.items()}
            for name, scores_QxN in scores.items():
                ranks[name].append(ranks_of_right(scores_QxN))
            examples = examples or _examples(queries[rows], codes[rows], scores)
        pool = len(pieces[0])
        metrics = {name: rank_metrics(np.concatenate(parts), pool) for name, parts in ranks.items()}
        return Result(
            metric=f'mrr_of_{pool}',
            metrics=metrics.pop('model'),
            n=pool * len(pieces),
            settings=self._settings(pairs, pool, len(pieces)),
            baselines=metrics,
            examples=examples,
        )

    def _settings(self, pairs: CodePairs, pool: int, pieces: int) -> dict[str, object]:
        whole = f'; the whole set is one chunk, as it has fewer than {self.candidates}' if pool < self.candidates else ''
        return {
            'protocol': f'CodeBERT: shuffled, chunks of {pool}, last incomplete one dropped, ties count against{whole}',
            'direction': 'query to code',
            'similarity': 'dot product of unit vectors, float32',
            'candidates': pool,
            'chunks': pieces,
            'seed': SEED,
            'random_width': RANDOM_WIDTH,
            'bm25': BM25_SETTINGS,
            'libraries': library_versions('bm25s'),
            **pairs.settings,
        }


def find_tasks(
    data_dir: epath.Path | None, candidates: int = 1000, text: str = 'raw', trained_on: Sequence[Mapping] = ()
) -> dict[str, CodeSearch]:
    """The tasks that can be run, by name: the built-in one, and one for each file of `data_dir`/codesearch."""
    tasks = {}
    for path in sorted((data_dir / 'codesearch').glob('*')) if data_dir else ():
        suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
        if suffix:
            name = f'codesearch/{path.name.removesuffix(suffix)}'
            if name in tasks:
                raise UserError(f'{path}: the task {name} would have two files: remove one of them')
            tasks[name] = CodeSearch(name, lambda path=path: file_pairs(path, text), candidates)
    name = 'codesearch/python_source'
    return tasks | {name: CodeSearch(name, partial(python_source_pairs, trained_on), candidates)}


def chunks(total: int, size: int) -> list[np.ndarray]:
    """Shuffled positions in chunks of `size`, the incomplete rest dropped; all in one chunk where there are fewer."""
    order = np.arange(total)
    np.random.RandomState(SEED).shuffle(order)  # the same stream as np.random.seed(0); np.random.shuffle(order)
    return [order] if total < size else [order[start : start + size] for start in range(0, total - size + 1, size)]


def rank_metrics(ranks: np.ndarray, pool: int) -> dict[str, float]:
    """Means over the queries of int64 ranks from 1; the number of candidates stands in each name."""
    metrics = {f'mrr_of_{pool}': float(np.mean(1 / ranks))}
    return metrics | {f'recall@{k}_of_{pool}': float(np.mean(ranks <= k)) for k in CUTOFFS}


def _vector_scores(embed: Embed, queries: Sequence[str], codes: Sequence[str]) -> Scorer:
    queries_QxD, codes_QxD = embed_texts(embed, queries, 'x'), embed_texts(embed, codes, 'y')
    return lambda rows: queries_QxD[rows] @ codes_QxD[rows].T


def _bm25_scores(queries: Sequence[str], codes: Sequence[str]) -> Scorer:
    def scores(rows: slice) -> np.ndarray:
        index = Bm25(codes[rows])
        return np.stack([index.scores(query) for query in queries[rows]])

    return scores


def _examples(queries: Sequence[str], codes: Sequence[str], scores: dict[str, np.ndarray]) -> list[Example]:
    """The first queries of a chunk, which is shuffled."""
    ranks = {name: ranks_of_right(scores_QxN) for name, scores_QxN in scores.items()}

    def answers(name: str, query: int) -> Answers:
        best = np.argsort(-scores[name][query], kind='stable')[:SHOWN]
        found = [Found(shown(codes[i]), float(scores[name][query, i]), bool(i == query)) for i in best]
        return Answers(found, int(ranks[name][query]))

    return [Example(queries[q], shown(codes[q]), answers('model', q), answers('bm25', q)) for q in range(min(EXAMPLES, len(queries)))]

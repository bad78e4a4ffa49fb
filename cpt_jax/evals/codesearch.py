"""Code search: find the function that a docstring was written for, among 1,000, 10,000 or all candidates; and the other way round.

The protocol of pools is that of CodeBERT's `codesearch/{process_data,mrr}.py`, which cpt-code's figures follow: the pairs are shuffled
with numpy's seed 0 and cut into chunks of 1,000, the last incomplete chunk is dropped, every docstring is a query to the code
of its own chunk, ties count against, and the mean of 1/rank is taken over all queries. CodeSearchNet's own `model_test.py` takes the same
chunks the other way round, from code to docstring.

That of all candidates is GraphCodeBERT's `codesearch/run.py`: one pool for a language, with the codes of its other files where a codebase
is there, and ranks beyond 1,000 count 0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from etils import epath

from cpt_jax.errors import UserError
from cpt_jax.evals.baselines import BM25_SETTINGS, RANDOM_WIDTH, Bm25, random_embed
from cpt_jax.evals.code_pairs import CodePairs, file_pairs, python_source_pairs
from cpt_jax.evals.ranking import embed_texts, ranks_of_right
from cpt_jax.evals.task import EXAMPLES, SHOWN, Answers, Embed, Example, Found, Result, library_versions, shown

SEED = 0
CUTOFFS = 1, 5, 10
DEEPEST = 1000  # rank that counts where all codes are candidates
QUERIES_AT_ONCE = 256
# The first is that of a language's test set as CodeSearchNet gives it out.
SUFFIXES = '_test_0.jsonl.gz', '.jsonl', '.jsonl.gz'
CODEBASE = '.codebase'  # before the suffix of a file with more candidates
# Directions -> how the names of their metrics begin.
DIRECTIONS = {'text_to_code': '', 'code_to_text': 'code_to_text_'}
BOTH = 'both'

# Some queries -> float32 scores [rows, N] of each with each candidate.
Scorer = Callable[[slice], np.ndarray]


class _Texts(NamedTuple):
    """What is searched in one pool: `candidates[i]` is the answer to `queries[i]`, and those after the last query are nobody's."""

    queries: list[str]
    candidates: list[str]


class _Vectors(NamedTuple):
    """Of all queries, of their codes, and of the codes of nobody."""

    queries_QxD: np.ndarray
    codes_QxD: np.ndarray
    others_NxD: np.ndarray


@dataclass(frozen=True)
class CodeSearch:
    """One set of pairs.

    Attributes:
      name: of the task, such as 'codesearch/python_source'.
      load: reads the pairs.
      candidates: how many functions are searched for each query (1,000; the cpt paper has a table with 10,000); 0: all.
      direction: one of `DIRECTIONS`, or 'both'.
    """

    name: str
    load: Callable[[], CodePairs]
    candidates: int = 1000
    direction: str = 'text_to_code'

    def run(self, embed: Embed) -> Result:
        pairs = self.load()
        pieces = chunks(len(pairs.queries), self.candidates)
        order = np.concatenate(pieces)
        queries, codes = [pairs.queries[i] for i in order], [pairs.codes[i] for i in order]
        others = [] if self.candidates else pairs.other_codes
        vectors = {name: _vectors(model, queries, codes, others) for name, model in (('model', embed), ('random', random_embed(SEED)))}
        directions = list(DIRECTIONS) if self.direction == BOTH else [self.direction]
        metrics: dict[str, dict[str, float]] = {name: {} for name in ('model', 'bm25', 'random')}
        examples: list[Example] = []
        for direction in directions:
            ranks: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
            for start in range(0, len(order), len(pieces[0])):
                rows = slice(start, start + len(pieces[0]))
                texts = _texts(direction, queries[rows], codes[rows], others)
                scorers = {name: _vector_scorer(direction, rows, found) for name, found in vectors.items()} | {'bm25': _bm25_scorer(texts)}
                for name in metrics:
                    ranks[name].append(_ranks(scorers[name], len(texts.queries)))
                examples = examples or _examples(texts, scorers)
            for name, parts in ranks.items():
                metrics[name] |= rank_metrics(np.concatenate(parts), len(pieces[0]) if self.candidates else None, DIRECTIONS[direction])
        return Result(
            metric=f'{DIRECTIONS[directions[0]]}mrr_of_{len(pieces[0]) if self.candidates else "all"}',
            metrics=metrics.pop('model'),
            n=len(order),
            settings=self._settings(pairs, len(pieces[0]) + len(others), len(pieces), directions),
            baselines=metrics,
            examples=examples,
        )

    def _settings(self, pairs: CodePairs, pool: int, pieces: int, directions: Sequence[str]) -> dict[str, object]:
        whole = f'; the whole set is one chunk, as it has fewer than {self.candidates}' if pool < self.candidates else ''
        chunked = f'CodeBERT: shuffled, chunks of {pool}, last incomplete one dropped, ties count against{whole}'
        undivided = f'GraphCodeBERT: all codes are candidates, a rank beyond {DEEPEST} counts 0, ties count against'
        words = {'text_to_code': 'query to code', 'code_to_text': 'code to query'}
        return {
            'protocol': chunked if self.candidates else undivided,
            'direction': ' and '.join(words[direction] for direction in directions),
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
    data_dir: epath.Path | None,
    candidates: int = 1000,
    text: str = 'raw',
    trained_on: Sequence[Mapping] = (),
    direction: str = 'text_to_code',
) -> dict[str, CodeSearch]:
    """The tasks that can be run, by name: the built-in one, and one for each file of `data_dir`/codesearch."""
    tasks = {}
    for path in sorted((data_dir / 'codesearch').glob('*')) if data_dir else ():
        suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
        if suffix and not path.name.endswith(CODEBASE + suffix):
            stem = path.name.removesuffix(suffix)
            name = f'codesearch/{stem}'
            if name in tasks:
                raise UserError(f'{path}: the task {name} would have two files: remove one of them')
            more = [path.parent / f'{stem}{CODEBASE}{suffix}' for suffix in SUFFIXES[1:]]
            codebase = None if candidates else next((file for file in more if file.exists()), None)
            tasks[name] = CodeSearch(name, partial(file_pairs, path, text, codebase), candidates, direction)
    name = 'codesearch/python_source'
    return tasks | {name: CodeSearch(name, partial(python_source_pairs, trained_on), candidates, direction)}


def chunks(total: int, size: int) -> list[np.ndarray]:
    """Shuffled positions in chunks of `size`, the incomplete rest dropped; all in one chunk where there are fewer, or size is 0."""
    order = np.arange(total)
    np.random.RandomState(SEED).shuffle(order)  # the same stream as np.random.seed(0); np.random.shuffle(order)
    return [order] if total < size or not size else [order[start : start + size] for start in range(0, total - size + 1, size)]


def rank_metrics(ranks: np.ndarray, pool: int | None, prefix: str = '') -> dict[str, float]:
    """Means over the queries of int64 ranks from 1; the number of candidates stands in each name, or 'all' (None)."""
    among = f'of_{pool or "all"}'
    reciprocal = np.where((ranks <= DEEPEST) | bool(pool), 1 / ranks, 0)
    metrics = {f'{prefix}mrr_{among}': float(np.mean(reciprocal))}
    return metrics | {f'{prefix}recall@{k}_{among}': float(np.mean(ranks <= k)) for k in CUTOFFS}


def _vectors(embed: Embed, queries: Sequence[str], codes: Sequence[str], others: Sequence[str]) -> _Vectors:
    queries_QxD, codes_QxD = embed_texts(embed, queries, 'x'), embed_texts(embed, codes, 'y')
    return _Vectors(queries_QxD, codes_QxD, embed_texts(embed, others, 'y') if others else codes_QxD[:0])


def _texts(direction: str, queries: list[str], codes: list[str], others: list[str]) -> _Texts:
    return _Texts(queries, codes + others) if direction == 'text_to_code' else _Texts(codes, queries)


def _vector_scorer(direction: str, pool: slice, vectors: _Vectors) -> Scorer:
    """The same vectors in both directions: a docstring is side x, a function side y."""
    queries_QxD, candidates_NxD = vectors.queries_QxD[pool], np.concatenate([vectors.codes_QxD[pool], vectors.others_NxD])
    if direction == 'code_to_text':
        queries_QxD, candidates_NxD = vectors.codes_QxD[pool], vectors.queries_QxD[pool]
    return lambda rows: queries_QxD[rows] @ candidates_NxD.T


def _bm25_scorer(texts: _Texts) -> Scorer:
    index = Bm25(texts.candidates)
    return lambda rows: np.stack([index.scores(query) for query in texts.queries[rows]])


def _ranks(scorer: Scorer, queries: int) -> np.ndarray:
    starts = range(0, queries, QUERIES_AT_ONCE)
    return np.concatenate([ranks_of_right(scorer(slice(start, min(start + QUERIES_AT_ONCE, queries))), start) for start in starts])


def _examples(texts: _Texts, scorers: dict[str, Scorer]) -> list[Example]:
    """The first queries of a chunk, which is shuffled."""
    rows = slice(0, min(EXAMPLES, len(texts.queries)))
    scores = {name: scorers[name](rows) for name in ('model', 'bm25')}
    ranks = {name: ranks_of_right(scores_QxN) for name, scores_QxN in scores.items()}

    def answers(name: str, query: int) -> Answers:
        best = np.argsort(-scores[name][query], kind='stable')[:SHOWN]
        found = [Found(shown(texts.candidates[i]), float(scores[name][query, i]), bool(i == query)) for i in best]
        return Answers(found, int(ranks[name][query]))

    return [Example(shown(texts.queries[q]), shown(texts.candidates[q]), answers('model', q), answers('bm25', q)) for q in range(rows.stop)]

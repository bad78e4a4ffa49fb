"""Code search: finds the function of a docstring, or the docstring of a function, among 1,000,
10,000 or all candidates.

For a fixed number of candidates, the protocol is that of CodeBERT's
`codesearch/{process_data,mrr}.py`, as in the cpt paper. The pairs are shuffled with numpy's seed 0
and divided into chunks of 1,000; an incomplete last chunk is dropped. Each docstring is a query for
the functions of its chunk. Ties count against the right answer. The score is the mean of 1/rank
over all queries. CodeSearchNet's own `model_test.py` uses the same chunks in the other direction,
from function to docstring.

For all candidates, the protocol is that of GraphCodeBERT's `codesearch/run.py`. All functions of a
language are candidates, including those of a codebase file if there is one. A query whose
rank is above 1,000 scores 0.
"""

import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from cpt_jax.benchmark_data.code_pairs import (
    CodePairs,
    compute_heldout_fingerprint,
    load_file_pairs,
    load_python_source_pairs,
)
from cpt_jax.data.source_keys import SOURCE_KEYS
from cpt_jax.embed.function import Embed, describe_similarity, embed_texts
from cpt_jax.evals.fingerprint import fingerprint_glob, fingerprint_task
from cpt_jax.evals.intervals.item_scores import QueryScores
from cpt_jax.evals.options import Options, declare_option
from cpt_jax.evals.report.example import (
    EXAMPLE_ANSWERS,
    EXAMPLE_QUERIES,
    Answers,
    Example,
    FoundAnswer,
    cut_text,
)
from cpt_jax.evals.store.embedding_cache import digest_json
from cpt_jax.evals.task import Context, Result, Task, TaskKind, read_library_versions
from cpt_jax.runtime.errors import UserError
from cpt_jax.search.bm25 import BM25_SETTINGS, RANDOM_WIDTH, Bm25, make_random_embed
from cpt_jax.search.ranking import rank_right_candidates
from cpt_jax.storage.text_lines import find_paths

SEED = 0
CUTOFFS = 1, 5, 10
MAX_RANK = 1000  # if all functions are candidates, queries with a larger rank score 0
QUERIES_AT_ONCE = 256
# Suffixes of data files. The first one is that of test sets in CodeSearchNet's release.
SUFFIXES = '_test_0.jsonl.gz', '.jsonl', '.jsonl.gz'
CODEBASE = '.codebase'  # before the suffix of a file with additional candidates
# Direction -> prefix of its metrics.
DIRECTIONS = {'text_to_code': '', 'code_to_text': 'code_to_text_'}
BOTH = 'both'
PYTHON_SOURCE = 'codesearch/python_source'  # the task that needs no file

# Slice of the queries -> float32 scores [rows, N] with all N candidates.
Scorer = Callable[[slice], np.ndarray]


class _Texts(NamedTuple):
    """The texts of one pool: `candidates[i]` is the answer to `queries[i]`. Candidates after the
    last query are distractors.
    """

    queries: list[str]
    candidates: list[str]


class _Vectors(NamedTuple):
    """Embeddings of all queries, of their functions, and of the distractors."""

    queries_QxD: np.ndarray
    codes_QxD: np.ndarray
    others_NxD: np.ndarray


@dataclass(frozen=True)
class CodeSearchOptions(Options):
    """Options of codesearch/*."""

    candidates: int = declare_option(
        1000,
        'Candidates for each query of a code search task, 0 for all. Papers use 1000, 10000 and '
        'all.',
        lower_bound=0,
    )
    code_direction: str = declare_option(
        'text_to_code',
        'Direction of code search tasks.',
        choices=[*DIRECTIONS, BOTH],
    )
    code_text: str = declare_option(
        'raw',
        'Text fields of CodeSearchNet files: docstring and code, or the token lists as in '
        'CodeBERT.',
        choices=['raw', 'tokens'],
    )

    def __post_init__(self) -> None:
        if self.candidates == 1:
            raise UserError(
                '--candidates 1: the right answer would be the only candidate; give 2 or more, or '
                '0 for all'
            )

    @property
    def directions(self) -> list[str]:
        """Keys of `DIRECTIONS` to score."""
        return list(DIRECTIONS) if self.code_direction == BOTH else [self.code_direction]


@dataclass(frozen=True)
class CodeSearch(Task):
    """Code search on one set of (docstring, function) pairs.

    Attributes:
      name: task name, such as 'codesearch/python_source'.
      load: function that reads the pairs.
      fingerprint_data: function that returns a fingerprint of the data that `load` reads.
      options: options of the kind.
    """

    name: str
    load: Callable[[], CodePairs]
    fingerprint_data: Callable[[], str]
    options: CodeSearchOptions = CodeSearchOptions()

    def fingerprint(self) -> str:
        return fingerprint_task(self.name, self.options, self.fingerprint_data())

    def run(self, embed: Embed) -> Result:
        pairs = self.load()
        candidates = self.options.candidates
        chunks = shuffle_into_chunks(len(pairs.queries), candidates)
        chunk_size = len(chunks[0])
        order = np.concatenate(chunks)
        queries = [pairs.queries[i] for i in order]
        codes = [pairs.codes[i] for i in order]
        others = [] if candidates else pairs.other_codes
        vectors = {
            'model': _embed_pairs(embed, queries, codes, others),
            'random': _embed_pairs(make_random_embed(SEED), queries, codes, others),
        }
        directions = self.options.directions
        metrics: dict[str, dict[str, float]] = {name: {} for name in ('model', 'bm25', 'random')}
        scores: dict[str, dict[str, np.ndarray]] = {name: {} for name in metrics}
        examples: list[Example] = []
        for direction in directions:
            ranks: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
            for start in range(0, len(order), chunk_size):
                rows = slice(start, start + chunk_size)
                texts = _make_pool(direction, queries[rows], codes[rows], others)
                scorers = {
                    name: _make_vector_scorer(direction, rows, found)
                    for name, found in vectors.items()
                }
                scorers['bm25'] = _make_bm25_scorer(texts)
                for name in metrics:
                    ranks[name].append(_compute_ranks(scorers[name], len(texts.queries)))
                examples = examples or _make_examples(texts, scorers)
            named = chunk_size if candidates else None, DIRECTIONS[direction]
            for name, parts in ranks.items():
                metrics[name] |= compute_rank_metrics(np.concatenate(parts), *named)
                scores[name] |= score_ranks(np.concatenate(parts), *named)
        # The other functions are candidates of docstrings only.
        pool = chunk_size + (len(others) if 'text_to_code' in directions else 0)
        return Result(
            metric=f'{DIRECTIONS[directions[0]]}mrr_of_{chunk_size if candidates else "all"}',
            metrics=metrics.pop('model'),
            n=len(order),
            settings=self._make_settings(pairs, pool, len(chunks), directions)
            | describe_similarity(vectors['model'].queries_QxD),
            baselines=metrics,
            examples=examples,
            item_scores=QueryScores(digest_json([queries, codes]), scores.pop('model')),
            baseline_values=scores,
        )

    def _make_settings(
        self, pairs: CodePairs, pool: int, chunks: int, directions: Sequence[str]
    ) -> dict[str, object]:
        candidates = self.options.candidates
        # These texts are compared with those of other results, so they must not change.
        whole = f'; the whole set is one chunk, as it has fewer than {candidates}'
        chunked = (
            f'CodeBERT: shuffled, chunks of {pool}, last incomplete one dropped, ties count '
            f'against{whole if pool < candidates else ""}'
        )
        undivided = (
            f'GraphCodeBERT: all codes are candidates, a rank beyond {MAX_RANK} counts 0, ties '
            f'count against'
        )
        words = {'text_to_code': 'query to code', 'code_to_text': 'code to query'}
        return {
            'protocol': chunked if candidates else undivided,
            'direction': ' and '.join(words[direction] for direction in directions),
            'similarity': 'dot product of unit vectors, float32',
            'candidates': pool,
            'chunks': chunks,
            'seed': SEED,
            'random_width': RANDOM_WIDTH,
            'bm25': BM25_SETTINGS,
            'libraries': read_library_versions('bm25s'),
            **pairs.settings,
        }


def find_code_search(
    data_dir: epath.Path | None, options: CodeSearchOptions, context: Context
) -> dict[str, Task]:
    """Returns a task for each file in `data_dir`/codesearch, and codesearch/python_source."""
    home = data_dir / 'codesearch' if data_dir else None
    paths = find_paths(home, '*') if home else []
    tasks: dict[str, Task] = {}
    for path in paths:
        suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
        if suffix and not path.name.endswith(CODEBASE + suffix):
            stem = path.name.removesuffix(suffix)
            name = f'{KIND.name}/{stem}'
            if name in tasks:
                raise UserError(f'{path}: the task {name} has another file too: remove one of them')
            if name == PYTHON_SOURCE:
                raise UserError(f'{path}: the task {name} needs no file: rename this one')
            codebase = None if options.candidates else _find_codebase(path.parent, stem)
            tasks[name] = CodeSearch(
                name,
                partial(load_file_pairs, path, options.code_text, codebase),
                partial(fingerprint_glob, path.parent, f'{glob.escape(stem)}*'),
                options,
            )
    load = partial(load_python_source_pairs, _find_python_sources(context.settings))
    builtin = CodeSearch(PYTHON_SOURCE, load, compute_heldout_fingerprint, options)
    return tasks | {PYTHON_SOURCE: builtin}


def _find_codebase(folder: epath.Path, stem: str) -> epath.Path | None:
    files = [folder / f'{stem}{CODEBASE}{suffix}' for suffix in SUFFIXES[1:]]
    return next((file for file in files if file.exists()), None)


def _find_python_sources(settings: Mapping[str, Any]) -> list[dict[str, object]]:
    """Returns the arguments of each PythonSource that the model was trained on."""
    return [
        {key: value for key, value in section.items() if key not in SOURCE_KEYS}
        for section in settings.get('trained_on', {}).values()
        if section['kind'] == 'python_source'
    ]


def shuffle_into_chunks(total: int, size: int) -> list[np.ndarray]:
    """Returns shuffled indices in chunks of `size`, without an incomplete last chunk.

    All indices are in one chunk if there are fewer than `size`, or if `size` is 0.
    """
    order = np.arange(total)
    # CodeBERT's order: np.random.seed(0); np.random.shuffle(order).
    np.random.RandomState(SEED).shuffle(order)
    if total < size or not size:
        return [order]
    return [order[start : start + size] for start in range(0, total - size + 1, size)]


def score_ranks(ranks: np.ndarray, pool: int | None, prefix: str = '') -> dict[str, np.ndarray]:
    """Returns reciprocal rank and recall of each query, float64 [Q].

    Args:
      ranks: int64[Q], rank of the right answer of each query, from 1.
      pool: number of candidates, which is part of the metrics' names; None: all functions.
      prefix: prefix of the metrics' names.
    """
    suffix = f'of_{pool or "all"}'
    reciprocal_Q = np.where((ranks <= MAX_RANK) | bool(pool), 1 / ranks, 0)
    recalls = {f'{prefix}recall@{k}_{suffix}': (ranks <= k).astype(np.float64) for k in CUTOFFS}
    return {f'{prefix}mrr_{suffix}': reciprocal_Q, **recalls}


def compute_rank_metrics(ranks: np.ndarray, pool: int | None, prefix: str = '') -> dict[str, float]:
    """Returns MRR and recall, averaged over the queries; see `score_ranks`."""
    scores = score_ranks(ranks, pool, prefix)
    return {metric: float(np.mean(values_Q)) for metric, values_Q in scores.items()}


def _embed_pairs(
    embed: Embed, queries: Sequence[str], codes: Sequence[str], others: Sequence[str]
) -> _Vectors:
    queries_QxD = embed_texts(embed, queries, 'x')
    codes_QxD = embed_texts(embed, codes, 'y')
    others_NxD = embed_texts(embed, others, 'y') if others else codes_QxD[:0]
    return _Vectors(queries_QxD, codes_QxD, others_NxD)


def _make_pool(direction: str, queries: list[str], codes: list[str], others: list[str]) -> _Texts:
    if direction == 'text_to_code':
        return _Texts(queries, codes + others)
    return _Texts(codes, queries)


def _make_vector_scorer(direction: str, pool: slice, vectors: _Vectors) -> Scorer:
    """Returns the scorer of one chunk.

    Both directions use the same embeddings: docstrings are side x, functions side y.
    """
    if direction == 'code_to_text':
        queries_QxD = vectors.codes_QxD[pool]
        candidates_NxD = vectors.queries_QxD[pool]
    else:
        queries_QxD = vectors.queries_QxD[pool]
        candidates_NxD = np.concatenate([vectors.codes_QxD[pool], vectors.others_NxD])
    return lambda rows: queries_QxD[rows] @ candidates_NxD.T


def _make_bm25_scorer(texts: _Texts) -> Scorer:
    index = Bm25(texts.candidates)
    return lambda rows: np.stack([index.compute_scores(query) for query in texts.queries[rows]])


def _compute_ranks(scorer: Scorer, queries: int) -> np.ndarray:
    """Returns int64[Q]: the rank of each query's answer. Works in blocks to save memory."""
    ranks = []
    for start in range(0, queries, QUERIES_AT_ONCE):
        rows = slice(start, min(start + QUERIES_AT_ONCE, queries))
        ranks.append(rank_right_candidates(scorer(rows), start))
    return np.concatenate(ranks)


def _make_examples(texts: _Texts, scorers: dict[str, Scorer]) -> list[Example]:
    """Returns the first queries of a chunk, which are a random sample."""
    rows = slice(0, min(EXAMPLE_QUERIES, len(texts.queries)))
    scores = {name: scorers[name](rows) for name in ('model', 'bm25')}
    ranks = {name: rank_right_candidates(scores_QxN) for name, scores_QxN in scores.items()}

    def make_answers(name: str, query: int) -> Answers:
        best = np.argsort(-scores[name][query], kind='stable')[:EXAMPLE_ANSWERS]
        found = [
            FoundAnswer(
                cut_text(texts.candidates[i]), float(scores[name][query, i]), bool(i == query)
            )
            for i in best
        ]
        return Answers(found, int(ranks[name][query]))

    return [
        Example(
            cut_text(texts.queries[q]),
            cut_text(texts.candidates[q]),
            make_answers('model', q),
            make_answers('bm25', q),
        )
        for q in range(rows.stop)
    ]


KIND = TaskKind(
    name='codesearch',
    find=find_code_search,
    options=CodeSearchOptions,
    layout='codesearch/<name>.jsonl or .jsonl.gz (CodeSearchNet)',
    folder='codesearch/ (CodeSearchNet)',
)

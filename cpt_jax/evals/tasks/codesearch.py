"""Code search: find the function that a docstring was written for, among 1,000, 10,000 or all
candidates; and the other way round.

The protocol of pools is that of CodeBERT's `codesearch/{process_data,mrr}.py`, which cpt-code's
figures follow: the pairs are shuffled with numpy's seed 0 and cut into chunks of 1,000, the last
incomplete chunk is dropped, every docstring is a query to the code of its own chunk, ties count
against, and the mean of 1/rank is taken over all queries. CodeSearchNet's own `model_test.py` takes
the same chunks the other way round, from code to docstring.

That of all candidates is GraphCodeBERT's `codesearch/run.py`: one pool for a language, with the
codes of its other files where a codebase is there, and ranks beyond 1,000 count 0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from cpt_jax.benchmark_data.code_pairs import (
    CodePairs,
    file_pairs,
    heldout_fingerprint,
    python_source_pairs,
)
from cpt_jax.embed.function import Embed, embed_texts
from cpt_jax.evals.fingerprint import fingerprint_glob, fingerprint_task
from cpt_jax.evals.options import Options, option
from cpt_jax.evals.report.example import (
    EXAMPLE_ANSWERS,
    EXAMPLE_QUERIES,
    Answers,
    Example,
    Found,
    cut_text,
)
from cpt_jax.evals.task import Context, Kind, Result, Task, library_versions
from cpt_jax.runtime.errors import UserError
from cpt_jax.search.bm25 import BM25_SETTINGS, RANDOM_WIDTH, Bm25, random_embed
from cpt_jax.search.ranking import ranks_of_right

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
    """What is searched in one pool: `candidates[i]` is the answer to `queries[i]`, and those after
    the last query are nobody's.
    """

    queries: list[str]
    candidates: list[str]


class _Vectors(NamedTuple):
    """Of all queries, of their codes, and of the codes of nobody."""

    queries_QxD: np.ndarray
    codes_QxD: np.ndarray
    others_NxD: np.ndarray


@dataclass(frozen=True)
class CodeSearchOptions(Options):
    """Options of codesearch/*."""

    candidates: int = option(
        1000,
        'Functions searched for each query of a code search task; the papers have 1000, 10000 and '
        '0: all.',
        lower_bound=0,
    )
    code_direction: str = option(
        'text_to_code',
        'What is looked for in code search tasks.',
        choices=[*DIRECTIONS, BOTH],
    )
    code_text: str = option(
        'raw',
        'Fields of CodeSearchNet files: docstring and code, or the token lists as CodeBERT has '
        'them.',
        choices=['raw', 'tokens'],
    )

    def __post_init__(self) -> None:
        if self.candidates == 1:
            raise UserError(
                '--candidates 1: the right one would be the only one; give 2 or more, or 0 for all'
            )

    @property
    def directions(self) -> list[str]:
        return list(DIRECTIONS) if self.code_direction == BOTH else [self.code_direction]


@dataclass(frozen=True)
class CodeSearch(Task):
    """One set of pairs.

    Attributes:
      name: name of the task, such as 'codesearch/python_source'.
      load: reads the pairs.
      fingerprint_data: returns a fingerprint of what `load` reads.
      options: options of the kind.
    """

    name: str
    load: Callable[[], CodePairs]
    fingerprint_data: Callable[[], str]
    options: CodeSearchOptions = CodeSearchOptions()

    def fingerprint(self) -> str:
        return fingerprint_task(self.name, self.options, self.fingerprint_data())

    def run(self, embed: Embed) -> Result:
        pairs, candidates = self.load(), self.options.candidates
        pieces = chunks(len(pairs.queries), candidates)
        order = np.concatenate(pieces)
        queries, codes = [pairs.queries[i] for i in order], [pairs.codes[i] for i in order]
        others = [] if candidates else pairs.other_codes
        vectors = {
            name: _vectors(model, queries, codes, others)
            for name, model in (('model', embed), ('random', random_embed(SEED)))
        }
        directions = self.options.directions
        metrics: dict[str, dict[str, float]] = {name: {} for name in ('model', 'bm25', 'random')}
        examples: list[Example] = []
        for direction in directions:
            ranks: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
            for start in range(0, len(order), len(pieces[0])):
                rows = slice(start, start + len(pieces[0]))
                texts = _texts(direction, queries[rows], codes[rows], others)
                scorers = {
                    name: _vector_scorer(direction, rows, found) for name, found in vectors.items()
                } | {'bm25': _bm25_scorer(texts)}
                for name in metrics:
                    ranks[name].append(_ranks(scorers[name], len(texts.queries)))
                examples = examples or _examples(texts, scorers)
            for name, parts in ranks.items():
                metrics[name] |= rank_metrics(
                    np.concatenate(parts),
                    len(pieces[0]) if candidates else None,
                    DIRECTIONS[direction],
                )
        return Result(
            metric=f'{DIRECTIONS[directions[0]]}mrr_of_{len(pieces[0]) if candidates else "all"}',
            metrics=metrics.pop('model'),
            n=len(order),
            settings=self._settings(pairs, len(pieces[0]) + len(others), len(pieces), directions),
            baselines=metrics,
            examples=examples,
        )

    def _settings(
        self, pairs: CodePairs, pool: int, pieces: int, directions: Sequence[str]
    ) -> dict[str, object]:
        candidates = self.options.candidates
        whole = f'; the whole set is one chunk, as it has fewer than {candidates}'
        chunked = (
            f'CodeBERT: shuffled, chunks of {pool}, last incomplete one dropped, ties count '
            f'against{whole if pool < candidates else ""}'
        )
        undivided = (
            f'GraphCodeBERT: all codes are candidates, a rank beyond {DEEPEST} counts 0, ties '
            f'count against'
        )
        words = {'text_to_code': 'query to code', 'code_to_text': 'code to query'}
        return {
            'protocol': chunked if candidates else undivided,
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


def find_code_search(
    data_dir: epath.Path | None, options: CodeSearchOptions, context: Context
) -> dict[str, Task]:
    """Returns a task for each file of `data_dir`/codesearch, and the built-in one."""
    home = data_dir / 'codesearch' if data_dir else None
    paths = sorted(home.glob('*')) if home else []
    tasks: dict[str, Task] = {}
    for path in paths:
        suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
        if suffix and not path.name.endswith(CODEBASE + suffix):
            stem = path.name.removesuffix(suffix)
            name = f'{KIND.name}/{stem}'
            if name in tasks:
                raise UserError(f'{path}: the task {name} would have two files: remove one of them')
            codebase = None if options.candidates else _codebase_of(path.parent, stem)
            tasks[name] = CodeSearch(
                name,
                partial(file_pairs, path, options.code_text, codebase),
                partial(fingerprint_glob, path.parent, f'{stem}*'),
                options,
            )
    load = partial(python_source_pairs, _python_sources(context.settings))
    name = f'{KIND.name}/python_source'
    return tasks | {name: CodeSearch(name, load, heldout_fingerprint, options)}


def _codebase_of(folder: epath.Path, stem: str) -> epath.Path | None:
    files = [folder / f'{stem}{CODEBASE}{suffix}' for suffix in SUFFIXES[1:]]
    return next((file for file in files if file.exists()), None)


def _python_sources(settings: Mapping[str, Any]) -> list[dict[str, object]]:
    """The arguments of each PythonSource that a model with these settings was trained on."""
    return [
        {key: value for key, value in section.items() if key not in ('kind', 'weight')}
        for section in settings.get('trained_on', {}).values()
        if section['kind'] == 'python_source'
    ]


def chunks(total: int, size: int) -> list[np.ndarray]:
    """Shuffled positions in chunks of `size`, the incomplete rest dropped; all in one chunk where
    there are fewer, or size is 0.
    """
    order = np.arange(total)
    # The same stream as np.random.seed(0); np.random.shuffle(order).
    np.random.RandomState(SEED).shuffle(order)
    return (
        [order]
        if total < size or not size
        else [order[start : start + size] for start in range(0, total - size + 1, size)]
    )


def rank_metrics(ranks: np.ndarray, pool: int | None, prefix: str = '') -> dict[str, float]:
    """Means over the queries of int64 ranks from 1; the number of candidates stands in each name,
    or 'all' (None).
    """
    among = f'of_{pool or "all"}'
    reciprocal = np.where((ranks <= DEEPEST) | bool(pool), 1 / ranks, 0)
    metrics = {f'{prefix}mrr_{among}': float(np.mean(reciprocal))}
    return metrics | {f'{prefix}recall@{k}_{among}': float(np.mean(ranks <= k)) for k in CUTOFFS}


def _vectors(
    embed: Embed, queries: Sequence[str], codes: Sequence[str], others: Sequence[str]
) -> _Vectors:
    queries_QxD, codes_QxD = embed_texts(embed, queries, 'x'), embed_texts(embed, codes, 'y')
    return _Vectors(
        queries_QxD, codes_QxD, embed_texts(embed, others, 'y') if others else codes_QxD[:0]
    )


def _texts(direction: str, queries: list[str], codes: list[str], others: list[str]) -> _Texts:
    return (
        _Texts(queries, codes + others) if direction == 'text_to_code' else _Texts(codes, queries)
    )


def _vector_scorer(direction: str, pool: slice, vectors: _Vectors) -> Scorer:
    """The same vectors in both directions: a docstring is side x, a function side y."""
    queries_QxD = vectors.queries_QxD[pool]
    candidates_NxD = np.concatenate([vectors.codes_QxD[pool], vectors.others_NxD])
    if direction == 'code_to_text':
        queries_QxD, candidates_NxD = vectors.codes_QxD[pool], vectors.queries_QxD[pool]
    return lambda rows: queries_QxD[rows] @ candidates_NxD.T


def _bm25_scorer(texts: _Texts) -> Scorer:
    index = Bm25(texts.candidates)
    return lambda rows: np.stack([index.scores(query) for query in texts.queries[rows]])


def _ranks(scorer: Scorer, queries: int) -> np.ndarray:
    starts = range(0, queries, QUERIES_AT_ONCE)
    return np.concatenate(
        [
            ranks_of_right(scorer(slice(start, min(start + QUERIES_AT_ONCE, queries))), start)
            for start in starts
        ]
    )


def _examples(texts: _Texts, scorers: dict[str, Scorer]) -> list[Example]:
    """The first queries of a chunk, which is shuffled."""
    rows = slice(0, min(EXAMPLE_QUERIES, len(texts.queries)))
    scores = {name: scorers[name](rows) for name in ('model', 'bm25')}
    ranks = {name: ranks_of_right(scores_QxN) for name, scores_QxN in scores.items()}

    def answers(name: str, query: int) -> Answers:
        best = np.argsort(-scores[name][query], kind='stable')[:EXAMPLE_ANSWERS]
        found = [
            Found(cut_text(texts.candidates[i]), float(scores[name][query, i]), bool(i == query))
            for i in best
        ]
        return Answers(found, int(ranks[name][query]))

    return [
        Example(
            cut_text(texts.queries[q]),
            cut_text(texts.candidates[q]),
            answers('model', q),
            answers('bm25', q),
        )
        for q in range(rows.stop)
    ]


KIND = Kind(
    name='codesearch',
    find=find_code_search,
    options=CodeSearchOptions,
    layout='codesearch/<name>.jsonl or .jsonl.gz (CodeSearchNet)',
    folder='codesearch/ (CodeSearchNet)',
)

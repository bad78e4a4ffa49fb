"""Retrieval on BEIR collections and MS MARCO.

The metrics are nDCG@10, MRR@10 and recall, as computed by trec_eval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytrec_eval
from etils import epath

from cpt_jax.benchmark_data.beir import (
    OWN_FILES,
    Collection,
    Qrels,
    check_judged,
    load_collection,
)
from cpt_jax.embed.function import Embed
from cpt_jax.evals.fingerprint import fingerprint_files, fingerprint_task
from cpt_jax.evals.intervals.item_scores import QueryScores
from cpt_jax.evals.options import SearchOptions, SplitOptions, declare_option
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
from cpt_jax.search.ranking import Hits
from cpt_jax.search.searcher import SEED, compute_search_recalls
from cpt_jax.search.trec_run import Run, write_run
from cpt_jax.storage.text_lines import find_paths

CUTOFF = 10  # documents per query that nDCG and MRR take into account
MARCO = 'msmarco'  # this folder's published scores are MRR@10 on the dev queries

PROTOCOL = (
    'BEIR and trec_eval: a document with the id of its query is removed; linear gain; of equal '
    'float32 scores the larger id first; a judged query without answers scores 0; grades above 0 '
    'are relevant'
)


@dataclass(frozen=True)
class RetrievalOptions(SplitOptions, SearchOptions):
    """Options of retrieval/*."""

    unjudged: str = declare_option(
        'refuse',
        'How to treat queries of a retrieval task without a judgement in any file of qrels/: as an '
        'error, or skip them.',
        choices=['refuse', 'skip'],
        in_fingerprint=False,  # these queries have no score in either case
    )


@dataclass(frozen=True)
class Retrieval(Task):
    """Retrieval on one collection.

    Attributes:
      name: task name, such as 'retrieval/scifact'.
      folder: directory in BEIR's layout, or with MS MARCO's own files.
      options: options of the kind.
      runs: directory for the model's ranking, `<name>.trec`; None writes no ranking.
    """

    name: str
    folder: epath.Path
    options: RetrievalOptions = RetrievalOptions()
    runs: epath.Path | None = None

    @property
    def split(self) -> str:
        """Split of the qrels. The default is the split of the published scores."""
        return self.options.split or ('dev' if self.folder.name == MARCO else 'test')

    def fingerprint(self) -> str:
        files = [*find_paths(self.folder, '*'), *find_paths(self.folder / 'qrels', '*')]
        return fingerprint_task(self.name, self.options, fingerprint_files(files))

    def check(self) -> None:
        if self.options.unjudged == 'refuse':
            check_judged(self.folder)

    def run(self, embed: Embed) -> Result:
        collection = load_collection(self.folder, self.split)
        k = self.options.k
        # One more than k, since the document with the query's id is removed.
        searched = self.options.searcher.search(
            embed, collection.documents, collection.queries, k + 1
        )
        same = _find_same_ids(collection)
        kept = {name: remove_same_ids(found, same, k) for name, found in searched.hits.items()}
        rankings = {name: make_run(found, collection) for name, found in kept.items()}
        if self.runs:
            write_run(self.runs / f'{self.name}.trec', rankings['model'])
        scores = {
            name: score_queries(ranking, collection.qrels, k) for name, ranking in rankings.items()
        }
        if searched.exact:
            scores['model'][f'recall_vs_exact@{k}'] = compute_search_recalls(
                remove_same_ids(searched.exact, same, k), kept['model']
            )
        metrics = {name: average_scores(values) for name, values in scores.items()}
        return Result(
            metric=f'mrr@{CUTOFF}' if self.folder.name == MARCO else f'ndcg@{CUTOFF}',
            metrics=metrics.pop('model'),
            n=len(collection.queries),
            settings=self._make_settings(collection) | searched.settings,
            baselines=metrics,
            examples=_make_examples(collection, rankings),
            warnings=collection.warnings,
            item_scores=QueryScores(
                digest_json([collection.facts['data'], self.split]), scores.pop('model')
            ),
            baseline_values=scores,
        )

    def _make_settings(self, collection: Collection) -> dict[str, object]:
        return {
            'protocol': PROTOCOL,
            'direction': 'query to document',
            'similarity': 'dot product of unit vectors, float32',
            'text': "title + ' ' + text, stripped",
            'split': self.split,
            'k': self.options.k,
            'libraries': read_library_versions('bm25s', 'pytrec-eval-terrier'),
            **collection.facts,
        }


def find_retrieval(
    data_dir: epath.Path | None, options: RetrievalOptions, context: Context
) -> dict[str, Task]:
    """Returns a task for each folder one or two levels below `data_dir`/retrieval with a corpus."""
    if not data_dir:
        return {}
    home = data_dir / 'retrieval'
    patterns = ('*/corpus.jsonl', '*/*/corpus.jsonl', f'*/{OWN_FILES}')
    folders = {path.parent for pattern in patterns for path in find_paths(home, pattern)}
    names = {f'{KIND.name}/{folder.relative_to(home)}': folder for folder in sorted(folders)}
    runs = context.runs if options.trec_runs else None
    return {name: Retrieval(name, folder, options, runs) for name, folder in names.items()}


def score_queries(run: Run, qrels: Qrels, k: int) -> dict[str, np.ndarray]:
    """Returns each metric of each query, float64 [Q] in the order of `qrels`.

    Queries missing in `run` score 0.

    Args:
      run: query id -> document id -> score. trec_eval sorts by score, then by descending id.
      qrels: judgements. Every query has a relevant document.
      k: cutoff of recall.
    """
    evaluator = pytrec_eval.RelevanceEvaluator(
        qrels, {f'ndcg_cut.{CUTOFF}', f'recall.{k}', 'recip_rank'}
    )
    found = evaluator.evaluate(run)  # without the queries that are missing in `run`

    def collect(measure: str) -> np.ndarray:
        return np.array([found.get(query, {}).get(measure, 0.0) for query in qrels])

    reciprocal_Q = collect('recip_rank')
    return {
        f'ndcg@{CUTOFF}': collect(f'ndcg_cut_{CUTOFF}'),
        # Larger ranks count 0.
        f'mrr@{CUTOFF}': np.where(reciprocal_Q >= 1 / CUTOFF, reciprocal_Q, 0),
        f'recall@{k}': collect(f'recall_{k}'),
    }


def average_scores(scores: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns the mean of each metric over the queries."""
    return {metric: sum(values_Q.tolist()) / len(values_Q) for metric, values_Q in scores.items()}


def score_run(run: Run, qrels: Qrels, k: int) -> dict[str, float]:
    """Returns the metrics, averaged over all queries of `qrels`; see `score_queries`."""
    return average_scores(score_queries(run, qrels, k))


def _find_same_ids(collection: Collection) -> np.ndarray:
    """Returns int64[Q]: the index of the document with the query's id, -1 if there is none."""
    return np.array([collection.positions.get(query, -1) for query in collection.query_ids])


def remove_same_ids(hits: Hits, same: np.ndarray, k: int) -> Hits:
    """Returns the best k of k + 1 hits without the documents that have the query's id.

    In ArguAna and Quora, the queries are documents of the collection too.

    Args:
      hits: k + 1 hits of each query.
      same: int64[Q], index of the document to remove from the hits of each query.
      k: number of hits to keep.
    """
    removed_Qxk = hits.documents_Qxk == same[:, None]
    # A stable sort by `removed` moves a removed hit to the end and keeps the order of the others.
    order_Qxk = np.argsort(removed_Qxk, axis=1, kind='stable')[:, :k]
    scores_Qxk = np.where(removed_Qxk, -np.inf, hits.scores_Qxk).astype(np.float32)
    return Hits(
        np.take_along_axis(scores_Qxk, order_Qxk, axis=1),
        np.take_along_axis(hits.documents_Qxk, order_Qxk, axis=1),
    )


def make_run(hits: Hits, collection: Collection) -> Run:
    """Returns the ranking as input of trec_eval. Scores have float32 precision, in which trec_eval
    compares them.
    """
    names = collection.documents.names
    return {query: _make_run_row(hits, q, names) for q, query in enumerate(collection.query_ids)}


def _make_run_row(hits: Hits, q: int, names: Sequence[str]) -> dict[str, float]:
    pairs = zip(hits.documents_Qxk[q].tolist(), hits.scores_Qxk[q].tolist(), strict=True)
    return {names[i]: score for i, score in pairs if score > -np.inf}


def _make_examples(collection: Collection, rankings: dict[str, Run]) -> list[Example]:
    count = min(EXAMPLE_QUERIES, len(collection.queries))
    chosen = np.sort(
        np.random.default_rng(SEED).choice(len(collection.queries), count, replace=False)
    ).tolist()
    relevant = {q: _find_relevant(collection, q) for q in chosen}
    rows = {
        q: [rankings.get(name, {}).get(collection.query_ids[q], {}) for name in ('model', 'bm25')]
        for q in chosen
    }
    # One relevant document per query, or None: some judged documents are not in the corpus.
    right = {
        q: next((name for name in sorted(relevant[q]) if name in collection.positions), None)
        for q in chosen
    }
    shown = {name for q in chosen for row in rows[q] for name in list(row)[:EXAMPLE_ANSWERS]}
    shown |= {name for name in right.values() if name}
    positions = collection.documents.find_positions(shown)
    texts = collection.documents.load_texts_at(positions.values())
    texts_by_name = {name: texts[position] for name, position in positions.items()}
    return [
        Example(
            collection.queries[q],
            cut_text(texts_by_name.get(right[q] or '', '')),
            *(_make_answers(row, relevant[q], texts_by_name) for row in rows[q]),
        )
        for q in chosen
    ]


def _find_relevant(collection: Collection, q: int) -> set[str]:
    return {name for name, grade in collection.qrels[collection.query_ids[q]].items() if grade > 0}


def _make_answers(row: dict[str, float], relevant: set[str], texts: dict[str, str]) -> Answers:
    rank = next((rank for rank, name in enumerate(row, 1) if name in relevant), None)
    best = list(row.items())[:EXAMPLE_ANSWERS]
    found = [FoundAnswer(cut_text(texts[name]), score, name in relevant) for name, score in best]
    return Answers(found, rank)


KIND = TaskKind(
    name='retrieval',
    find=find_retrieval,
    options=RetrievalOptions,
    layout='retrieval/<folder>/ with corpus.jsonl, queries.jsonl and qrels/test.tsv (BEIR)',
    folder='retrieval/<folder>/ (BEIR)',
)

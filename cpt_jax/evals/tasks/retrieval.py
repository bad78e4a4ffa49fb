"""Retrieval on BEIR collections and MS MARCO: nDCG@10, MRR@10 and recall, as trec_eval computes
them.
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
from cpt_jax.evals.options import SearchOptions, SplitOptions, option
from cpt_jax.evals.report.example import (
    EXAMPLE_ANSWERS,
    EXAMPLE_QUERIES,
    Answers,
    Example,
    Found,
    cut_text,
)
from cpt_jax.evals.task import Context, Kind, Result, Task, library_versions
from cpt_jax.search.ranking import Hits
from cpt_jax.search.searcher import SEED, recall_against
from cpt_jax.search.trec_run import Run, write_run

CUTOFF = 10  # of nDCG and MRR
MARCO = 'msmarco'  # the folder whose tables are of the dev queries and of MRR@10

PROTOCOL = (
    'BEIR and trec_eval: a document with the id of its query is removed; linear gain; of equal '
    'float32 scores the larger id first; a judged query without answers scores 0; grades above 0 '
    'are relevant'
)


@dataclass(frozen=True)
class RetrievalOptions(SplitOptions, SearchOptions):
    """Options of retrieval/*."""

    unjudged: str = option(
        'refuse',
        'Queries of a retrieval task without a judgement in any file of qrels/: an error, or left '
        'out.',
        choices=['refuse', 'skip'],
        in_fingerprint=False,  # such queries score nothing in either case
    )


@dataclass(frozen=True)
class Retrieval(Task):
    """One collection.

    Attributes:
      name: name of the task, such as 'retrieval/scifact'.
      folder: directory in BEIR's layout, or with MS MARCO's own files.
      options: options of the kind.
      runs: directory for the model's ranking, as `<name>.trec`; None: write none.
    """

    name: str
    folder: epath.Path
    options: RetrievalOptions = RetrievalOptions()
    runs: epath.Path | None = None

    @property
    def split(self) -> str:
        """The qrels to score: without the option those of the published tables."""
        return self.options.split or ('dev' if self.folder.name == MARCO else 'test')

    def fingerprint(self) -> str:
        files = [*self.folder.glob('*'), *(self.folder / 'qrels').glob('*')]
        return fingerprint_task(self.name, self.options, fingerprint_files(files))

    def check(self) -> None:
        if self.options.unjudged == 'refuse':
            check_judged(self.folder)

    def run(self, embed: Embed) -> Result:
        collection, k = load_collection(self.folder, self.split), self.options.k
        searched = self.options.searcher.search(
            embed, collection.documents, collection.queries, k + 1
        )
        same = _same_ids(collection)
        kept = {name: without_same(found, same, k) for name, found in searched.hits.items()}
        rankings = {name: to_run(found, collection) for name, found in kept.items()}
        if self.runs:
            write_run(self.runs / f'{self.name}.trec', rankings['model'])
        metrics = {
            name: score_run(ranking, collection.qrels, k) for name, ranking in rankings.items()
        }
        if searched.exact:
            metrics['model'][f'recall_vs_exact@{k}'] = recall_against(
                without_same(searched.exact, same, k), kept['model']
            )
        return Result(
            metric=f'mrr@{CUTOFF}' if self.folder.name == MARCO else f'ndcg@{CUTOFF}',
            metrics=metrics.pop('model'),
            n=len(collection.queries),
            settings=self._settings(collection) | searched.settings,
            baselines=metrics,
            examples=_examples(collection, rankings),
        )

    def _settings(self, collection: Collection) -> dict[str, object]:
        return {
            'protocol': PROTOCOL,
            'direction': 'query to document',
            'similarity': 'dot product of unit vectors, float32',
            'text': "title + ' ' + text, stripped",
            'split': self.split,
            'k': self.options.k,
            'libraries': library_versions('bm25s', 'pytrec-eval-terrier'),
            **collection.facts,
        }


def find_retrieval(
    data_dir: epath.Path | None, options: RetrievalOptions, context: Context
) -> dict[str, Task]:
    """Returns a task for each folder of `data_dir`/retrieval, or of one of its folders, that has a
    corpus.
    """
    if not data_dir:
        return {}
    home = data_dir / 'retrieval'
    patterns = ('*/corpus.jsonl', '*/*/corpus.jsonl', f'*/{OWN_FILES}')
    folders = {path.parent for pattern in patterns for path in home.glob(pattern)}
    names = {f'{KIND.name}/{folder.relative_to(home)}': folder for folder in sorted(folders)}
    runs = context.runs if options.trec_runs else None
    return {name: Retrieval(name, folder, options, runs) for name, folder in names.items()}


def score_run(run: Run, qrels: Qrels, k: int) -> dict[str, float]:
    """Means over all queries of `qrels`; one that is missing from `run` counts 0.

    Args:
      run: query id -> document id -> score; trec_eval sorts it by score and then by descending id.
      qrels: judgements; every query has a relevant document.
      k: where recall is measured.
    """
    evaluator = pytrec_eval.RelevanceEvaluator(
        qrels, {f'ndcg_cut.{CUTOFF}', f'recall.{k}', 'recip_rank'}
    )
    found = evaluator.evaluate(run)  # queries that are missing from `run` are missing here

    def mean(measure: str, least: float = 0.0) -> float:
        values = [found[query][measure] for query in qrels if query in found]
        return sum(value for value in values if value >= least) / len(qrels)

    return {
        f'ndcg@{CUTOFF}': mean(f'ndcg_cut_{CUTOFF}'),
        f'mrr@{CUTOFF}': mean('recip_rank', least=1 / CUTOFF),  # a rank beyond the cut-off counts 0
        f'recall@{k}': mean(f'recall_{k}'),
    }


def _same_ids(collection: Collection) -> np.ndarray:
    """int64[Q]: the position of the document that has the query's id, -1 where there is none."""
    return np.array([collection.positions.get(query, -1) for query in collection.query_ids])


def without_same(hits: Hits, same: np.ndarray, k: int) -> Hits:
    """The best k of k + 1 hits after document `same[q]` is taken out of those of query q (ArguAna's
    and Quora's queries are documents).
    """
    taken_QxK = hits.documents_QxK == same[:, None]
    order_QxK = np.argsort(taken_QxK, axis=1, kind='stable')[:, :k]
    scores_QxK = np.where(taken_QxK, -np.inf, hits.scores_QxK).astype(np.float32)
    return Hits(
        *(
            np.take_along_axis(array, order_QxK, axis=1)
            for array in (scores_QxK, hits.documents_QxK)
        )
    )


def to_run(hits: Hits, collection: Collection) -> Run:
    """What trec_eval reads; scores stay float32, in which it compares them."""
    names = collection.documents.names
    return {query: _to_row(hits, q, names) for q, query in enumerate(collection.query_ids)}


def _to_row(hits: Hits, q: int, names: Sequence[str]) -> dict[str, float]:
    pairs = zip(hits.documents_QxK[q].tolist(), hits.scores_QxK[q].tolist(), strict=True)
    return {names[i]: score for i, score in pairs if score > -np.inf}


def _examples(collection: Collection, rankings: dict[str, Run]) -> list[Example]:
    count = min(EXAMPLE_QUERIES, len(collection.queries))
    chosen = np.sort(
        np.random.default_rng(SEED).choice(len(collection.queries), count, replace=False)
    ).tolist()
    rights = {q: _relevant(collection, q) for q in chosen}
    rows = {
        q: [rankings.get(name, {}).get(collection.query_ids[q], {}) for name in ('model', 'bm25')]
        for q in chosen
    }
    first = {
        q: next((name for name in sorted(rights[q]) if name in collection.positions), None)
        for q in chosen
    }
    named = {name for q in chosen for row in rows[q] for name in list(row)[:EXAMPLE_ANSWERS]} | {
        name for name in first.values() if name
    }
    positions = collection.documents.positions_of(named)
    texts = collection.documents.texts_at(positions.values())
    text_of = {name: texts[position] for name, position in positions.items()}
    return [
        Example(
            collection.queries[q],
            cut_text(text_of.get(first[q] or '', '')),
            *(_answers(row, rights[q], text_of) for row in rows[q]),
        )
        for q in chosen
    ]


def _relevant(collection: Collection, q: int) -> set[str]:
    return {name for name, grade in collection.qrels[collection.query_ids[q]].items() if grade > 0}


def _answers(row: dict[str, float], relevant: set[str], text_of: dict[str, str]) -> Answers:
    rank = next((rank for rank, name in enumerate(row, 1) if name in relevant), None)
    best = list(row.items())[:EXAMPLE_ANSWERS]
    return Answers(
        [Found(cut_text(text_of[name]), score, name in relevant) for name, score in best], rank
    )


KIND = Kind(
    name='retrieval',
    find=find_retrieval,
    options=RetrievalOptions,
    layout='retrieval/<folder>/ with corpus.jsonl, queries.jsonl and qrels/test.tsv (BEIR)',
    folder='retrieval/<folder>/ (BEIR)',
)

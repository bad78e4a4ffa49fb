"""Retrieval on BEIR collections and MS MARCO: nDCG@10, MRR@10 and recall, as trec_eval computes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytrec_eval
from etils import epath

from cpt_jax.evals.beir import OWN_FILES, Collection, Qrels, load_collection
from cpt_jax.evals.ranking import Hits
from cpt_jax.evals.searcher import EXACT, SEED, Searcher, recall_against
from cpt_jax.evals.task import EXAMPLES, SHOWN, Answers, Embed, Example, Found, Result, library_versions, shown
from cpt_jax.evals.trec_run import Run, write_run

CUTOFF = 10  # of nDCG and MRR
MARCO = 'msmarco'  # the folder whose tables are of the dev queries and of MRR@10

PROTOCOL = (
    'BEIR and trec_eval: a document with the id of its query is removed; linear gain; of equal float32 scores the larger id first; a '
    'judged query without answers scores 0; grades above 0 are relevant'
)


@dataclass(frozen=True)
class Retrieval:
    """One collection.

    Attributes:
      name: of the task, such as 'retrieval/scifact'.
      folder: in BEIR's layout, or with MS MARCO's own files.
      split: which qrels: test, dev or train.
      k: documents kept for each query, 10 or more; recall is measured there.
      searcher: what looks for them.
      runs: where the model's ranking is written, as `<name>.trec`; None: nowhere.
    """

    name: str
    folder: epath.Path
    split: str = 'test'
    k: int = 100
    searcher: Searcher = EXACT
    runs: epath.Path | None = None

    def run(self, embed: Embed) -> Result:
        collection = load_collection(self.folder, self.split)
        searched = self.searcher.search(embed, collection.documents, collection.queries, self.k + 1)
        same = _same_ids(collection)
        kept = {name: without_same(found, same, self.k) for name, found in searched.hits.items()}
        rankings = {name: to_run(found, collection) for name, found in kept.items()}
        if self.runs:
            write_run(self.runs / f'{self.name}.trec', rankings['model'])
        metrics = {name: score(ranking, collection.qrels, self.k) for name, ranking in rankings.items()}
        if searched.exact:
            metrics['model'][f'recall_vs_exact@{self.k}'] = recall_against(without_same(searched.exact, same, self.k), kept['model'])
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
            'k': self.k,
            'libraries': library_versions('bm25s', 'pytrec-eval-terrier'),
            **collection.facts,
        }


def find_tasks(
    data_dir: epath.Path | None, split: str = '', k: int = 100, searcher: Searcher = EXACT, runs: epath.Path | None = None
) -> dict[str, Retrieval]:
    """The tasks that can be run, by name: one for each folder of `data_dir`/retrieval, or of one of its folders, that has a corpus.

    Without `split` those of the tables: test, and dev of MS MARCO.
    """
    patterns = ('*/corpus.jsonl', '*/*/corpus.jsonl', f'*/{OWN_FILES}') if data_dir else ()
    folders = sorted({path.parent for pattern in patterns for path in (data_dir / 'retrieval').glob(pattern)})
    names = {f'retrieval/{folder.relative_to(data_dir / "retrieval")}': folder for folder in folders}
    usual = {MARCO: 'dev'}
    return {name: Retrieval(name, folder, split or usual.get(folder.name, 'test'), k, searcher, runs) for name, folder in names.items()}


def score(run: Run, qrels: Qrels, k: int) -> dict[str, float]:
    """Means over all queries of `qrels`; one that is missing from `run` counts 0.

    Args:
      run: query id -> document id -> score; trec_eval sorts it by score and then by descending id.
      qrels: judgements; every query has a relevant document.
      k: where recall is measured.
    """
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {f'ndcg_cut.{CUTOFF}', f'recall.{k}', 'recip_rank'})
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
    """The best k of k + 1 hits after document `same[q]` is taken out of those of query q (ArguAna's and Quora's queries are documents)."""
    taken_QxK = hits.documents_QxK == same[:, None]
    order_QxK = np.argsort(taken_QxK, axis=1, kind='stable')[:, :k]
    scores_QxK = np.where(taken_QxK, -np.inf, hits.scores_QxK).astype(np.float32)
    return Hits(*(np.take_along_axis(array, order_QxK, axis=1) for array in (scores_QxK, hits.documents_QxK)))


def to_run(hits: Hits, collection: Collection) -> Run:
    """What trec_eval reads; scores stay float32, in which it compares them."""
    names = collection.documents.names
    return {query: _to_row(hits, q, names) for q, query in enumerate(collection.query_ids)}


def _to_row(hits: Hits, q: int, names: Sequence[str]) -> dict[str, float]:
    pairs = zip(hits.documents_QxK[q].tolist(), hits.scores_QxK[q].tolist(), strict=True)
    return {names[i]: score for i, score in pairs if score > -np.inf}


def _examples(collection: Collection, rankings: dict[str, Run]) -> list[Example]:
    count = min(EXAMPLES, len(collection.queries))
    chosen = np.sort(np.random.default_rng(SEED).choice(len(collection.queries), count, replace=False)).tolist()
    rights = {q: _relevant(collection, q) for q in chosen}
    rows = {q: [rankings.get(name, {}).get(collection.query_ids[q], {}) for name in ('model', 'bm25')] for q in chosen}
    first = {q: next((name for name in sorted(rights[q]) if name in collection.positions), None) for q in chosen}
    named = {name for q in chosen for row in rows[q] for name in list(row)[:SHOWN]} | {name for name in first.values() if name}
    positions = collection.documents.positions_of(named)
    texts = collection.documents.texts_at(positions.values())
    text_of = {name: texts[position] for name, position in positions.items()}
    return [
        Example(collection.queries[q], shown(text_of.get(first[q], '')), *(_answers(row, rights[q], text_of) for row in rows[q]))
        for q in chosen
    ]


def _relevant(collection: Collection, q: int) -> set[str]:
    return {name for name, grade in collection.qrels[collection.query_ids[q]].items() if grade > 0}


def _answers(row: dict[str, float], relevant: set[str], text_of: dict[str, str]) -> Answers:
    rank = next((rank for rank, name in enumerate(row, 1) if name in relevant), None)
    best = list(row.items())[:SHOWN]
    return Answers([Found(shown(text_of[name]), score, name in relevant) for name, score in best], rank)

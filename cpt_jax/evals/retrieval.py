"""Retrieval on BEIR collections: nDCG@10, MRR@10 and recall, as trec_eval computes them, by exact search."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytrec_eval
from etils import epath

from cpt_jax.evals.baselines import BM25_SETTINGS, RANDOM_WIDTH, Bm25, random_embed
from cpt_jax.evals.beir import Collection, Qrels, load_collection
from cpt_jax.evals.ranking import Hits, embed_texts, embedded_blocks, search
from cpt_jax.evals.task import EXAMPLES, SHOWN, Answers, Embed, Example, Found, Result, library_versions, shown

SEED = 0
CUTOFF = 10  # of nDCG and MRR

PROTOCOL = (
    'BEIR and trec_eval: exact search; a document with the id of its query is removed; linear gain; of equal float32 scores the '
    'larger id first; a judged query without answers scores 0; grades above 0 are relevant'
)


@dataclass(frozen=True)
class Retrieval:
    """One collection.

    Attributes:
      name: of the task, such as 'retrieval/scifact'.
      folder: in BEIR's layout.
      split: which qrels: test, dev or train.
      k: documents kept for each query, 10 or more; recall is measured there.
    """

    name: str
    folder: epath.Path
    split: str = 'test'
    k: int = 100

    def run(self, embed: Embed) -> Result:
        collection = load_collection(self.folder, self.split)
        hits = {
            'model': self._search(embed, collection),
            'bm25': Bm25(collection.documents).search(collection.queries, self.k + 1),
            'random': self._search(random_embed(SEED), collection),
        }
        same = _same_ids(collection)
        kept = {name: without_same(found, same, self.k) for name, found in hits.items()}
        metrics = {name: score(to_run(found, collection), collection.qrels, self.k) for name, found in kept.items()}
        return Result(
            metric=f'ndcg@{CUTOFF}',
            metrics=metrics.pop('model'),
            n=len(collection.queries),
            settings=self._settings(collection),
            baselines=metrics,
            examples=_examples(collection, kept['model'], kept['bm25']),
        )

    def _search(self, embed: Embed, collection: Collection) -> Hits:
        queries_QxD = embed_texts(embed, collection.queries, 'x')
        return search(queries_QxD, embedded_blocks(embed, collection.documents), self.k + 1)

    def _settings(self, collection: Collection) -> dict[str, object]:
        return {
            'protocol': PROTOCOL,
            'direction': 'query to document',
            'similarity': 'dot product of unit vectors, float32',
            'text': "title + ' ' + text, stripped",
            'split': self.split,
            'k': self.k,
            'seed': SEED,
            'random_width': RANDOM_WIDTH,
            'bm25': BM25_SETTINGS,
            'libraries': library_versions('bm25s', 'pytrec-eval-terrier'),
            **collection.facts,
        }


def find_tasks(data_dir: epath.Path | None, split: str = 'test', k: int = 100) -> dict[str, Retrieval]:
    """The tasks that can be run, by name: one for each folder of `data_dir`/retrieval that has a corpus."""
    found = sorted((data_dir / 'retrieval').glob('*/corpus.jsonl')) if data_dir else ()
    return {name: Retrieval(name, path.parent, split, k) for path in found for name in [f'retrieval/{path.parent.name}']}


def score(run: dict[str, dict[str, float]], qrels: Qrels, k: int) -> dict[str, float]:
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
    position = {name: i for i, name in enumerate(collection.document_ids)}
    return np.array([position.get(query, -1) for query in collection.query_ids])


def without_same(hits: Hits, same: np.ndarray, k: int) -> Hits:
    """The best k of k + 1 hits after document `same[q]` is taken out of those of query q (ArguAna's and Quora's queries are documents)."""
    taken_QxK = hits.documents_QxK == same[:, None]
    order_QxK = np.argsort(taken_QxK, axis=1, kind='stable')[:, :k]
    scores_QxK = np.where(taken_QxK, -np.inf, hits.scores_QxK).astype(np.float32)
    return Hits(*(np.take_along_axis(array, order_QxK, axis=1) for array in (scores_QxK, hits.documents_QxK)))


def to_run(hits: Hits, collection: Collection) -> dict[str, dict[str, float]]:
    """What trec_eval reads; scores stay float32, in which it compares them."""
    return {query: _to_row(hits, q, collection.document_ids) for q, query in enumerate(collection.query_ids)}


def _to_row(hits: Hits, q: int, document_ids: Sequence[str]) -> dict[str, float]:
    pairs = zip(hits.documents_QxK[q].tolist(), hits.scores_QxK[q].tolist(), strict=True)
    return {document_ids[i]: score for i, score in pairs if score > -np.inf}


def _examples(collection: Collection, model: Hits, bm25: Hits) -> list[Example]:
    count = min(EXAMPLES, len(collection.queries))
    chosen = np.sort(np.random.default_rng(SEED).choice(len(collection.queries), count, replace=False))
    text_of = dict(zip(collection.document_ids, collection.documents, strict=True))
    examples = []
    for q in chosen:
        relevant = {name for name, grade in collection.qrels[collection.query_ids[q]].items() if grade > 0}
        right = next((text_of[name] for name in sorted(relevant) if name in text_of), '')
        answers = [_answers(_to_row(hits, q, collection.document_ids), relevant, text_of) for hits in (model, bm25)]
        examples.append(Example(collection.queries[q], shown(right), *answers))
    return examples


def _answers(row: dict[str, float], relevant: set[str], text_of: dict[str, str]) -> Answers:
    rank = next((rank for rank, name in enumerate(row, 1) if name in relevant), None)
    best = list(row.items())[:SHOWN]
    return Answers([Found(shown(text_of[name]), score, name in relevant) for name, score in best], rank)

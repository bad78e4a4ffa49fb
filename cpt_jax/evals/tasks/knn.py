"""Classification by the labels of the nearest training sentences, without training."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from etils import epath

from cpt_jax.benchmark_data.senteval import SentEvalSet, find_senteval_sets
from cpt_jax.embed.function import Embed
from cpt_jax.evals.fingerprint import fingerprint_files, fingerprint_task
from cpt_jax.evals.intervals.item_scores import QueryScores
from cpt_jax.evals.options import Options
from cpt_jax.evals.report.embedding_map import draw_task_map
from cpt_jax.evals.task import Context, Result, Task, TaskKind, read_library_versions

NEIGHBOURS = 256  # as in the cpt paper
SET = 'SST2'

KNN_PROTOCOL = (
    'the majority of the nearest training samples by cosine, exact search; of equal cosines the '
    'earlier sample is nearer; where as many neighbours have each label, the label with the '
    'larger sum of cosines'
)


@dataclass(frozen=True)
class NearestNeighbours(Task):
    """Classifies test sentences by a majority vote of their k nearest training sentences.

    Attributes:
      name: task name, 'knn/SST2'.
      data: labeled sentences with the parts train and test, and two classes.
      k: number of neighbors.
    """

    name: str
    data: SentEvalSet
    k: int = NEIGHBOURS

    def fingerprint(self) -> str:
        return fingerprint_task(self.name, Options(), fingerprint_files(self.data.files))

    def run(self, embed: Embed) -> Result:
        train, test = self.data.read_part('train'), self.data.read_part('test')
        train_NxD = normalize_rows(*self.data.compute_vectors(embed, 'train'))
        test_QxD = normalize_rows(*self.data.compute_vectors(embed, 'test'))
        predicted_Q = predict_by_vote(test_QxD, train_NxD, train.labels, self.k)
        known = set(train.texts[0])
        right_Q = (predicted_Q == test.labels).astype(np.float64)
        facts = self.data.describe()
        return Result(
            metric='accuracy',
            metrics={'accuracy': float(np.mean(right_Q))},
            n=len(test.labels),
            settings={
                'protocol': KNN_PROTOCOL,
                'k': min(self.k, len(train.labels)),
                'similarity': 'cosine, float32',
                'test_sentences_in_train': sum(text in known for text in test.texts[0]),
                'libraries': read_library_versions(),
                **facts,
            },
            baselines={
                'majority': {'accuracy': compute_majority_accuracy(train.labels, test.labels)}
            },
            counted='sentences',
            map=draw_task_map(self.data, embed),
            item_scores=QueryScores(str(facts['data']), {'accuracy': right_Q}),
        )


def find_nearest_neighbours(
    data_dir: epath.Path | None, options: Options, context: Context
) -> dict[str, Task]:
    """Returns the task on SST-2, if its data are in `data_dir`."""
    sets = context.get_or_make('senteval', partial(find_senteval_sets, data_dir))
    name = f'{KIND.name}/{SET}'
    return {name: NearestNeighbours(name, sets[SET])} if SET in sets else {}


def normalize_rows(vectors_NxD: np.ndarray) -> np.ndarray:
    """Returns the vectors scaled to length 1. Zero vectors stay zero."""
    norms_Nx1 = np.linalg.norm(vectors_NxD, axis=1, keepdims=True)
    return vectors_NxD / np.maximum(norms_Nx1, np.finfo(np.float32).tiny)


def predict_by_vote(
    queries_QxD: np.ndarray, samples_NxD: np.ndarray, labels_N: np.ndarray, k: int
) -> np.ndarray:
    """Returns int64[Q]: the most frequent label among the k nearest samples of each query. Ties are
    broken as described in `KNN_PROTOCOL`.

    Args:
      queries_QxD: float32, unit vectors.
      samples_NxD: float32, unit vectors of the training samples.
      labels_N: int, class indices of the training samples.
      k: number of neighbors.
    """
    # Imported here because it imports JAX, whose platform the program chooses first.
    from cpt_jax.search.across_hosts import search_everywhere

    hits = search_everywhere(queries_QxD, [(np.arange(len(samples_NxD)), samples_NxD)], k)
    labels_kxQ = labels_N[hits.documents_Qxk].T
    scores_kxQ = hits.scores_Qxk.T.astype(np.float64)
    votes_YxQ, sums_YxQ = np.zeros((2, labels_N.max() + 1, len(queries_QxD)))
    queries_Q = np.arange(len(queries_QxD))
    for scores_Q, labels_Q in zip(scores_kxQ, labels_kxQ, strict=True):
        votes_YxQ[labels_Q, queries_Q] += 1
        sums_YxQ[labels_Q, queries_Q] += scores_Q
    # The sum of cosines decides between the classes with the most votes.
    return np.where(votes_YxQ == votes_YxQ.max(axis=0), sums_YxQ, -np.inf).argmax(axis=0)


def compute_majority_accuracy(train_N: np.ndarray, test_Q: np.ndarray) -> float:
    """Returns the accuracy of predicting the most frequent training label for all test samples."""
    return float(np.mean(test_Q == np.bincount(train_N).argmax()))


KIND = TaskKind(
    name='knn',
    find=find_nearest_neighbours,
    layout='senteval/SST/binary/ with sentiment-train, -dev and -test (SentEval)',
    folder='senteval/ (its data/downstream)',
)

"""Classification by the nearest sentences whose label is known, without training."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from etils import epath

from cpt_jax.benchmark_data.senteval import SentEvalSet, find_sets
from cpt_jax.embed.function import Embed
from cpt_jax.evals.fingerprint import fingerprint_files, fingerprint_task
from cpt_jax.evals.options import Options
from cpt_jax.evals.report.embedding_map import map_of
from cpt_jax.evals.task import Context, Kind, Result, Task, library_versions

NEIGHBOURS = 256  # of the cpt paper
SET = 'SST2'

KNN_PROTOCOL = (
    'the majority of the nearest training samples by cosine, exact search; of equal cosines the '
    'earlier sample is nearer; where as many neighbours have each label, the label with the '
    'larger sum of cosines'
)


@dataclass(frozen=True)
class NearestNeighbours(Task):
    """Test sentences get the label of most of their k nearest training sentences.

    Attributes:
      name: name of the task, 'knn/SST2'.
      data: labelled sentences with the parts train and test, and two classes.
      k: number of neighbours that vote.
    """

    name: str
    data: SentEvalSet
    k: int = NEIGHBOURS

    def fingerprint(self) -> str:
        return fingerprint_task(self.name, Options(), fingerprint_files(self.data.files))

    def run(self, embed: Embed) -> Result:
        train, test = self.data.part('train'), self.data.part('test')
        train_NxD, test_QxD = (
            normalize_rows(*self.data.vectors(embed, part)) for part in ('train', 'test')
        )
        predicted_Q = vote(test_QxD, train_NxD, train.labels, self.k)
        known = set(train.texts[0])
        return Result(
            metric='accuracy',
            metrics={'accuracy': float(np.mean(predicted_Q == test.labels))},
            n=len(test.labels),
            settings={
                'protocol': KNN_PROTOCOL,
                'k': min(self.k, len(train.labels)),
                'similarity': 'cosine, float32',
                'test_sentences_in_train': sum(text in known for text in test.texts[0]),
                'libraries': library_versions(),
                **self.data.facts(),
            },
            baselines={'majority': {'accuracy': majority(train.labels, test.labels)}},
            counted='sentences',
            map=map_of(self.data, embed),
        )


def find_nearest_neighbours(
    data_dir: epath.Path | None, options: Options, context: Context
) -> dict[str, Task]:
    """Returns the task on SST-2, where its data are in `data_dir`."""
    sets, name = context.share('senteval', partial(find_sets, data_dir)), f'{KIND.name}/{SET}'
    return {name: NearestNeighbours(name, sets[SET])} if SET in sets else {}


def normalize_rows(vectors_NxD: np.ndarray) -> np.ndarray:
    """Of length 1; zero stays zero."""
    return vectors_NxD / np.maximum(
        np.linalg.norm(vectors_NxD, axis=1, keepdims=True), np.finfo(np.float32).tiny
    )


def vote(
    queries_QxD: np.ndarray, samples_NxD: np.ndarray, labels_N: np.ndarray, k: int
) -> np.ndarray:
    """int64[Q]: the label of most of the k nearest of the unit vectors `samples_NxD`; ties are
    settled as `KNN_PROTOCOL` says.
    """
    # Imports JAX: not before the program has chosen a platform for it.
    from cpt_jax.search.across_hosts import search_everywhere

    hits = search_everywhere(queries_QxD, [(np.arange(len(samples_NxD)), samples_NxD)], k)
    own_KxQ = labels_N[hits.documents_QxK].T
    votes_CxQ, sums_CxQ = np.zeros((2, labels_N.max() + 1, len(queries_QxD)))
    for scores_Q, own_Q in zip(hits.scores_QxK.T.astype(np.float64), own_KxQ, strict=True):
        votes_CxQ[own_Q, np.arange(len(own_Q))] += 1
        sums_CxQ[own_Q, np.arange(len(own_Q))] += scores_Q
    return np.where(votes_CxQ == votes_CxQ.max(axis=0), sums_CxQ, -np.inf).argmax(axis=0)


def majority(train_N: np.ndarray, test_Q: np.ndarray) -> float:
    """Accuracy of giving every test sample the label that most training samples have."""
    return float(np.mean(test_Q == np.bincount(train_N).argmax()))


KIND = Kind(
    name='knn',
    find=find_nearest_neighbours,
    layout='senteval/SST/binary/ with sentiment-train, -dev and -test (SentEval)',
    folder='senteval/ (its data/downstream)',
)

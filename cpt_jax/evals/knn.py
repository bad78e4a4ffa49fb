"""Classification without training: by the nearest sentences whose label is known, and by the nearest text that names a label."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cpt_jax.errors import UserError
from cpt_jax.evals.embedding_map import map_of
from cpt_jax.evals.ranking import embed_texts
from cpt_jax.evals.senteval_data import SIDE, Data
from cpt_jax.evals.task import Embed, Result, library_versions

NEIGHBOURS = 256  # of the cpt paper
WORDS = 'negative', 'positive'  # label 0 and label 1
TEMPLATE = 'this is an example of a {} movie review.'  # of the cpt paper

KNN_PROTOCOL = (
    'the majority of the nearest training samples by cosine, exact search; of equal cosines the earlier sample is nearer; where as many '
    'neighbours have each label, the label with the larger sum of cosines'
)


@dataclass(frozen=True)
class NearestNeighbours:
    """Test sentences get the label of most of their k nearest training sentences.

    Attributes:
      name: of the task, 'knn/SST2'.
      data: with the parts train and test, and two classes.
      k: how many neighbours vote.
    """

    name: str
    data: Data
    k: int = NEIGHBOURS

    def run(self, embed: Embed) -> Result:
        train, test = self.data.part('train'), self.data.part('test')
        train_NxD, test_QxD = (unit(*self.data.vectors(embed, part)) for part in ('train', 'test'))
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


@dataclass(frozen=True)
class ZeroShot:
    """Test sentences get the label whose name is nearest, as a word alone and in a sentence that describes it.

    Attributes:
      name: of the task, 'zeroshot/SST2'.
      data: with the part test.
      words: the labels in words, of class 0 first.
      template: a sentence with {} where the word belongs.
    """

    name: str
    data: Data
    words: Sequence[str] = WORDS
    template: str = TEMPLATE

    def __post_init__(self):
        if len(self.words) != len(self.data.layout.classes) or not all(word.strip() for word in self.words):
            raise UserError(f'--label_words {",".join(self.words)}: {len(self.data.layout.classes)} words are needed, label 0 first')
        if '{}' not in self.template:
            raise UserError(f'--label_template {self.template!r}: {{}} must stand where the word of the label belongs')

    def run(self, embed: Embed) -> Result:
        test = self.data.part('test')
        test_QxD = unit(*self.data.vectors(embed, 'test'))
        forms = {'words': list(self.words), 'description': [self.template.replace('{}', word) for word in self.words]}
        # The paper does not say which delimiters a label gets: those of the sentences, or those of what sentences look for.
        sides = {'': SIDE, '_as_document': 'y'}
        metrics = {}
        for ending, side in sides.items():
            for form, labels in forms.items():
                predicted_Q = nearest(test_QxD, unit(embed_texts(embed, labels, side)))
                metrics[f'accuracy_{form}{ending}'] = float(np.mean(predicted_Q == test.labels))
        return Result(
            metric='accuracy_description',
            metrics=metrics,
            n=len(test.labels),
            settings={
                'protocol': 'the label with the largest cosine; of equal ones the first',
                'labels': forms,
                'label_side': f'{SIDE}; y in the metrics that end in as_document',
                'libraries': library_versions(),
                **self.data.facts(),
            },
            baselines={'majority': dict.fromkeys(metrics, majority(test.labels, test.labels))},
            counted='sentences',
            map=map_of(self.data, embed),
        )


def unit(vectors_NxD: np.ndarray) -> np.ndarray:
    """Of length 1; zero stays zero."""
    return vectors_NxD / np.maximum(np.linalg.norm(vectors_NxD, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def vote(queries_QxD: np.ndarray, samples_NxD: np.ndarray, labels_N: np.ndarray, k: int) -> np.ndarray:
    """int64[Q]: the label of most of the k nearest of the unit vectors `samples_NxD`; ties are settled as `KNN_PROTOCOL` says."""
    from cpt_jax.evals.everywhere import search  # imports JAX: not before the program has chosen a platform for it

    hits = search(queries_QxD, [(np.arange(len(samples_NxD)), samples_NxD)], k)
    own_KxQ = labels_N[hits.documents_QxK].T
    votes_CxQ, sums_CxQ = np.zeros((2, labels_N.max() + 1, len(queries_QxD)))
    for scores_Q, own_Q in zip(hits.scores_QxK.T.astype(np.float64), own_KxQ, strict=True):
        votes_CxQ[own_Q, np.arange(len(own_Q))] += 1
        sums_CxQ[own_Q, np.arange(len(own_Q))] += scores_Q
    return np.where(votes_CxQ == votes_CxQ.max(axis=0), sums_CxQ, -np.inf).argmax(axis=0)


def nearest(queries_QxD: np.ndarray, labels_CxD: np.ndarray) -> np.ndarray:
    """int64[Q]: the row of `labels_CxD` with the largest dot product."""
    return (queries_QxD @ labels_CxD.T).argmax(axis=1)


def majority(train_N: np.ndarray, test_Q: np.ndarray) -> float:
    """Accuracy of giving every test sample the label that most training samples have."""
    return float(np.mean(test_Q == np.bincount(train_N).argmax()))

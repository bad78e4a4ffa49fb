"""Golden `knn`: scikit-learn's nearest-neighbour classifier with cosine distance."""

import tempfile
from pathlib import Path

import numpy as np
from etils import epath
from sklearn.neighbors import KNeighborsClassifier

from cpt_jax.benchmark_data.senteval import SentEvalSet
from tests.evals.senteval_files import bag_of_words, write_sst
from tests.evals.tasks import test_knn as inputs
from tests.goldens.golden import Golden


def make() -> Golden:
    """Returns predictions for seeded samples, and the accuracy on a small SST."""
    samples_NxD, queries_QxD, labels_N = inputs.draw_samples()
    arrays = {
        f'predicted/{k}': _fit(k, samples_NxD, labels_N).predict(queries_QxD).astype(np.int8)
        for k in inputs.NEIGHBOURS
    }
    with tempfile.TemporaryDirectory() as folder:
        write_sst(Path(folder) / 'SST' / 'binary')
        data = SentEvalSet('SST2', epath.Path(folder))
        train, test = data.read_part('train'), data.read_part('test')
        classifier = _fit(15, bag_of_words(train.texts[0], 'x'), train.labels)
        accuracy = classifier.score(bag_of_words(test.texts[0], 'x'), test.labels)
    return Golden({}, arrays | {'accuracy': np.array(accuracy)})


def _fit(k: int, samples_NxD: np.ndarray, labels_N: np.ndarray) -> KNeighborsClassifier:
    return KNeighborsClassifier(k, metric='cosine').fit(samples_NxD, labels_N)

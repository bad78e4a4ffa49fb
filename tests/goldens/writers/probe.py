"""Golden `probe`: scikit-learn's solver and folds, and SentEval's training loop in torch."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from etils import epath
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from benchmarks import probe_speed
from cpt_jax.benchmark_data.senteval import LAYOUTS, SentEvalSet
from cpt_jax.evals.fit import senteval_probe
from cpt_jax.evals.tasks import probe
from tests.evals.senteval_files import bag_of_words, write_all
from tests.evals.tasks import test_probe as inputs
from tests.goldens.golden import Golden


def make() -> Golden:
    """Returns scores, predictions, folds and fitted weights."""
    with tempfile.TemporaryDirectory() as folder:
        data_dir = write_all(Path(folder))
        arrays = _scores(data_dir) | _loop_scores(data_dir)
    arrays |= _predictions() | _folds() | _first_weights() | _fits() | _tenacity() | _f1()
    return Golden({}, {name: np.asarray(array) for name, array in arrays.items()})


def _scores(data_dir: Path) -> dict[str, float]:
    """Returns the scores of the protocol `lbfgs`, computed with scikit-learn."""
    return {f'lbfgs/{name}': _score(name, data_dir) for name in inputs.TO_CONVERGENCE}


def _score(name: str, folder: Path) -> float:
    x, y, part = probe.read_samples(
        SentEvalSet(name, epath.Path(folder) / 'senteval'), bag_of_words
    )
    model = LogisticRegression(max_iter=9999, tol=1e-8)
    train = np.flatnonzero(part == 'train')
    test = np.flatnonzero(part == 'test')
    strengths = inputs.SMALL['STRENGTHS']
    if name == 'SST2':
        dev = part == 'dev'
        best = max(
            (clone(model).set_params(C=c).fit(x[train], y[train]) for c in strengths),
            key=lambda m: m.score(x[dev], y[dev]),
        )
        return best.score(x[test], y[test])
    search = GridSearchCV(model, {'C': strengths}, cv=_stratified(inputs.SMALL['INNER_FOLDS']))
    outer = _stratified(inputs.SMALL['FOLDS'])
    turns = outer.split(x, y) if name == 'MR' else [(train, test)]
    return float(
        np.mean([search.fit(x[a], y[a]).score(x[b], y[b]) for a, b in turns]),
    )


def _stratified(folds: int) -> StratifiedKFold:
    return StratifiedKFold(folds, shuffle=True, random_state=probe.SEED)


def _predictions() -> dict[str, np.ndarray]:
    found = {}
    for classes in (2, 5):
        x_NxD, labels_N, train_FxN = inputs.make_three_splits(classes)
        found[f'predicted/{classes}'] = np.array(
            [
                [_predict(x_NxD, labels_N, train_N, c) for c in inputs.STRENGTHS]
                for train_N in train_FxN
            ],
            np.uint8,
        )
    x_NxD, labels_N = inputs.degenerate()
    everything = np.ones(len(labels_N), bool)
    found['predicted/degenerate'] = np.array(
        [_predict(x_NxD, labels_N, everything, c) for c in (1, 1000)], np.uint8
    )
    return found


def _predict(x_NxD, labels_N, train_N, strength) -> np.ndarray:
    model = LogisticRegression(C=strength, tol=1e-9, max_iter=20_000)
    return model.fit(x_NxD[train_N], labels_N[train_N]).predict(x_NxD)


def _folds() -> dict[str, np.ndarray]:
    found = {}
    for samples, classes, folds in inputs.FOLDS:
        labels_N = inputs.make_fold_labels(samples, classes, folds)
        fold_N = np.full(len(labels_N), -1, np.int8)
        for fold, (_, test) in enumerate(_stratified(folds).split(labels_N, labels_N)):
            fold_N[test] = fold
        found[f'folds/{samples}'] = fold_N
    return found


def _first_weights() -> dict[str, np.ndarray]:
    found = {}
    for width, classes in inputs.FIRST_WEIGHTS:
        torch.manual_seed(probe.SEED)
        found[f'first weights/{width}'] = _with_bias(torch.nn.Linear(width, classes))
    return found


def _with_bias(layer: torch.nn.Linear) -> np.ndarray:
    """Returns the weights with the bias as the last column, float32[K, D + 1]."""
    weight, bias = (array.detach().numpy() for array in (layer.weight, layer.bias))
    return np.concatenate([weight, bias[:, None]], axis=1)


def _fits() -> dict[str, np.ndarray]:
    found = {}
    with inputs.few_checks(12, 2):
        for classes in (2, 3):
            x_NxD, labels_N, given, drawn = inputs.make_fit_splits(classes)
            rows = [
                probe_speed.fit_with_torch(
                    x_NxD[split.train],
                    labels_N[split.train],
                    classes,
                    decay,
                    (x_NxD[split.validation], labels_N[split.validation]),
                )
                for split in given
                for decay in inputs.DECAYS
            ]
            train = inputs.TRAINS[2]
            rows += [
                probe_speed.fit_with_torch(x_NxD[train], labels_N[train], classes, decay)
                for decay in inputs.DECAYS
            ]
            found[f'fit/{classes}/accuracy'] = np.array([best for best, _ in rows])
            found[f'fit/{classes}/weights'] = np.stack([_with_bias(layer) for _, layer in rows])
    return found


def _loop_scores(data_dir: Path) -> dict[str, float]:
    found = {}
    with inputs.few_checks(3, senteval_probe.TENACITY):
        for name in inputs.SENTEVAL:
            data = SentEvalSet(name, epath.Path(data_dir) / 'senteval')
            samples = probe.read_samples(data, bag_of_words)
            turns = probe.make_outer_folds(samples, inputs.SMALL['FOLDS'])
            scores = probe_speed.probe_with_torch(samples, turns, len(LAYOUTS[name].classes))
            found[f'senteval/{name}'] = float(np.mean(scores))
    return found


def _tenacity() -> dict[str, object]:
    x_NxD, labels_N, _ = inputs.make_contrary_samples()
    validation = x_NxD[150:], labels_N[150:]
    best, layer = probe_speed.fit_with_torch(x_NxD[:150], labels_N[:150], 2, 1e-5, validation)
    return {'tenacity/accuracy': best, 'tenacity/weights': _with_bias(layer)}


def _f1() -> dict[str, float]:
    return {'f1': float(f1_score([1, 1, 0, 1], [1, 0, 1, 1]))}

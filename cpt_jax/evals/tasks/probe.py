"""Linear probes on SentEval's classification tasks: linear classifiers on fixed embeddings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from etils import epath

from cpt_jax.benchmark_data.senteval import SentEvalSet, assign_stratified_folds, find_senteval_sets
from cpt_jax.embed.function import Embed, are_unit_vectors
from cpt_jax.evals.fingerprint import fingerprint_files, fingerprint_task
from cpt_jax.evals.intervals.item_scores import QueryScores
from cpt_jax.evals.options import Options, declare_option
from cpt_jax.evals.report.embedding_map import draw_task_map
from cpt_jax.evals.task import Context, Result, Task, TaskKind, read_library_versions
from cpt_jax.runtime.errors import UserError

SEED = 1111  # SentEval's seed, for folds and for its classifier
FOLDS = 10
INNER_FOLDS = 5  # inner folds of the protocol lbfgs; SentEval uses ten
# Values of C. Unit vectors need larger values than SentEval's 1/4 to 32.
STRENGTHS = 0.0625, 0.25, 1.0, 4.0, 16.0, 64.0, 256.0

PROTOCOLS = {
    'lbfgs': f'logistic regression to convergence, C of {STRENGTHS}; the first best of '
    f'{INNER_FOLDS} inner folds (SST2: of the dev set)',
    'senteval': f'SentEval: Adam, batches of 64, weight decay 1e-5 to 1e-2, a check every 4 '
    f'passes, tenacity 5, {FOLDS} inner folds',
}
SPLITS = {
    'nested': f'mean over {FOLDS} stratified folds',
    'test': 'the test set, after cross-validation on the training set',
    'dev': 'the test set; trained on the training set alone',
}


class Samples(NamedTuple):
    """All samples of a task, with its parts concatenated.

    Attributes:
      x_NxD: float32, features.
      labels_N: int64, class indices.
      part_N: str, part of each sample: 'train', 'dev', 'test' or 'all'.
    """

    x_NxD: np.ndarray
    labels_N: np.ndarray
    part_N: np.ndarray


class OuterFold(NamedTuple):
    """One outer fold.

    Attributes:
      train: indices of the training samples.
      test: indices of the test samples.
      inner: (training indices, validation indices) of the inner folds. The classifier's
        hyperparameter is chosen by the mean accuracy over them.
    """

    train: np.ndarray
    test: np.ndarray
    inner: list[tuple[np.ndarray, np.ndarray]]


class ProbeResult(NamedTuple):
    """Predictions of a probe.

    Attributes:
      predicted: predicted classes of the test samples of each outer fold.
      facts: chosen hyperparameters, for the settings of the result.
    """

    predicted: list[np.ndarray]
    facts: dict[str, object]


@dataclass(frozen=True)
class ProbeOptions(Options):
    """Options of probe/*."""

    probe_protocol: str = declare_option(
        'lbfgs',
        'Protocol of probe/*. ' + '; '.join(map(': '.join, PROTOCOLS.items())),
        choices=[*PROTOCOLS],
    )


@dataclass(frozen=True)
class Probe(Task):
    """A linear probe on one data set.

    Attributes:
      name: task name, such as 'probe/MR'.
      data: labeled sentences.
      options: options of the kind.
    """

    name: str
    data: SentEvalSet
    options: ProbeOptions = ProbeOptions()

    @property
    def protocol(self) -> str:
        return self.options.probe_protocol

    def fingerprint(self) -> str:
        return fingerprint_task(self.name, self.options, fingerprint_files(self.data.files))

    def run(self, embed: Embed) -> Result:
        samples = read_samples(self.data, embed)
        try:
            outer_folds = make_outer_folds(
                samples, FOLDS if self.protocol == 'senteval' else INNER_FOLDS
            )
        except UserError as error:
            raise UserError(f'{self.name}: {error}') from None
        probed = PROBES[self.protocol](samples, outer_folds, len(self.data.layout.classes))
        majority = [
            np.full(len(outer.test), np.bincount(samples.labels_N[outer.train]).argmax())
            for outer in outer_folds
        ]
        right = [samples.labels_N[outer.test] for outer in outer_folds]
        are_pairs = self.data.name == 'MRPC'
        settings = self._make_settings(samples, embed)
        return Result(
            metric='accuracy',
            metrics=_compute_metrics(probed.predicted, right, are_pairs),
            n=sum(map(len, right)),
            settings=settings | probed.facts,
            baselines={'majority': _compute_metrics(majority, right, are_pairs)},
            counted='pairs' if are_pairs else 'sentences',
            map=draw_task_map(self.data, embed),
            item_scores=QueryScores(
                f'{settings["data"]} {settings["scored_on"]}',
                {'accuracy': _score_samples(probed.predicted, right)},
            ),
        )

    def _make_settings(self, samples: Samples, embed: Embed) -> dict[str, object]:
        vectors_NxD = self.data.compute_vectors(embed, [*self.data.layout.parts][0])[0]
        return {
            'protocol': PROTOCOLS[self.protocol],
            'scored_on': SPLITS[_find_split_kind(samples)],
            'features': '[|u - v|, u * v]'
            if self.data.name == 'MRPC'
            else 'the vector, not scaled',
            'vectors': 'of unit length' if are_unit_vectors(vectors_NxD) else 'of any length',
            'seed': SEED,
            'libraries': read_library_versions('jax'),
            **self.data.describe(),
        }


def find_probes(
    data_dir: epath.Path | None, options: ProbeOptions, context: Context
) -> dict[str, Task]:
    """Returns a task for each SentEval data set in `data_dir`."""
    sets = context.get_or_make('senteval', partial(find_senteval_sets, data_dir))
    tasks = [Probe(f'{KIND.name}/{name}', data, options) for name, data in sets.items()]
    return {task.name: task for task in tasks}


def read_samples(data: SentEvalSet, embed: Embed) -> Samples:
    """Returns the samples of all parts.

    Raises:
      UserError: the data cannot be used.
    """
    # Read all files before embedding, so that errors in the data are reported early.
    parts = {part: data.read_part(part) for part in data.layout.parts}
    features = [make_pair_features(*data.compute_vectors(embed, part)) for part in parts]
    labels = [part.labels for part in parts.values()]
    return Samples(
        np.concatenate(features),
        np.concatenate(labels),
        np.repeat([*parts], [len(part) for part in labels]),
    )


def make_pair_features(u_NxD: np.ndarray, v_NxD: np.ndarray | None = None) -> np.ndarray:
    """Returns the features of pairs, [|u - v|, u * v], or `u_NxD` if there is no second vector."""
    if v_NxD is None:
        return u_NxD
    return np.concatenate([np.abs(u_NxD - v_NxD), u_NxD * v_NxD], axis=1)


def _find_split_kind(samples: Samples) -> str:
    """Returns the key of `SPLITS` for the parts of a task."""
    parts = set(samples.part_N)
    if parts == {'all'}:
        return 'nested'
    return 'dev' if 'dev' in parts else 'test'


def make_outer_folds(samples: Samples, inner_folds: int) -> list[OuterFold]:
    """Returns the outer folds: `FOLDS` for a task without a split, otherwise one.

    Raises:
      UserError: a class has too few samples.
    """
    labels_N = samples.labels_N
    kind = _find_split_kind(samples)
    if kind == 'nested':
        fold_N = assign_stratified_folds(labels_N, FOLDS, SEED)
        trains = [np.flatnonzero(fold_N != fold) for fold in range(FOLDS)]
        tests = [np.flatnonzero(fold_N == fold) for fold in range(FOLDS)]
    else:
        trains = [np.flatnonzero(samples.part_N == 'train')]
        tests = [np.flatnonzero(samples.part_N == 'test')]
    if kind == 'dev':
        return [
            OuterFold(trains[0], tests[0], [(trains[0], np.flatnonzero(samples.part_N == 'dev'))])
        ]
    return [
        OuterFold(train, test, _make_inner_folds(train, labels_N, inner_folds))
        for train, test in zip(trains, tests, strict=True)
    ]


def _make_inner_folds(
    train: np.ndarray, labels_N: np.ndarray, folds: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    fold_M = assign_stratified_folds(labels_N[train], folds, SEED)
    return [(train[fold_M != fold], train[fold_M == fold]) for fold in range(folds)]


def _choose_hyperparameter(accuracies_IxA: np.ndarray) -> int:
    """Returns the index of the hyperparameter with the best mean accuracy; the first of equal ones.

    Accuracies are rounded to hundredths of a percent, as in SentEval.
    """
    return int(np.argmax(np.round(100 * accuracies_IxA.mean(axis=0), 2)))


def probe_to_convergence(
    samples: Samples, outer_folds: Sequence[OuterFold], classes: int
) -> ProbeResult:
    """Runs the protocol lbfgs.

    One program computes all fits: on inner folds and on whole training sets, with every C.
    """
    from cpt_jax.evals.fit import logistic  # imports JAX

    inner = [pair for outer in outer_folds for pair in outer.inner]
    # With a dev set, the only inner fold is trained on the whole training set already.
    trains = [train for train, _ in inner] + [
        outer.train for outer in outer_folds if len(outer.inner) > 1
    ]
    train_UxN = np.zeros((len(trains), len(samples.labels_N)), bool)
    for row_N, train in zip(train_UxN, trains, strict=True):
        row_N[train] = True
    fits = logistic.fit_logistic(samples.x_NxD, samples.labels_N, train_UxN, STRENGTHS, classes)
    right_UxAxN = fits.predicted_UxAxN == samples.labels_N
    accuracies = np.stack(
        [right_UxAxN[i][:, validation].mean(axis=1) for i, (_, validation) in enumerate(inner)]
    )
    chosen = [
        _choose_hyperparameter(accuracies_IxA)
        for accuracies_IxA in np.split(accuracies, len(outer_folds))
    ]
    whole = fits.predicted_UxAxN[-len(outer_folds) :]
    predicted = [
        whole[i, g, outer.test]
        for i, (g, outer) in enumerate(zip(chosen, outer_folds, strict=True))
    ]
    return ProbeResult(
        predicted, {'chosen_C': [STRENGTHS[g] for g in chosen], 'converged': fits.converged}
    )


def probe_as_senteval(
    samples: Samples, outer_folds: Sequence[OuterFold], classes: int, seed: int = SEED
) -> ProbeResult:
    """Runs the protocol senteval: one program for all inner folds and weight decays, and one for
    the classifiers that are tested.
    """
    from cpt_jax.evals.fit import senteval_probe  # imports JAX

    def fit(
        chosen: Sequence[senteval_probe.Split], decays_UxA: np.ndarray
    ) -> senteval_probe.ProbeFits:
        return senteval_probe.fit_probes(
            samples.x_NxD, samples.labels_N, chosen, decays_UxA, classes, seed
        )

    splits = senteval_probe.SplitMaker(seed)
    decays_A = np.array(senteval_probe.DECAYS, np.float32)
    inner = [pair for outer in outer_folds for pair in outer.inner]
    fits = fit([splits.make_split(*pair) for pair in inner], np.tile(decays_A, (len(inner), 1)))
    accuracies = fits.right_UxA / np.array([[len(validation)] for _, validation in inner])
    chosen = [
        _choose_hyperparameter(accuracies_IxA)
        for accuracies_IxA in np.split(accuracies, len(outer_folds))
    ]
    if all(len(outer.inner) > 1 for outer in outer_folds):
        drawn = [splits.draw_split(outer.train) for outer in outer_folds]
        weights = fit(drawn, decays_A[chosen][:, None]).w_UxAxYxE[:, 0]
    else:  # with a dev set, SentEval would fit the same weights again
        weights = fits.w_UxAxYxE[np.arange(len(outer_folds)), chosen]
    predicted = [
        (samples.x_NxD[outer.test] @ w_YxE[:, :-1].T + w_YxE[:, -1]).argmax(axis=1)
        for outer, w_YxE in zip(outer_folds, weights, strict=True)
    ]
    return ProbeResult(
        predicted, {'chosen_weight_decay': [senteval_probe.DECAYS[g] for g in chosen]}
    )


PROBES: dict[str, Callable[[Samples, Sequence[OuterFold], int], ProbeResult]] = {
    'lbfgs': probe_to_convergence,
    'senteval': probe_as_senteval,
}


def _compute_metrics(
    predicted: Sequence[np.ndarray], right: Sequence[np.ndarray], with_f1: bool
) -> dict[str, float]:
    """Returns the accuracy, and optionally F1 of class 1, averaged over the outer folds."""
    folds = list(zip(predicted, right, strict=True))
    metrics = {'accuracy': float(np.mean([np.mean(found == label) for found, label in folds]))}
    if with_f1:
        metrics['f1'] = float(np.mean([_compute_f1(found, label) for found, label in folds]))
    return metrics


def _score_samples(predicted: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> np.ndarray:
    """Returns float64 [N], one number for each test sample of all outer folds: 0 for a wrong class.

    A right class has the mean size of the folds / the size of its fold. The mean of all is then the
    accuracy, which is averaged over the folds.
    """
    mean_size = np.mean([len(label) for label in right])
    return np.concatenate(
        [
            (found == label) * (mean_size / len(label))
            for found, label in zip(predicted, right, strict=True)
        ]
    )


def _compute_f1(predicted_N: np.ndarray, right_N: np.ndarray) -> float:
    both = (predicted_N * right_N).sum()
    total = (predicted_N + right_N).sum()
    return 2 * both / total if total else 0.0


KIND = TaskKind(
    name='probe',
    find=find_probes,
    options=ProbeOptions,
    layout='senteval/{MR,CR,SUBJ,MPQA,SST/binary,TREC,MRPC}/ (data/downstream of SentEval)',
    folder='senteval/ (its data/downstream)',
)

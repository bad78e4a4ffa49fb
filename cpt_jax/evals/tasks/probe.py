"""Linear probes on SentEval's classification tasks: a linear classifier on vectors that stay as
they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from etils import epath

from cpt_jax.benchmark_data.senteval import SentEvalSet, find_sets, stratified_folds
from cpt_jax.embed.function import Embed
from cpt_jax.evals.fingerprint import fingerprint_files, fingerprint_task
from cpt_jax.evals.options import Options, option
from cpt_jax.evals.report.embedding_map import map_of
from cpt_jax.evals.task import Context, Kind, Result, Task, library_versions
from cpt_jax.runtime.errors import UserError

SEED = 1111  # SentEval's, of folds and of what its classifier draws
FOLDS = 10
INNER_FOLDS = 5  # of the protocol lbfgs; SentEval has ten
# C; unit vectors need larger ones than the samples that SentEval's 1/4 to 32 are for.
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
    """All samples of a task, those of its parts one after the other, as a classifier gets them.

    Attributes:
      x_NxD: float32 features.
      labels_N: int64 classes.
      part_N: the part that each comes from.
    """

    x_NxD: np.ndarray
    labels_N: np.ndarray
    part_N: np.ndarray


class Turn(NamedTuple):
    """One outer fold: positions of its samples for training and testing, and how the setting of its
    classifier is chosen.

    Attributes:
      inner: (training, validation) pairs of positions, over which accuracies are averaged.
    """

    train: np.ndarray
    test: np.ndarray
    inner: list[tuple[np.ndarray, np.ndarray]]


class Probed(NamedTuple):
    """Classes predicted for the tested samples of each turn, and the settings that were chosen."""

    predicted: list[np.ndarray]
    facts: dict[str, object]


@dataclass(frozen=True)
class ProbeOptions(Options):
    """Options of probe/*."""

    probe_protocol: str = option(
        'lbfgs',
        'Of probe/*: ' + '; '.join(map(': '.join, PROTOCOLS.items())),
        choices=[*PROTOCOLS],
    )


@dataclass(frozen=True)
class Probe(Task):
    """One data set.

    Attributes:
      name: name of the task, such as 'probe/MR'.
      data: labelled sentences.
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
            turns = make_turns(samples, FOLDS if self.protocol == 'senteval' else INNER_FOLDS)
        except UserError as error:
            raise UserError(f'{self.name}: {error}') from None
        probed = PROBES[self.protocol](samples, turns, len(self.data.layout.classes))
        majority = [
            np.full(len(turn.test), np.bincount(samples.labels_N[turn.train]).argmax())
            for turn in turns
        ]
        right = [samples.labels_N[turn.test] for turn in turns]
        pairs = self.data.name == 'MRPC'
        return Result(
            metric='accuracy',
            metrics=_metrics(probed.predicted, right, pairs),
            n=sum(map(len, right)),
            settings=self._settings(samples) | probed.facts,
            baselines={'majority': _metrics(majority, right, pairs)},
            counted='pairs' if pairs else 'sentences',
            map=map_of(self.data, embed),
        )

    def _settings(self, samples: Samples) -> dict[str, object]:
        return {
            'protocol': PROTOCOLS[self.protocol],
            'scored_on': SPLITS[_kind(samples)],
            'features': '[|u - v|, u * v]'
            if self.data.name == 'MRPC'
            else 'the vector, not scaled',
            'seed': SEED,
            'libraries': library_versions('jax'),
            **self.data.facts(),
        }


def find_probes(
    data_dir: epath.Path | None, options: ProbeOptions, context: Context
) -> dict[str, Task]:
    """Returns a task for each set of SentEval that is in `data_dir`."""
    sets = context.share('senteval', partial(find_sets, data_dir))
    tasks = [Probe(f'{KIND.name}/{name}', data, options) for name, data in sets.items()]
    return {task.name: task for task in tasks}


def read_samples(data: SentEvalSet, embed: Embed) -> Samples:
    """The samples of all parts. Raises UserError for data that cannot be used."""
    # All files are read before the first sentence is embedded.
    parts = {part: data.part(part) for part in data.layout.parts}
    features = [pair_features(*data.vectors(embed, part)) for part in parts]
    labels = [part.labels for part in parts.values()]
    return Samples(
        np.concatenate(features),
        np.concatenate(labels),
        np.repeat([*parts], [len(part) for part in labels]),
    )


def pair_features(u_NxD: np.ndarray, v_NxD: np.ndarray | None = None) -> np.ndarray:
    """Of pairs [|u - v|, u * v], of single vectors themselves."""
    return (
        u_NxD if v_NxD is None else np.concatenate([np.abs(u_NxD - v_NxD), u_NxD * v_NxD], axis=1)
    )


def _kind(samples: Samples) -> str:
    parts = set(samples.part_N)
    return 'nested' if parts == {'all'} else 'dev' if 'dev' in parts else 'test'


def make_turns(samples: Samples, inner_folds: int) -> list[Turn]:
    """Ten of tasks without a split, else one. Raises UserError where a class has too few
    samples.
    """
    labels_N, kind = samples.labels_N, _kind(samples)
    if kind == 'nested':
        fold_N = stratified_folds(labels_N, FOLDS, SEED)
        trains = [np.flatnonzero(fold_N != fold) for fold in range(FOLDS)]
        tests = [np.flatnonzero(fold_N == fold) for fold in range(FOLDS)]
    else:
        trains = [np.flatnonzero(samples.part_N == 'train')]
        tests = [np.flatnonzero(samples.part_N == 'test')]
    if kind == 'dev':
        return [Turn(trains[0], tests[0], [(trains[0], np.flatnonzero(samples.part_N == 'dev'))])]
    return [
        Turn(train, test, _inner(train, labels_N, inner_folds))
        for train, test in zip(trains, tests, strict=True)
    ]


def _inner(
    train: np.ndarray, labels_N: np.ndarray, folds: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    fold_T = stratified_folds(labels_N[train], folds, SEED)
    return [(train[fold_T != fold], train[fold_T == fold]) for fold in range(folds)]


def _choose(accuracies_IxG: np.ndarray) -> int:
    """The first best of the means over inner folds, in hundredths of a point, as SentEval compares
    them.
    """
    return int(np.argmax(np.round(100 * accuracies_IxG.mean(axis=0), 2)))


def probe_to_convergence(samples: Samples, turns: Sequence[Turn], classes: int) -> Probed:
    """The protocol lbfgs: the fits on inner folds and those on whole training sets, with every C,
    are one program.
    """
    from cpt_jax.evals.fit import logistic  # imports JAX

    inner = [pair for turn in turns for pair in turn.inner]
    # The one inner fold of a task with a dev set is trained on all training samples: the same fit.
    trains = [train for train, _ in inner] + [turn.train for turn in turns if len(turn.inner) > 1]
    train_FxN = np.zeros((len(trains), len(samples.labels_N)), bool)
    for row_N, train in zip(train_FxN, trains, strict=True):
        row_N[train] = True
    fits = logistic.fit_logistic(samples.x_NxD, samples.labels_N, train_FxN, STRENGTHS, classes)
    right_FxGxN = fits.predicted_FxGxN == samples.labels_N
    accuracies = np.stack(
        [right_FxGxN[i][:, validation].mean(axis=1) for i, (_, validation) in enumerate(inner)]
    )
    chosen = [_choose(accuracies_IxG) for accuracies_IxG in np.split(accuracies, len(turns))]
    whole = fits.predicted_FxGxN[-len(turns) :]
    predicted = [
        whole[i, g, turn.test] for i, (g, turn) in enumerate(zip(chosen, turns, strict=True))
    ]
    return Probed(
        predicted, {'chosen_C': [STRENGTHS[g] for g in chosen], 'converged': fits.converged}
    )


def probe_as_senteval(
    samples: Samples, turns: Sequence[Turn], classes: int, seed: int = SEED
) -> Probed:
    """The protocol senteval: one program for all inner folds and weight decays, and one that fits
    the classifiers that are tested.
    """
    from cpt_jax.evals.fit import senteval_probe  # imports JAX

    def fit(
        chosen: Sequence[senteval_probe.Split], decays_FxG: np.ndarray
    ) -> senteval_probe.ProbeFits:
        return senteval_probe.fit_probes(
            samples.x_NxD, samples.labels_N, chosen, decays_FxG, classes, seed
        )

    splits, decays_G = senteval_probe.Splits(seed), np.array(senteval_probe.DECAYS, np.float32)
    inner = [pair for turn in turns for pair in turn.inner]
    fits = fit([splits.given(*pair) for pair in inner], np.tile(decays_G, (len(inner), 1)))
    accuracies = fits.right_FxG / np.array([[len(validation)] for _, validation in inner])
    chosen = [_choose(accuracies_IxG) for accuracies_IxG in np.split(accuracies, len(turns))]
    if all(len(turn.inner) > 1 for turn in turns):
        weights = fit(
            [splits.drawn(turn.train) for turn in turns], decays_G[chosen][:, None]
        ).w_FxGxKxE[:, 0]
    else:  # SentEval fits a second time what a dev set has chosen, which gives the same weights
        weights = fits.w_FxGxKxE[np.arange(len(turns)), chosen]
    predicted = [
        (samples.x_NxD[turn.test] @ w_KxE[:, :-1].T + w_KxE[:, -1]).argmax(axis=1)
        for turn, w_KxE in zip(turns, weights, strict=True)
    ]
    return Probed(predicted, {'chosen_weight_decay': [senteval_probe.DECAYS[g] for g in chosen]})


PROBES: dict[str, Callable[[Samples, Sequence[Turn], int], Probed]] = {
    'lbfgs': probe_to_convergence,
    'senteval': probe_as_senteval,
}


def _metrics(
    predicted: Sequence[np.ndarray], right: Sequence[np.ndarray], f1: bool
) -> dict[str, float]:
    """Means over the turns; F1 is that of class 1."""
    turns = list(zip(predicted, right, strict=True))
    accuracy = {'accuracy': float(np.mean([np.mean(found == label) for found, label in turns]))}
    return accuracy | (
        {'f1': float(np.mean([_f1(found, label) for found, label in turns]))} if f1 else {}
    )


def _f1(predicted_N: np.ndarray, right_N: np.ndarray) -> float:
    both, either = (predicted_N * right_N).sum(), (predicted_N + right_N).sum()
    return 2 * both / either if either else 0.0


KIND = Kind(
    name='probe',
    find=find_probes,
    options=ProbeOptions,
    layout='senteval/{MR,CR,SUBJ,MPQA,SST/binary,TREC,MRPC}/ (data/downstream of SentEval)',
    folder='senteval/ (its data/downstream)',
)

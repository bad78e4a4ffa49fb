"""Measures the time of SentEval's linear probe, compared with SentEval's own loop in torch.

Our side computes all folds and weight decays in one program.

Example:
  python benchmarks/probe_speed.py --vectors vectors.npz --outer 1 --json probe_speed.json

MR has nested folds, of which both sides compute the first --outer. SST2 has four weight decays,
chosen on the development set. Without --vectors, samples are random, with the counts of the tasks
and dimension 384. Compilation is not timed, because later runs use the compilation cache. In the
JSON, `ratio` is torch's time over ours for each task, and `accuracy` is the test accuracy of both
on the same folds.
"""

import copy
import json
import os
import time
from pathlib import Path

import numpy as np
from absl import flags

from cpt_jax.benchmark_data.senteval import LAYOUTS
from cpt_jax.cli.program import run_program
from cpt_jax.evals.tasks import probe

SIZES = {'MR': {'all': 10_662}, 'SST2': {'train': 67_349, 'dev': 872, 'test': 1_821}}


def main() -> None:
    found = {name: measure(name, _VECTORS.value, _OUTER.value) for name in _TASKS.value}
    print(
        f'{"task":<8}{"fits":>8}{"torch s":>12}{"ours s":>10}{"ratio":>8}{"torch acc.":>12}'
        f'{"ours":>8}'
    )
    for name, row in found.items():
        seconds, accuracy = row['seconds'], row['accuracy']
        print(
            f'{name:<8}{row["fits"]:>8}{seconds["torch"]:>12.1f}{seconds["ours"]:>10.1f}'
            f'{row["ratio"]:>8.1f}'
            f'{100 * accuracy["torch"]:>12.2f}{100 * accuracy["ours"]:>8.2f}'
        )
    if _JSON.value:
        report = {
            'ratio': {name: row['ratio'] for name, row in found.items()},
            'outer': _OUTER.value,
            'tasks': found,
        }
        Path(_JSON.value).write_text(json.dumps(report, indent=2) + '\n')


def measure(name: str, vectors: str, outer: int) -> dict:
    """Returns the results of both sides on the same samples and folds.

    Args:
      name: task, 'MR' or 'SST2'.
      vectors: an .npz file as read by `read_samples`; '': random samples.
      outer: number of outer folds.
    """
    samples = read_samples(name, vectors) if vectors else draw_samples(SIZES[name])
    turns = probe.make_outer_folds(samples, probe.FOLDS)[:outer]
    classes = len(LAYOUTS[name].classes)
    seconds = {}
    accuracy = {}
    probe.probe_as_senteval(samples, turns, classes)  # compiles
    start = time.perf_counter()
    predicted = probe.probe_as_senteval(samples, turns, classes).predicted
    seconds['ours'] = time.perf_counter() - start
    accuracies = [
        np.mean(labels == samples.labels_N[turn.test])
        for labels, turn in zip(predicted, turns, strict=True)
    ]
    accuracy['ours'] = float(np.mean(accuracies))
    start = time.perf_counter()
    accuracy['torch'] = float(np.mean(probe_with_torch(samples, turns, classes)))
    seconds['torch'] = time.perf_counter() - start
    fits = sum(4 * len(turn.inner) + 1 for turn in turns)
    return {
        'ratio': seconds['torch'] / seconds['ours'],
        'seconds': seconds,
        'accuracy': accuracy,
        'fits': fits,
    }


def read_samples(name: str, path: str) -> probe.Samples:
    """Returns the arrays <name>_x, <name>_labels and <name>_part of an .npz file."""
    with np.load(path) as arrays:
        return probe.Samples(*(arrays[f'{name}_{field}'] for field in ('x', 'labels', 'part')))


def draw_samples(sizes: dict[str, int], width: int = 384) -> probe.Samples:
    """Returns random unit vectors of two classes; a linear classifier reaches about 80 %.

    Args:
      sizes: samples of each part.
      width: dimension of the vectors.
    """
    rng = np.random.default_rng(0)
    total = sum(sizes.values())
    labels_N = np.arange(total) % 2
    x_NxD = rng.standard_normal((total, width), np.float32)
    x_NxD[:, :50] += 0.12 * (2 * labels_N[:, None] - 1)
    x_NxD /= np.linalg.norm(x_NxD, axis=1, keepdims=True)
    return probe.Samples(x_NxD, labels_N, np.repeat([*sizes], [*sizes.values()]))


def probe_with_torch(
    samples: probe.Samples, turns: list[probe.OuterFold], classes: int
) -> list[float]:
    """Returns the test accuracy of each turn, one fit after the other, as in SentEval's
    validation.py.
    """
    from cpt_jax.evals.fit.senteval_probe import DECAYS

    x_NxD, labels_N, _ = samples
    scores = []
    for turn in turns:
        means = []
        for decay in DECAYS:
            fits = [
                fit_with_torch(x_NxD[a], labels_N[a], classes, decay, (x_NxD[b], labels_N[b]))
                for a, b in turn.inner
            ]
            means.append(round(100 * np.mean([best for best, _ in fits]), 2))
        decay = DECAYS[int(np.argmax(means))]
        # With one inner split (a development set), the final fit is validated on it too.
        validation = None
        if len(turn.inner) == 1:
            ((_, dev),) = turn.inner
            validation = (x_NxD[dev], labels_N[dev])
        x_train, labels_train = x_NxD[turn.train], labels_N[turn.train]
        _, layer = fit_with_torch(x_train, labels_train, classes, decay, validation)
        scores.append(_torch_accuracy(layer, *_tensors(x_NxD[turn.test], labels_N[turn.test])))
    return scores


def fit_with_torch(x_NxD, labels_N, classes, decay, validation=None):
    """Fits one linear layer with early stopping.

    Args:
      x_NxD: float32[N, D], training vectors.
      labels_N: int[N], their classes.
      classes: number of classes.
      decay: weight decay.
      validation: vectors and labels for early stopping; None: 5 % of the samples, at random.

    Returns:
      The best validation accuracy, and the layer that reached it.
    """
    import torch

    from cpt_jax.evals.fit.senteval_probe import (
        BATCH,
        EPOCHS_PER_CHECK,
        MAX_CHECKS,
        SEED,
        TENACITY,
        VALIDATION_FRACTION,
    )

    generator = np.random.RandomState(SEED)
    torch.manual_seed(SEED)
    layer = torch.nn.Linear(x_NxD.shape[1], classes)
    adam = torch.optim.Adam(layer.parameters(), lr=1e-3, weight_decay=float(decay))
    if validation is None:
        order = generator.permutation(len(x_NxD))
        count = int(VALIDATION_FRACTION * len(x_NxD))
        validation = x_NxD[order[:count]], labels_N[order[:count]]
        x_NxD, labels_N = x_NxD[order[count:]], labels_N[order[count:]]
    x, labels = _tensors(x_NxD, labels_N)
    held_out = _tensors(*validation)
    best = -1.0
    best_layer = layer
    misses = 0
    for _ in range(MAX_CHECKS):
        for _ in range(EPOCHS_PER_CHECK):
            order = torch.from_numpy(generator.permutation(len(x)))
            for start in range(0, len(x), BATCH):
                rows = order[start : start + BATCH]
                loss = torch.nn.functional.cross_entropy(
                    layer(x.index_select(0, rows)), labels.index_select(0, rows)
                )
                adam.zero_grad()
                loss.backward()
                adam.step()
        accuracy = _torch_accuracy(layer, *held_out)
        if accuracy > best:
            best, best_layer = accuracy, copy.deepcopy(layer)
        else:
            misses += 1
            if misses > TENACITY:
                break
    return best, best_layer


def _tensors(x_NxD, labels_N):
    import torch

    x = torch.from_numpy(np.ascontiguousarray(x_NxD))
    return x, torch.from_numpy(labels_N.astype(np.int64))


def _torch_accuracy(layer, x, labels) -> float:
    import torch

    with torch.no_grad():
        return float((layer(x).argmax(1) == labels).double().mean())


if __name__ == '__main__':
    # Flags are defined here because tests import this module.
    _VECTORS = flags.DEFINE_string(
        'vectors',
        '',
        'An .npz file with <task>_x, <task>_labels and <task>_part. Default: random vectors.',
    )
    _TASKS = flags.DEFINE_list('tasks', ['MR', 'SST2'], 'Tasks: MR, SST2.')
    _OUTER = flags.DEFINE_integer(
        'outer', 1, 'Number of outer folds of MR (of ten).', lower_bound=1, upper_bound=10
    )
    _JSON = flags.DEFINE_string('json', '', 'Also write the results to this file.')
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    run_program(main)

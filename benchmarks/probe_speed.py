"""Seconds of SentEval's linear probe: ours, all folds and weight decays as one program, beside its
own loop in torch.

Example:
  python benchmarks/probe_speed.py --vectors vectors.npz --outer 1 --json probe_speed.json

MR: nested folds, of which both sides do the first --outer; SST2: four weight decays, chosen on the
development set. Without --vectors the samples are drawn at random, in the numbers of the tasks and
of width 384. A compilation is not counted: it is kept for later runs. `ratio` in the JSON is
torch's seconds over ours, for each task; `accuracy` is that of both, the same folds tested.
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
    """Both sides on the same samples and folds."""
    samples = read_samples(name, vectors) if vectors else drawn_samples(SIZES[name])
    turns, classes = probe.make_turns(samples, probe.FOLDS)[:outer], len(LAYOUTS[name].classes)
    seconds, accuracy = {}, {}
    probe.probe_as_senteval(samples, turns, classes)  # compiles
    start = time.perf_counter()
    predicted = probe.probe_as_senteval(samples, turns, classes).predicted
    seconds['ours'] = time.perf_counter() - start
    accuracy['ours'] = float(
        np.mean(
            [
                np.mean(one == samples.labels_N[turn.test])
                for one, turn in zip(predicted, turns, strict=True)
            ]
        )
    )
    start = time.perf_counter()
    accuracy['torch'] = float(np.mean(torch_probe(samples, turns, classes)))
    seconds['torch'] = time.perf_counter() - start
    fits = sum(4 * len(turn.inner) + 1 for turn in turns)
    return {
        'ratio': seconds['torch'] / seconds['ours'],
        'seconds': seconds,
        'accuracy': accuracy,
        'fits': fits,
    }


def read_samples(name: str, path: str) -> probe.Samples:
    """Arrays <name>_x, <name>_labels and <name>_part of an .npz file."""
    with np.load(path) as arrays:
        return probe.Samples(*(arrays[f'{name}_{field}'] for field in ('x', 'labels', 'part')))


def drawn_samples(sizes: dict[str, int], width: int = 384) -> probe.Samples:
    """Unit vectors of two classes, of which a linear classifier gets about 80 % right."""
    rng, total = np.random.default_rng(0), sum(sizes.values())
    labels_N = np.arange(total) % 2
    x_NxD = rng.standard_normal((total, width), np.float32)
    x_NxD[:, :50] += 0.12 * (2 * labels_N[:, None] - 1)
    x_NxD /= np.linalg.norm(x_NxD, axis=1, keepdims=True)
    return probe.Samples(x_NxD, labels_N, np.repeat([*sizes], [*sizes.values()]))


def torch_probe(samples: probe.Samples, turns: list[probe.Turn], classes: int) -> list[float]:
    """Accuracy of each turn, fit after fit, as SentEval's validation.py describes it."""
    from cpt_jax.evals.fit.senteval_probe import DECAYS

    x_NxD, labels_N, _ = samples
    scores = []
    for turn in turns:
        means = []
        for decay in DECAYS:
            fits = [
                torch_fit(x_NxD[a], labels_N[a], classes, decay, (x_NxD[b], labels_N[b]))
                for a, b in turn.inner
            ]
            means.append(round(100 * np.mean([best for best, _ in fits]), 2))
        decay, (_, only) = DECAYS[int(np.argmax(means))], turn.inner[0]
        validation = None if len(turn.inner) > 1 else (x_NxD[only], labels_N[only])
        _, layer = torch_fit(x_NxD[turn.train], labels_N[turn.train], classes, decay, validation)
        scores.append(_torch_accuracy(layer, *_tensors(x_NxD[turn.test], labels_N[turn.test])))
    return scores


def torch_fit(x_NxD, labels_N, classes, decay, validation=None):
    """One fit: (best accuracy of a check, its layer). Without `validation` 5 % of the samples are
    drawn for it.
    """
    import torch

    from cpt_jax.evals.fit.senteval_probe import BATCH, CHECKS, PASSES, SEED, TENACITY, VALIDATION

    generator = np.random.RandomState(SEED)
    torch.manual_seed(SEED)
    layer = torch.nn.Linear(x_NxD.shape[1], classes)
    adam = torch.optim.Adam(layer.parameters(), lr=1e-3, weight_decay=float(decay))
    if validation is None:
        order, count = generator.permutation(len(x_NxD)), int(VALIDATION * len(x_NxD))
        validation = x_NxD[order[:count]], labels_N[order[:count]]
        x_NxD, labels_N = x_NxD[order[count:]], labels_N[order[count:]]
    x, labels = _tensors(x_NxD, labels_N)
    held_out = _tensors(*validation)
    best, best_layer, misses = -1.0, layer, 0
    for _ in range(CHECKS):
        for _ in range(PASSES):
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

    return torch.from_numpy(np.ascontiguousarray(x_NxD)), torch.from_numpy(
        labels_N.astype(np.int64)
    )


def _torch_accuracy(layer, x, labels) -> float:
    import torch

    with torch.no_grad():
        return float((layer(x).argmax(1) == labels).double().mean())


if __name__ == '__main__':
    # Here, as the tests import this program.
    _VECTORS = flags.DEFINE_string(
        'vectors',
        '',
        'An .npz file with <task>_x, <task>_labels and <task>_part; drawn at random without.',
    )
    _TASKS = flags.DEFINE_list('tasks', ['MR', 'SST2'], 'Of MR and SST2.')
    _OUTER = flags.DEFINE_integer(
        'outer', 1, 'Outer folds of MR, of ten.', lower_bound=1, upper_bound=10
    )
    _JSON = flags.DEFINE_string('json', '', 'Also write the figures to this file.')
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    run_program(main)

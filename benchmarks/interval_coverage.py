"""Measures how often the 95 % bootstrap intervals of evaluation cover the true score.

Samples are drawn from populations whose true score is known, and the interval of each sample is
computed as in results.json. The populations are

- mean: nDCG@10 of queries with one relevant document; 37 % of them score 0 and 44 % score 1;
- difference: the paired difference of two models on such queries, which agree on most of them;
- spearman: cosines and human scores (0 to 5 in steps of 0.2) with a correlation near 0.8.

Example:
  python benchmarks/interval_coverage.py --items 300 --samples 2000 --json coverage.json
"""

import json
import os
from pathlib import Path

import numpy as np
import scipy.stats
from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.evals.intervals.bootstrap import (
    DRAWS,
    SEED,
    compute_interval,
    draw_correlations,
    draw_means,
)

KINDS = 'mean', 'difference', 'spearman'
POPULATION = 1_000_000


def main() -> None:
    rows = []
    for kind in KINDS:
        for items in map(int, _ITEMS.value):
            coverage = measure_coverage(kind, items, _SAMPLES.value)
            error = (coverage * (1 - coverage) / _SAMPLES.value) ** 0.5
            rows.append({'score': kind, 'items': items, 'coverage': coverage, 'error': error})
            print(f'{kind:10s} {items:6,} items: {coverage:.2%} +- {error:.2%}', flush=True)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(rows, indent=2) + '\n')


def draw_ndcg(generator: np.random.Generator, count: int) -> np.ndarray:
    """Returns the nDCG@10 of queries with one relevant document at a random rank."""
    ranks = np.array([1, 2, 3, 5, 8, 10])
    gains = np.append(1 / np.log2(ranks + 1), 0)
    return generator.choice(gains, count, p=[0.44, 0.07, 0.04, 0.03, 0.03, 0.02, 0.37])


def draw_items(kind: str, generator: np.random.Generator, count: int) -> np.ndarray:
    """Returns items of a population, float64 [count, 2]: two models, or cosine and human score."""
    if kind == 'spearman':
        latent = generator.standard_normal(count)
        gold = np.clip(np.round((2.5 + 1.5 * latent) * 5) / 5, 0, 5)
        return np.stack([latent + 0.7 * generator.standard_normal(count), gold], axis=1)
    first = draw_ndcg(generator, count)
    second = np.where(generator.random(count) < 0.7, first, draw_ndcg(generator, count))
    return np.stack([first, np.maximum(second, 0.9 * first)], axis=1)


def compute_score(kind: str, items_Nx2: np.ndarray) -> float:
    """Returns the score of a population or sample."""
    if kind == 'spearman':
        return float(scipy.stats.spearmanr(*items_Nx2.T).statistic)
    means = items_Nx2.mean(axis=0)
    return float(means[0] if kind == 'mean' else means[1] - means[0])


def draw_scores(kind: str, items_Nx2: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Returns the scores of the bootstrap, float64 [draws], as evaluation draws them."""
    if kind == 'spearman':
        return draw_correlations(*items_Nx2.T, draws=draws, seed=seed)[:, 0]
    means_Dx2 = draw_means(items_Nx2, draws, seed)
    return means_Dx2[:, 0] if kind == 'mean' else means_Dx2[:, 1] - means_Dx2[:, 0]


def measure_coverage(kind: str, items: int, samples: int, draws: int = DRAWS) -> float:
    """Returns the fraction of samples whose interval covers the true score."""
    generator = np.random.default_rng(SEED)
    truth = compute_score(kind, draw_items(kind, generator, POPULATION))
    covered = 0
    for sample in range(samples):
        drawn = draw_scores(kind, draw_items(kind, generator, items), draws, seed=sample)
        low, high = compute_interval(drawn)
        covered += low <= truth <= high
    return covered / samples


if __name__ == '__main__':
    # Flags are defined here because tests import this module.
    _ITEMS = flags.DEFINE_multi_string('items', ['300'], 'Queries or pairs of a sample.')
    _SAMPLES = flags.DEFINE_integer('samples', 2_000, 'Samples, each with its interval.')
    _JSON = flags.DEFINE_string('json', '', 'Also write the results to this file.')
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    run_program(main)

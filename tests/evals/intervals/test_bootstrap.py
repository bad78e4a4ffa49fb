import numpy as np
import pytest
import scipy.stats

from cpt_jax.evals.intervals import bootstrap
from cpt_jax.evals.intervals.bootstrap import compute_interval, draw_correlations, draw_means


def resample(items: int, draws: int, seed: int) -> np.ndarray:
    """Returns int [draws, items]: the counts of `bootstrap`, from their definition."""
    generator = np.random.default_rng(seed)
    return np.stack(
        [np.bincount(generator.integers(0, items, items), minlength=items) for _ in range(draws)]
    )


def test_draws_equal_scipy_on_explicit_resamples(monkeypatch):
    monkeypatch.setattr(bootstrap, '_ITEMS_AT_ONCE', 100)  # several blocks
    rng = np.random.default_rng(0)
    x_N = rng.integers(0, 9, 40).astype(np.float32)  # many ties
    y_N = x_N / 3 + rng.integers(0, 4, 40)
    means_DxM = draw_means(np.stack([x_N, y_N], axis=1), draws=7, seed=3)
    correlations_Dx2 = draw_correlations(x_N, y_N, draws=7, seed=3)
    for counts_N, means_M, found in zip(
        resample(40, 7, seed=3), means_DxM, correlations_Dx2, strict=True
    ):
        drawn_x, drawn_y = np.repeat(x_N, counts_N).astype(np.float64), np.repeat(y_N, counts_N)
        assert means_M == pytest.approx([drawn_x.mean(), drawn_y.mean()])
        spearman = scipy.stats.spearmanr(drawn_x, drawn_y).statistic
        pearson = scipy.stats.pearsonr(drawn_x, drawn_y).statistic
        assert found == pytest.approx([spearman, pearson], abs=1e-12)


def test_equal_values_have_the_correlation_0():
    assert not draw_correlations(np.full(9, 0.1, np.float32), np.arange(9.0), draws=20).any()


def test_interval_holds_the_middle_of_the_draws():
    assert compute_interval(np.arange(1001.0)) == pytest.approx((25, 975))


@pytest.mark.parametrize('kind', ['mean', 'difference', 'spearman'])
def test_95_percent_intervals_cover_the_true_score(kind):
    """400 samples of 300 items; the coverage of that many has a standard error of 1.1 %.

    benchmarks/interval_coverage.py has 4,000 samples.
    """
    from benchmarks.interval_coverage import measure_coverage

    assert 0.925 < measure_coverage(kind, items=300, samples=400, draws=400) < 0.975

"""Intervals and tests against scipy and closed forms."""

import numpy as np
import pytest
from scipy import stats

from ccl_jax.evaluation import statistics
from ccl_jax.evaluation.results import ratio_metric


def single(values):
    return ratio_metric(np.asarray(values, float), np.arange(len(values)), total=len(values))


def intervals(metrics, **options):
    draws = statistics.bootstrap(metrics, **options)
    return [
        statistics.interval(metric.value, row) for metric, row in zip(metrics, draws, strict=True)
    ]


@pytest.fixture
def outcomes():
    """Two models on 300 items: 66 % and 58 %, correlated."""
    rng = np.random.default_rng(0)
    skill = rng.normal(size=300)
    return [(skill + 0.7 * rng.normal(size=300) > x).astype(float) for x in (-0.5, -0.25)]


def test_interval_agrees_with_scipy(outcomes):
    (found,) = intervals([single(outcomes[0])], resamples=8000)
    scipy = stats.bootstrap(
        (outcomes[0],), np.mean, method="percentile", n_resamples=8000, rng=1
    ).confidence_interval
    assert found.value == pytest.approx(100 * outcomes[0].mean())
    assert found.low == pytest.approx(100 * scipy.low, abs=0.7)
    assert found.high == pytest.approx(100 * scipy.high, abs=0.7)
    normal = 100 * 1.96 * np.sqrt(outcomes[0].var() / 300)
    assert (found.high - found.low) / 2 == pytest.approx(normal, rel=0.06)


def test_items_of_one_cluster_are_not_independent(outcomes):
    """Every item five times over in its cluster says no more than once."""
    once = single(outcomes[0])
    clusters = np.repeat(np.arange(300), 5)
    five = ratio_metric(np.repeat(outcomes[0], 5), clusters, total=1500)
    apart = single(np.repeat(outcomes[0], 5))
    width = {
        name: found.high - found.low
        for name, metric in (("once", once), ("five", five), ("apart", apart))
        for found in intervals([metric], resamples=3000)
    }
    assert width["five"] == pytest.approx(width["once"])
    assert width["apart"] == pytest.approx(width["once"] / np.sqrt(5), rel=0.08)


def test_intervals_of_extremes():
    low, high = intervals([single(np.zeros(40)), single(np.ones(40))])
    assert (low.value, low.low, low.high) == (0, 0, 0)
    assert (high.value, high.low, high.high) == (100, 100, 100)
    (nothing,) = intervals([single([np.nan])])
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()


def test_difference_agrees_with_scipy(outcomes):
    metrics = list(map(single, outcomes))
    draws = tuple(statistics.bootstrap(metrics, resamples=8000))
    found = statistics.compare(*metrics, draws=draws)
    paired = outcomes[1] - outcomes[0]
    scipy = stats.bootstrap(
        (paired,), np.mean, method="percentile", n_resamples=8000, rng=1
    ).confidence_interval
    assert found.difference == pytest.approx(100 * paired.mean())
    assert found.low == pytest.approx(100 * scipy.low, abs=0.7)
    assert found.high == pytest.approx(100 * scipy.high, abs=0.7)


def test_p_value_is_mcnemars_exact_test(outcomes):
    """With single items, swapping outcomes at random is a fair coin over the discordant ones."""
    found = statistics.compare(*map(single, outcomes), permutations=40_000)
    better, worse = (outcomes[1] > outcomes[0]).sum(), (outcomes[1] < outcomes[0]).sum()
    exact = stats.binomtest(int(better), int(better + worse)).pvalue
    assert 0.001 < exact < 0.5  # so that the comparison says something
    assert found.p_value == pytest.approx(exact, rel=0.1, abs=0.003)


def test_p_value_is_uniform_or_larger_where_there_is_no_difference():
    rng = np.random.default_rng(3)
    values = []
    for seed in range(200):
        a, b = rng.random((2, 60)) < 0.5
        compared = statistics.compare(
            single(a), single(b), draws=(np.zeros(2), np.zeros(2)), permutations=199, seed=seed
        )
        values.append(compared.p_value)
    assert np.mean(np.array(values) <= 0.1) < 0.17


def test_macro_metrics_are_compared_by_cluster(outcomes):
    clusters = np.arange(300) // 3
    parts = np.where(np.arange(300) < 60, "small", "large")
    metrics = [ratio_metric(x, clusters, total=300, parts=parts) for x in outcomes]
    found = statistics.compare(*metrics, permutations=2000)
    means = [(x[:60].mean() + x[60:].mean()) / 2 for x in outcomes]
    assert found.difference == pytest.approx(100 * (means[1] - means[0]))
    assert found.low < found.difference < found.high
    # By hand: the same swaps in a plain loop.
    rng, count = np.random.default_rng(9), 0
    for _ in range(2000):
        flip = np.repeat(rng.random(100) < 0.5, 3)
        a, b = np.where(flip, outcomes[1], outcomes[0]), np.where(flip, outcomes[0], outcomes[1])
        moved = [(x[:60].mean() + x[60:].mean()) / 2 for x in (a, b)]
        count += abs(moved[1] - moved[0]) >= abs(means[1] - means[0]) - 1e-12
    assert found.p_value == pytest.approx(count / 2000, rel=0.15, abs=0.01)


def test_equal_models_have_no_difference(outcomes):
    found = statistics.compare(single(outcomes[0]), single(outcomes[0]))
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_other_items_are_refused(outcomes):
    with pytest.raises(ValueError, match="same items"):
        statistics.compare(single(outcomes[0]), single(outcomes[1][:-1]))


def test_holm_by_hand():
    adjusted = statistics.holm([0.04, 0.01, np.nan, 0.03])
    np.testing.assert_allclose(adjusted, [0.06, 0.03, np.nan, 0.06])
    np.testing.assert_allclose(statistics.holm([0.9, 0.8]), [1, 1])
    assert statistics.holm([]).shape == (0,)

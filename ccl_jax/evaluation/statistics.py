"""Intervals and tests for metrics that are ratios of sums over clusters, in plain NumPy.

Items that share an image are not independent, so whole clusters are resampled: the cluster
bootstrap (Field and Welsh, 2007) with percentile intervals, and paired randomisation (Fisher, 1935;
Noreen, 1989) that swaps the two models' outcomes cluster by cluster.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from ccl_jax.evaluation.results import Metric, combine

# Draws held in memory at once.
_BLOCK = 1 << 22


@dataclasses.dataclass(frozen=True)
class Interval:
    """A percentage and where it may lie.

    Attributes:
      value: of the items at hand.
      low: lower end of the interval.
      high: upper end.
    """

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The second model against the first, on the same items.

    Attributes:
      difference: second minus first, in percentage points.
      low: lower end of the interval of the difference.
      high: upper end.
      p_value: two-sided, of no difference between the models.
    """

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap(metrics: Sequence[Metric], *, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """Values of metrics on resampled clusters.

    Metrics of equal number of clusters, such as those of two models on the same items, are
    resampled together: their draws are paired.

    Args:
      metrics: of any number of clusters.
      resamples: number of bootstrap samples.
      seed: of the draws.

    Returns:
      float64 (metrics, resamples) percentages; NaN where nothing counts.
    """
    found = np.full((len(metrics), resamples), np.nan)
    for clusters in {len(metric.sums) for metric in metrics} - {0}:
        chosen = [k for k, metric in enumerate(metrics) if len(metric.sums) == clusters]
        rng = np.random.default_rng(seed)
        for rows in _blocks(resamples, clusters):
            drawn = rng.integers(clusters, size=(len(rows), clusters))
            drawn += clusters * np.arange(len(rows))[:, None]
            times = np.bincount(drawn.ravel(), minlength=len(rows) * clusters)
            times = times.reshape(len(rows), clusters).astype(np.float64)
            for k in chosen:
                metric = metrics[k]
                found[k, rows.start : rows.stop] = combine(
                    times @ metric.sums, times @ metric.counts, metric.weights
                )
    return found


def interval(value: float, draws: np.ndarray, *, level: float = 0.95) -> Interval:
    """The percentile interval of a value, from its draws of `bootstrap`.

    Args:
      value: of the items at hand.
      draws: (resamples,); NaN among them are left out.
      level: probability that the interval is to hold.

    Returns:
      The interval; NaN ends where every draw is NaN.
    """
    draws = draws[~np.isnan(draws)]
    if not draws.size:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def compare(
    first: Metric,
    second: Metric,
    *,
    draws: tuple[np.ndarray, np.ndarray] | None = None,
    level: float = 0.95,
    permutations: int = 5000,
    seed: int = 0,
) -> Comparison:
    """Paired comparison of one metric of two models.

    Args:
      first: of the first model.
      second: of the second, on the same items, so with the same clusters and parts.
      draws: of both, from one call of `bootstrap`, where they are at hand.
      level: probability that the interval is to hold.
      permutations: random swaps behind the p-value, which is at least 1 / (permutations + 1).
      seed: of the draws.

    Raises:
      ValueError: metrics of other shapes, which are not about the same items.
    """
    if first.sums.shape != second.sums.shape:
        raise ValueError(
            f"metrics of {first.sums.shape} and {second.sums.shape} clusters and parts are not of "
            "the same items; evaluate both models on the same data"
        )
    one, two = bootstrap([first, second], seed=seed) if draws is None else draws
    found = interval(second.value - first.value, two - one, level=level)
    p_value = _randomisation(first, second, permutations, seed)
    return Comparison(found.value, found.low, found.high, p_value)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's (1979) step-down adjustment of p-values for their number; NaN stays NaN."""
    p = np.asarray(p_values, np.float64)
    adjusted = np.full(p.shape, np.nan)
    order = np.argsort(p)  # NaN comes last
    count = int((~np.isnan(p)).sum())
    highest = 0.0
    for rank, index in enumerate(order[:count]):
        highest = max(highest, min(1.0, (count - rank) * p[index]))
        adjusted[index] = highest
    return adjusted


def _randomisation(first: Metric, second: Metric, permutations: int, seed: int) -> float:
    """Share of random swaps with a difference at least as large as the one observed."""
    clusters = len(first.sums)
    observed = abs(second.value - first.value)
    if not clusters or np.isnan(observed):
        return float("nan")
    # A cluster with the same numbers in both cannot change the difference.
    moves = ((first.sums != second.sums) | (first.counts != second.counts)).any(axis=1)
    rng = np.random.default_rng((seed, 1))
    step = [b[moves] - a[moves] for a, b in _pairs(first, second)]
    total = [(a.sum(axis=0), b.sum(axis=0)) for a, b in _pairs(first, second)]
    hits = 0
    for rows in _blocks(permutations, max(1, int(moves.sum()))):
        swapped = rng.integers(2, size=(len(rows), int(moves.sum()))).astype(np.float64)
        moved = [swapped @ part for part in step]
        one = combine(*(a + m for (a, _), m in zip(total, moved, strict=True)), first.weights)
        two = combine(*(b - m for (_, b), m in zip(total, moved, strict=True)), second.weights)
        # Not less than the rounding of sums in another order.
        hits += int((np.abs(two - one) >= observed - 1e-9).sum())
    return (1 + hits) / (1 + permutations)


def _pairs(first: Metric, second: Metric):
    return (first.sums, second.sums), (first.counts, second.counts)


def _blocks(total: int, width: int) -> Iterator[range]:
    step = max(1, _BLOCK // width)
    for start in range(0, total, step):
        yield range(start, min(start + step, total))

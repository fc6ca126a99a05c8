"""Metrics as ratios of sums over clusters."""

import numpy as np
import pytest

from ccl_jax.evaluation.results import Metric, SuiteResult, combine, ratio_metric


def test_mean_over_items_whatever_the_clusters():
    values = np.array([1, 0, 0, 1, 1], float)
    for clusters in ([0, 1, 2, 3, 4], [0, 0, 0, 0, 0], [2, 0, 2, 1, 1]):
        metric = ratio_metric(values, np.array(clusters), total=10)
        assert metric.value == pytest.approx(60)
        assert (metric.items, metric.total, metric.coverage) == (5, 10, 0.5)


def test_macro_is_the_mean_of_the_parts_means():
    values = np.array([1, 0, 0, 0, 1, 1], float)
    parts = ["a", "a", "a", "a", "b", "b"]
    clusters = np.array([0, 1, 0, 1, 0, 1])
    assert ratio_metric(values, clusters, total=6, parts=parts).value == pytest.approx(62.5)
    weights = {"a": 3.0, "b": 1.0}
    weighted = ratio_metric(values, clusters, total=6, parts=parts, weights=weights)
    assert weighted.value == pytest.approx((3 * 25 + 100) / 4)


def test_items_that_do_not_count_change_nothing():
    values = np.array([1, np.nan, 0, np.nan])
    metric = ratio_metric(values, np.arange(4), total=4, parts=["a", "b", "a", "c"])
    assert metric.value == 50 and metric.items == 2


def test_nothing_counts():
    metric = ratio_metric(np.array([np.nan]), np.array([0]), total=3)
    assert np.isnan(metric.value) and metric.coverage == 0
    assert np.isnan(ratio_metric(np.zeros(0), np.zeros(0, int), total=3).value)


def test_a_mean_iou_is_the_same_structure():
    hits, unions = np.array([[4, 0], [2, 3]]), np.array([[8, 1], [4, 5]])
    metric = Metric(hits, unions, items=2, total=2)
    assert metric.value == pytest.approx(100 * (6 / 12 + 3 / 6) / 2)
    # A class that a resample does not show is left out of its mean.
    assert combine(hits[0], unions[0] * [1, 0], None) == pytest.approx(50)


def test_rows_for_a_table():
    class Found:
        metrics = {"m": ratio_metric(np.array([1.0, 0.0]), np.arange(2), total=2)}

    result = SuiteResult(("a", "b"), {"x": {"a": Found()}}, {}, {})
    assert result.rows() == {"a": {"x/m": 50.0}, "b": {}}

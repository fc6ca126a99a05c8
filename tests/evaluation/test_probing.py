"""Logistic regression against its optimality conditions, and probes on made-up clusters."""

import numpy as np
import pytest
from scipy import optimize

from ccl_jax.evaluation import probing


@pytest.fixture(scope="module")
def clusters():
    """Three noisy clusters in five dimensions, 90 to train and 60 to test."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 5))
    labels = np.arange(150) % 3
    rows = centres[labels] + 0.6 * rng.normal(size=(150, 5))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return rows[:90], labels[:90], rows[90:], labels[90:]


def objective(flat, x, y, classes, strength):
    """The documented objective, written out item by item."""
    weights = flat.reshape(x.shape[1] + 1, classes)
    total = 0.5 * (weights[:-1] ** 2).sum()
    for row, label in zip(x, y, strict=True):
        logits = row @ weights[:-1] + weights[-1]
        total += strength * (np.log(np.exp(logits).sum()) - logits[label])
    return total


@pytest.mark.parametrize("strength", [0.316, 30.0])
def test_the_minimum_is_that_of_another_method(clusters, strength):
    x, y = clusters[0][:30].astype(np.float64), clusters[1][:30]
    arguments = (x, y, 3, strength)
    weights = probing.fit(x, y, 3, strength)
    other = optimize.minimize(objective, np.zeros(18), arguments, method="BFGS")
    assert objective(weights.ravel(), *arguments) == pytest.approx(other.fun, rel=1e-5)
    expected = other.x.reshape(6, 3)
    np.testing.assert_allclose(weights[:-1], expected[:-1], atol=2e-2 * np.abs(expected).max())


def test_right_is_strict():
    weights = np.zeros((3, 4))
    assert not probing.right(weights, np.ones((5, 2), np.float32), np.arange(5) % 4).any()
    weights[:, 2] = 1
    np.testing.assert_array_equal(
        probing.right(weights, np.ones((2, 2), np.float32), np.array([2, 1])), [1, 0]
    )


def test_probe_learns_and_chooses_c(clusters):
    outcome, strength = probing.probe(*clusters, 3, sweep=(1e-6, 10.0))
    assert outcome.shape == (60,) and set(outcome) <= {0.0, 1.0}
    assert outcome.mean() > 0.7 and strength == 10.0
    again, _ = probing.probe(*clusters, 3, sweep=(1e-6, 10.0))
    np.testing.assert_array_equal(outcome, again)


def test_few_shots_take_so_many_of_each_class(clusters, monkeypatch):
    seen = []
    fit = probing.fit
    monkeypatch.setattr(
        probing,
        "fit",
        lambda x, y, *rest, **kw: seen.append(np.bincount(y)) or fit(x, y, *rest, **kw),
    )
    found = probing.few_shot(*clusters, 3, shots=4, seeds=(0, 1))
    assert [counts.tolist() for counts in seen] == [[4, 4, 4]] * 2
    assert set(found) <= {0, 0.5, 1}


@pytest.mark.parametrize(
    ("labels", "strength", "message"),
    [([0, 3], 1.0, "labels"), ([0], 1.0, "labels"), ([0, 1], 0.0, "C must be")],
)
def test_bad_arguments(labels, strength, message):
    with pytest.raises(ValueError, match=message):
        probing.fit(np.ones((2, 2), np.float32), np.array(labels), 3, strength)

"""Linear probes: logistic regression on frozen embeddings, and few-shot draws of it."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from ccl_jax.evaluation.scoring import check_embeddings

# C of the authors' example of a linear probe on CLIP (README of github.com/openai/CLIP).
DEFAULT_C = 0.316
_SWEEP = tuple(10.0**k for k in range(-2, 4))
_HELD_OUT = 0.2
_ITERATIONS = 1000


def fit(
    embeddings: np.ndarray,
    labels: np.ndarray,
    classes: int,
    strength: float,
    *,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """Multinomial logistic regression with L2 regularisation, fitted by L-BFGS.

    Minimises |W|^2 / 2 + C * sum_i -log softmax(W x_i + b)_{y_i}, the objective of scikit-learn's
    `LogisticRegression(C=C)`; the intercept b is not regularised.

    Args:
      embeddings: float (n, d).
      labels: int (n,) in [0, classes).
      classes: number of classes; one without an example is only ever pushed away.
      strength: C.
      start: where to begin, of the shape of the result; zeros if None.

    Returns:
      float64 (d + 1, classes): W transposed, the intercept as the last row.

    Raises:
      ValueError: ill-shaped arrays, a label out of range, or C not positive.
    """
    from scipy import optimize  # slow to import, and needed here alone

    check_embeddings(embeddings=embeddings)
    labels = np.asarray(labels)
    if labels.shape != (len(embeddings),) or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must be ({len(embeddings)},) in [0, {classes})")
    if not strength > 0:
        raise ValueError(f"C must be positive; got {strength}")
    shape = (embeddings.shape[1] + 1, classes)
    # Divided by C n, so that the tolerances mean the same for every set and C.
    decay = 1 / (strength * len(labels))
    x, y = jnp.asarray(embeddings, jnp.float32), jnp.asarray(labels)

    def evaluate(flat):
        value, gradient = _loss_and_gradient(
            jnp.asarray(flat.reshape(shape), jnp.float32), x, y, decay
        )
        return float(value), np.asarray(gradient, np.float64).ravel()

    found = optimize.minimize(
        evaluate,
        (np.zeros(shape) if start is None else start).ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": _ITERATIONS, "gtol": 1e-6, "ftol": 1e-9},
    )
    if found.nit >= _ITERATIONS:
        logging.warning("The probe with C = %g stopped at %d iterations", strength, _ITERATIONS)
    return found.x.reshape(shape)


@jax.jit
def _loss_and_gradient(weights, x, y, decay):
    def loss(weights):
        logits = x @ weights[:-1] + weights[-1]
        data = -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1).mean()
        return data + decay * 0.5 * (weights[:-1] ** 2).sum()

    return jax.value_and_grad(loss)(weights)


def right(weights: np.ndarray, embeddings: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,) float64: 1 where the right class scores strictly highest, else 0."""
    logits = embeddings.astype(np.float64) @ weights[:-1] + weights[-1]
    rows = np.arange(len(labels))
    own = logits[rows, labels]
    logits[rows, labels] = -np.inf
    return (own > logits.max(axis=1)).astype(np.float64)


def probe(
    train_emb: np.ndarray,
    train_labels: np.ndarray,
    test_emb: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
    *,
    sweep: Sequence[float] = _SWEEP,
    seed: int = 0,
) -> tuple[np.ndarray, float]:
    """A probe on all training images, with the C that does best on a fifth of them held out.

    Args:
      train_emb: float (n, d).
      train_labels: int (n,).
      test_emb: float (m, d).
      test_labels: int (m,).
      classes: number of classes.
      sweep: values of C to choose from; the smallest of equals is taken.
      seed: of the choice of images held out, which takes the same share of every class.

    Returns:
      ((m,) of 1 or 0 for right or wrong, the chosen C).
    """
    held = _held_out(train_labels, seed)
    best, chosen, weights = -1.0, DEFAULT_C, None
    if held.any() and not held.all():
        for strength in sorted(sweep):
            # From the last minimum it is not far to the next.
            weights = fit(train_emb[~held], train_labels[~held], classes, strength, start=weights)
            share = float(right(weights, train_emb[held], train_labels[held]).mean())
            if share > best:
                best, chosen = share, strength
    weights = fit(train_emb, train_labels, classes, chosen)
    return right(weights, test_emb, test_labels), float(chosen)


def few_shot(
    train_emb: np.ndarray,
    train_labels: np.ndarray,
    test_emb: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
    *,
    shots: int,
    seeds: Sequence[int] = (0, 1, 2),
    strength: float = DEFAULT_C,
) -> np.ndarray:
    """Probes on a few random images of each class.

    Args:
      train_emb: float (n, d).
      train_labels: int (n,).
      test_emb: float (m, d).
      test_labels: int (m,).
      classes: number of classes.
      shots: training images of each class; fewer where a class has fewer.
      seeds: one draw each.
      strength: C.

    Returns:
      (m,) share of the draws in which each test image is right.
    """
    found = []
    for seed in seeds:
        rng = np.random.default_rng([seed, shots])
        chosen = np.concatenate(
            [
                rng.permutation(np.flatnonzero(train_labels == label))[:shots]
                for label in range(classes)
            ]
        )
        weights = fit(train_emb[chosen], train_labels[chosen], classes, strength)
        found.append(right(weights, test_emb, test_labels))
    return np.mean(found, axis=0)


def _held_out(labels: np.ndarray, seed: int) -> np.ndarray:
    """(n,) bool: a fifth of each class."""
    rng = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        held[rows[: int(_HELD_OUT * len(rows))]] = True
    return held

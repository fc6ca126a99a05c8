"""Cosine scores and strict comparisons, shared by the metrics."""

import numpy as np


def cosine_scores(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Scores of every row of `left` (m, d) with every row of `right` (n, d): f32 (m, n).

    Equal pairs of rows get equal scores. A float32 matrix product does not promise that (its
    last columns may be summed in another order), and strict comparisons would then see
    winners among ties; so the product is taken in float64 and rounded to float32.
    """
    return (left.astype(np.float64) @ right.astype(np.float64).T).astype(np.float32)


def paired_scores(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Scores of the rows of `left` (n, d) with the same rows of `right` (n, d): f32 (n,)."""
    return np.einsum("nd,nd->n", left.astype(np.float64), right.astype(np.float64)).astype(
        np.float32
    )


def unbeaten_count(best: np.ndarray, scores: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Counts the wrong candidates that do not score strictly below the right one.

    A tie counts against the model, and so does a NaN on either side.

    Args:
      best: (m,) score of the right candidate of each query.
      scores: (m, n) score of every candidate.
      wrong: (m, n) bool, true for the candidates that compete with it.

    Returns:
      int64 (m,); the right candidate is within the top k where it is below k.
    """
    return (~(scores < best[:, None]) & wrong).sum(axis=1)


def check_embeddings(**embeddings: np.ndarray) -> None:
    """Checks that named arrays are (n, d) with n >= 1 and one common d.

    Raises:
      ValueError: naming the array at fault.
    """
    widths = {}
    for name, array in embeddings.items():
        if array.ndim != 2 or not array.size:
            raise ValueError(
                f"{name} must be a non-empty array of shape (n, d); got shape {array.shape}"
            )
        widths[name] = array.shape[1]
    if len(set(widths.values())) > 1:
        raise ValueError(f"embeddings must share one width d; got {widths}")

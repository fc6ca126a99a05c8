"""Cosine scores and strict comparisons, shared by the metrics."""

import numpy as np

# Pairs taken to float64 at once.
_ROWS = 4096


def cosine_scores(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Scores of every row of `left` (m, d) with every row of `right` (n, d): f32 (m, n).

    Equal pairs of rows get equal scores. A float32 matrix product does not promise that (its
    last columns may be summed in another order), and strict comparisons would then see
    winners among ties; so the product is taken in float64 and rounded to float32.
    """
    return (left.astype(np.float64) @ right.astype(np.float64).T).astype(np.float32)


def paired_scores(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Scores of the rows of `left` (n, d) with the same rows of `right` (n, d): f32 (n,)."""
    found = np.empty(len(left), np.float32)
    for i in range(0, len(left), _ROWS):
        rows = slice(i, i + _ROWS)
        found[rows] = np.einsum(
            "nd,nd->n", left[rows].astype(np.float64), right[rows].astype(np.float64)
        )
    return found


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


class NearTies:
    """Compares scores of many pairs as if all were exact, in float32 where that is enough.

    The float32 product of two rows of norms a and b is off by at most (d + 4) 2^-23 a b (Higham,
    "Accuracy and Stability of Numerical Algorithms", section 3.1; twice the unit roundoff, so
    that roundings of inputs, exact score and threshold are covered too). Pairs within that of
    the threshold are computed again in float64; if they are many, as of a constant scorer, all
    of the block is.
    """

    # Share of a block from which one float64 product is cheaper than single pairs.
    _MANY = 0.02

    def __init__(self, left: np.ndarray, right: np.ndarray):
        """Takes the rows to compare: (m, d) and (n, d)."""
        self._left, self._right = left, right
        self._fast = [np.ascontiguousarray(x, np.float32) for x in (left, right)]
        norms = [np.linalg.norm(x, axis=1).max() for x in self._fast]
        self._slack = np.float32((left.shape[1] + 4) * 2.0**-23 * norms[0] * norms[1])

    def scores(self, rows: slice) -> np.ndarray:
        """f32 (rows, n), near the exact ones; exact if the slack is not finite (NaN rows)."""
        if not np.isfinite(self._slack):
            return cosine_scores(self._left[rows], self._right)
        return self._fast[0][rows] @ self._fast[1].T

    def unbeaten(
        self,
        scores: np.ndarray,
        best: np.ndarray,
        rows: slice,
        own: tuple[np.ndarray, np.ndarray],
        *,
        axis: int,
    ) -> np.ndarray:
        """Counts candidates that do not score strictly below `best`, as `unbeaten_count`.

        Args:
          scores: (rows, n) from `scores`.
          best: exact score to beat, one for each row (axis 1: candidates are the columns) or
            column (axis 0).
          rows: the slice that gave `scores`.
          own: indices into `scores` of the right pairs, which do not compete.
          axis: over which to count.

        Returns:
          int64, one count for each entry of `best`.
        """
        limit = best[:, None] if axis else best[None, :]
        if not np.isfinite(self._slack):
            return self._count(~(scores < limit), own, axis)
        above = scores > limit + self._slack
        near = scores >= limit - self._slack
        near ^= above
        near[own] = False
        pairs = np.flatnonzero(near)
        if len(pairs) > self._MANY * scores.size:
            exact = cosine_scores(self._left[rows], self._right)
            return self._count(~(exact < limit), own, axis)
        count = self._count(above, own, axis)
        for part in np.array_split(pairs, len(pairs) // 65_536 + 1):
            i, j = np.divmod(part, scores.shape[1])
            exact = paired_scores(self._left[rows][i], self._right[j])
            to = i if axis else j
            count += np.bincount(to[~(exact < best[to])], minlength=len(count))
        return count

    @staticmethod
    def _count(wins: np.ndarray, own, axis: int) -> np.ndarray:
        wins[own] = False
        return np.count_nonzero(wins, axis=axis).astype(np.int64)


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

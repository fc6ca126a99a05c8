"""Scores and strict comparisons."""

import numpy as np
import pytest

from ccl_jax.evaluation import scoring


def test_scores_match_a_loop(unit_rows):
    left, right = unit_rows(5, 7, 0), unit_rows(4, 7, 1)
    expected = [[sum(float(a) * float(b) for a, b in zip(x, y)) for y in right] for x in left]  # noqa: B905
    scores = scoring.cosine_scores(left, right)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-7)
    paired = scoring.paired_scores(left[:4], right)
    np.testing.assert_allclose(paired, np.diagonal(expected), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("width", [3, 37, 512])
@pytest.mark.parametrize("rows", [1, 5, 131])
def test_equal_rows_get_equal_scores(unit_rows, width, rows):
    row = unit_rows(1, width, 0)
    scores = scoring.cosine_scores(np.repeat(row, 67, axis=0), np.repeat(row, rows, axis=0))
    assert np.unique(scores).size == 1


def test_unbeaten_count_counts_ties_and_nan_against():
    nan = np.nan
    scores = np.float32([[0.5, 0.5, 0.4, 0.9], [0.5, nan, 0.4, 0.1], [nan, 0.1, 0.1, 0.1]])
    wrong = np.array([[False, True, True, True]] * 3)
    np.testing.assert_array_equal(scoring.unbeaten_count(scores[:, 0], scores, wrong), [2, 1, 3])


@pytest.mark.parametrize("spread", [0.0, 1e-8, 1e-6, 1.0])
def test_near_ties_are_decided_as_exactly_as_by_float64(unit_rows, spread):
    """Rows that float32 products cannot tell apart, and rows that are the same."""
    width = 64
    left = unit_rows(1, width, 0) + spread * unit_rows(40, width, 1)
    right = np.concatenate([unit_rows(1, width, 2) + spread * unit_rows(50, width, 3)] * 2)
    left, right = left.astype(np.float32), right.astype(np.float32)
    exact = scoring.cosine_scores(left, right)
    own = (np.arange(40), np.arange(40) * 2)
    wrong = np.ones(exact.shape, bool)
    wrong[own] = False
    by_row, by_column = exact[own], exact[7]
    compare = scoring.NearTies(left, right)
    for rows in (slice(0, 40), slice(5, 30)):
        scores = compare.scores(rows)
        inside = (np.arange(rows.stop - rows.start), own[1][rows])
        found = compare.unbeaten(scores.copy(), by_row[rows], rows, inside, axis=1)
        expected = scoring.unbeaten_count(by_row[rows], exact[rows], wrong[rows])
        np.testing.assert_array_equal(found, expected)
        found = compare.unbeaten(scores.copy(), by_column, rows, inside, axis=0)
        expected = scoring.unbeaten_count(by_column, exact[rows].T, wrong[rows].T)
        np.testing.assert_array_equal(found, expected)


def test_check_embeddings_names_the_array_at_fault():
    good = np.ones((2, 3))
    with pytest.raises(ValueError, match="text_emb"):
        scoring.check_embeddings(image_emb=good, text_emb=np.ones((0, 3)))
    with pytest.raises(ValueError, match="one width"):
        scoring.check_embeddings(image_emb=good, text_emb=np.ones((2, 4)))

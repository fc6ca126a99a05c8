"""How far each item is from being right, by which failures are put in order."""

import numpy as np
import pytest

from ccl_jax.evaluation.benchmarks.matching import _margin


@pytest.mark.parametrize(
    ("positives", "expected"),
    [(1, 0.5 - 0.4), (2, 0.3 - 0.4)],  # a second right text is no wrong one
)
def test_the_margin_is_from_the_lowest_right_text_to_the_best_wrong_one(positives, expected):
    scores = np.array([[[0.5, 0.3, 0.4]]])
    if positives == 1:
        scores = scores[:, :, [0, 2]]
    assert _margin(scores, positives) == pytest.approx([expected])


def test_the_margin_of_two_images_with_two_texts():
    scores = np.array([[[0.9, 0.2], [0.6, 0.7]]])
    assert _margin(scores) == pytest.approx([0.7 - 0.6])

"""Caption against negative caption."""

import numpy as np
import pytest

from ccl_jax.evaluation import compositionality


def test_matches_the_loop(unit_rows):
    image, positive, negative = (unit_rows(30, 6, seed) for seed in range(3))
    expected = [float(i @ p) > float(i @ n) for i, p, n in zip(image, positive, negative)]  # noqa: B905
    result = compositionality.pair_accuracy(image, positive, negative)
    assert result.dtype == bool
    np.testing.assert_array_equal(result, expected)


def test_ties_and_nan_are_wrong(unit_rows):
    image = unit_rows(40, 37, 0)
    text = np.repeat(unit_rows(1, 37, 1), 40, axis=0)
    assert not compositionality.pair_accuracy(image, text, text.copy()).any()
    assert not compositionality.pair_accuracy(image, text, text * np.float32(np.nan)).any()
    assert not compositionality.pair_accuracy(image, text * np.float32(np.nan), text).any()


def test_bad_shapes(unit_rows):
    with pytest.raises(ValueError, match="one row per item"):
        compositionality.pair_accuracy(unit_rows(2, 4, 0), unit_rows(3, 4, 1), unit_rows(2, 4, 2))
    with pytest.raises(ValueError, match="non-empty"):
        compositionality.pair_accuracy(*[np.ones((0, 4))] * 3)


def _source(fake):
    return fake.Source(
        [
            fake.plain(
                0,
                "red",
                pairs=(
                    ("swap_attribute", "a red circle", "a blue circle"),
                    ("swap_attribute", "a green circle", "a red circle"),
                    ("replace_object", "a red circle", "a blue square"),
                ),
            ),
            fake.plain(1, "green", pairs=()),
            None,
            fake.plain(3, "blue", pairs=(("swap_attribute", "blue", "green"),)),
            fake.plain(4, "blue"),
            fake.plain(5, "blue", pairs=(("replace_object", "blue", "very blue"),)),
        ]
    )


def test_run_end_to_end(fake):
    result = compositionality.run(fake.Predictor(), _source(fake))
    assert result == pytest.approx(
        {"replace_object": 50.0, "swap_attribute": 200 / 3, "mean": (50 + 200 / 3) / 2}
    )


def test_run_constant_scorer_gets_zero(fake):
    assert set(compositionality.run(fake.Constant(), _source(fake)).values()) == {0.0}


def test_run_logs_counts(fake, monkeypatch):
    lines = []
    monkeypatch.setattr(
        compositionality.logging, "info", lambda form, *values: lines.append(form % values)
    )
    compositionality.run(fake.Predictor(), _source(fake))
    assert any("swap_attribute, 3 items" in line for line in lines)


def test_run_limit_and_no_pairs(fake):
    result = compositionality.run(fake.Predictor(), _source(fake), limit=1)
    assert result["swap_attribute"] == 50
    with pytest.raises(ValueError, match="1 lack what this evaluator needs"):
        compositionality.run(fake.Predictor(), fake.Source([fake.plain(0, "red")]))

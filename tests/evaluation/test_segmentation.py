"""Segmentation and pointing: loops, hand values, end to end."""

import jax
import numpy as np
import pytest

from ccl_jax.evaluation import segmentation


@pytest.mark.parametrize("size", [(8, 8), (13, 29), (4, 3), (1, 1)])
def test_bilinear_matches_a_loop(size):
    maps = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    expected = np.zeros((*size, 2))
    for y in range(size[0]):
        for x in range(size[1]):
            v = min(max((y + 0.5) * 4 / size[0] - 0.5, 0), 3)
            u = min(max((x + 0.5) * 3 / size[1] - 0.5, 0), 2)
            y0, x0 = int(v), int(u)
            y1, x1 = min(y0 + 1, 3), min(x0 + 1, 2)
            top = (1 - (u - x0)) * maps[y0, x0] + (u - x0) * maps[y0, x1]
            bottom = (1 - (u - x0)) * maps[y1, x0] + (u - x0) * maps[y1, x1]
            expected[y, x] = (1 - (v - y0)) * top + (v - y0) * bottom
    np.testing.assert_allclose(segmentation.bilinear_upsample(maps, size), expected, atol=1e-5)
    np.testing.assert_allclose(
        segmentation.bilinear_upsample(maps[..., 0], size), expected[..., 0], atol=1e-5
    )


def test_bilinear_matches_jax():
    maps = np.random.default_rng(1).normal(size=(5, 7)).astype(np.float32)
    np.testing.assert_allclose(
        segmentation.bilinear_upsample(maps, (31, 40)),
        jax.image.resize(maps, (31, 40), "bilinear"),
        atol=1e-5,
    )


@pytest.mark.parametrize("block", [1, 100, 1 << 22])
def test_segment_is_the_argmax_of_the_upsampled_scores(monkeypatch, block):
    monkeypatch.setattr(segmentation, "_BLOCK_SCORES", block)
    scores = np.random.default_rng(2).normal(size=(3, 4, 6)).astype(np.float32)
    expected = segmentation.bilinear_upsample(scores, (17, 11)).argmax(axis=-1)
    np.testing.assert_array_equal(segmentation.segment(scores, (17, 11)), expected)


def test_segment_predicts_nothing_on_ties_and_nan():
    scores = np.zeros((2, 2, 3), np.float32)
    assert (segmentation.segment(scores, (5, 5)) == segmentation.IGNORE).all()
    assert (segmentation.segment(scores * np.nan, (5, 5)) == segmentation.IGNORE).all()
    assert (segmentation.segment(scores[..., :1], (5, 5)) == 0).all()


def test_confusion_and_iou_match_loops():
    rng = np.random.default_rng(3)
    truth, prediction = rng.integers(-1, 4, (9, 8)), rng.integers(-1, 5, (9, 8))
    confusion = segmentation.confusion_matrix(truth, prediction, 5)
    expected = np.zeros((5, 6), int)
    for t, p in zip(truth.ravel(), prediction.ravel(), strict=True):
        if t >= 0:
            expected[t, p if p >= 0 else 5] += 1
    np.testing.assert_array_equal(confusion, expected)
    ious = []
    for c in range(4):  # class 4 is never true
        both = ((truth == c) & (prediction == c)).sum()
        either = ((truth == c) | ((prediction == c) & (truth >= 0))).sum()
        ious.append(both / either)
    assert segmentation.mean_iou(confusion) == pytest.approx(np.mean(ious))


def test_iou_hand_value():
    truth, prediction = np.array([0, 0, 0, 1, -1]), np.array([0, 0, 1, 1, 0])
    confusion = segmentation.confusion_matrix(truth, prediction, 3)
    assert segmentation.mean_iou(confusion) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_confusion_bad_arguments():
    with pytest.raises(ValueError, match="one shape"):
        segmentation.confusion_matrix(np.zeros((2, 2), int), np.zeros(3, int), 2)
    with pytest.raises(ValueError, match="below 2"):
        segmentation.confusion_matrix(np.array([2]), np.array([0]), 2)
    with pytest.raises(ValueError, match="no labelled pixel"):
        segmentation.mean_iou(np.zeros((2, 3), int))


@pytest.mark.parametrize("size", [(12, 12), (10, 13), (3, 3)])
def test_patch_counts_match_a_loop(size):
    mask = np.random.default_rng(4).integers(0, 4, size)
    expected = np.zeros((4 * 3, 3), int)
    for y in range(size[0]):
        for x in range(size[1]):
            if mask[y, x]:
                expected[(y * 4 // size[0]) * 3 + x * 3 // size[1], mask[y, x] - 1] += 1
    np.testing.assert_array_equal(segmentation.patch_counts(mask, (4, 3), 3), expected)


@pytest.mark.parametrize(
    ("similarity", "targets", "hit"),
    [
        ([0.9, 0.1, 0.2], [0], True),  # the target has the most pixels of the top patch
        ([0.9, 0.1, 0.2], [1], False),  # it is there, with fewer
        ([0.1, 0.9, 0.2], [0], False),  # as many as another object
        ([0.1, 0.9, 0.2], [0, 1], True),  # duplicates: either counts
        ([0.1, 0.2, 0.9], [0], False),  # only background
        ([0.9, 0.9, 0.2], [0], False),  # a tie for the top patch
        ([np.nan, 0.9, 0.2], [0, 1], False),
    ],
)
def test_pointing_hit(similarity, targets, hit):
    counts = np.array([[5, 3], [2, 2], [0, 0]])
    assert segmentation.pointing_hit(np.float32(similarity), counts, targets) is hit


NAMES = ("red", "green", "blue")


def _two_halves(fake, index, labels, phrases, size=(32, 32), **options):
    half = size[1] // 2
    regions = [("red", 0, 0, size[0], half), ("blue", 0, half, size[0], size[1])]
    return fake.record(
        index, regions, size=size, object_labels=labels, object_phrases=phrases, **options
    )


def _corners(fake, index, labels, phrases):
    """A red square in one corner, a blue one in the other, one patch each."""
    regions = [("red", 0, 0, 8, 8), ("blue", 24, 24, 32, 32)]
    return fake.record(index, regions, object_labels=labels, object_phrases=phrases)


def test_run_perfect(fake):
    source = fake.Source(
        [_corners(fake, 0, (0, 2), ("a red square", "a blue square")), None], class_names=NAMES
    )
    result = segmentation.run(fake.Predictor(), source)
    assert result == pytest.approx({"miou": 100.0, "pixel_accuracy": 100.0, "pointing": 100.0})


def test_run_partly_wrong(fake):
    # The second image's labels call the blue half green, and its phrases are swapped.
    source = fake.Source(
        [
            _two_halves(fake, 0, (0, 2), ()),
            _two_halves(fake, 1, (0, 1), ()),
            _corners(fake, 2, (0, 2), ("blue", "red")),
        ],
        class_names=NAMES,
    )
    result = segmentation.run(fake.Predictor(), source)
    # Pixels: red 1024 + 64 right; blue 512 + 64 right, and 512 green ones called blue.
    assert result["pixel_accuracy"] == pytest.approx(100 * (1088 + 576) / (1088 + 576 + 512))
    assert result["miou"] == pytest.approx(100 * (1 + 0 + 576 / 1088) / 3)
    assert result["pointing"] == 0


def test_run_duplicate_phrases_and_hidden_objects(fake):
    record = fake.record(
        0,
        [("red", 0, 0, 8, 8), ("blue", 8, 8, 12, 16), ("green", 0, 0, 0, 0)],
        object_labels=(0, 0, 1),
        # Both are "a red thing", only the first looks so; the third has no pixel.
        object_phrases=("a red thing", "a red thing", "green"),
    )
    source = fake.Source([record], class_names=NAMES)
    assert segmentation.run(fake.Predictor(), source)["pointing"] == 100


def test_run_constant_scorer_gets_zero(fake):
    source = fake.Source([_corners(fake, 0, (0, 2), ("red", "blue"))], class_names=NAMES)
    assert set(segmentation.run(fake.Constant(), source).values()) == {0.0}


def test_run_without_phrases_leaves_pointing_out(fake):
    source = fake.Source([_two_halves(fake, 0, (0, 2), ())], class_names=NAMES)
    assert set(segmentation.run(fake.Predictor(), source)) == {"miou", "pixel_accuracy"}


@pytest.mark.parametrize("transform", ["squash", "center_crop"])
def test_run_masks_follow_the_transform(fake, transform):
    source = fake.Source([_two_halves(fake, 0, (0, 2), (), size=(64, 128))], class_names=NAMES)
    result = segmentation.run(fake.Predictor(transform), source)
    assert result["pixel_accuracy"] > 95


def test_center_crop_leaves_out_what_the_model_did_not_see(fake):
    # Object 2 lies outside the central square.
    record = fake.record(
        0,
        [("red", 0, 40, 64, 80), ("blue", 0, 0, 64, 20)],
        size=(64, 128),
        object_labels=(0, 2),
        object_phrases=("red", "green"),
    )
    source = fake.Source([record], class_names=NAMES)
    result = segmentation.run(fake.Predictor("center_crop"), source)
    assert result["miou"] == 100.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "object_labels"),
        ({"object_labels": (0,)}, "one per object"),
        ({"object_labels": (0, 1), "object_phrases": ("red",)}, "one of each per object"),
        ({"object_labels": (0, 7)}, "below 3"),
    ],
)
def test_run_bad_annotations(fake, options, message):
    regions = [("red", 0, 0, 8, 8), ("blue", 8, 8, 16, 16)]
    source = fake.Source([fake.record(0, regions, **options)], class_names=NAMES)
    with pytest.raises(ValueError, match=message):
        segmentation.run(fake.Predictor(), source)

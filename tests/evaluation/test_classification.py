"""Zero-shot accuracy against a loop, by hand, and end to end."""

import numpy as np
import pytest

from ccl_jax.evaluation import classification


def test_matches_the_loop(unit_rows):
    images, classes = unit_rows(60, 5, 0), unit_rows(9, 5, 1)
    labels = np.random.default_rng(2).integers(0, 9, 60)
    hits = {1: 0, 5: 0}
    for image, label in zip(images, labels, strict=True):
        scores = [float(image @ c) for c in classes]
        ahead = sum(s >= scores[label] for c, s in enumerate(scores) if c != label)
        for k in hits:
            hits[k] += ahead < k
    result = classification.zero_shot_accuracy(images, classes, labels)
    assert result == pytest.approx({"top1": 100 * hits[1] / 60, "top5": 100 * hits[5] / 60})
    assert 0 < result["top1"] < result["top5"] < 100


def test_hand_value():
    images = np.float32([[1, 0], [0, 1], [0.6, 0.8]])
    classes = np.float32([[1, 0], [0, 1]])
    result = classification.zero_shot_accuracy(images, classes, np.array([0, 0, 1]))
    assert result == pytest.approx({"top1": 200 / 3, "top5": 100.0})


def test_constant_scorer_gets_zero():
    images, classes = np.ones((20, 37), np.float32), np.ones((11, 37), np.float32)
    labels = np.arange(20) % 11
    assert classification.zero_shot_accuracy(images, classes, labels) == {"top1": 0, "top5": 0}


@pytest.mark.parametrize(
    ("labels", "message"), [([0, 3], "labels must be rows"), ([0, -1], "rows"), ([0], "shape")]
)
def test_bad_labels(unit_rows, labels, message):
    with pytest.raises(ValueError, match=message):
        classification.zero_shot_accuracy(unit_rows(2, 4, 0), unit_rows(3, 4, 1), np.array(labels))


def test_empty_raises():
    with pytest.raises(ValueError, match="non-empty"):
        classification.zero_shot_accuracy(np.ones((0, 4)), np.ones((3, 4)), np.zeros(0, int))


def test_class_embeddings_average_templates(fake):
    result = classification.class_embeddings(
        fake.Predictor(), ("red", "blue"), ("a {}", "green and {}")
    )
    half = np.sqrt(0.5)
    expected = np.array([[1 + half, half, 0], [0, half, 1 + half]])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert result.dtype == np.float32


def test_article(fake):
    predictor = fake.Predictor()
    classification.class_embeddings(predictor, ("red", "orange"), ("{article} {}", "a {}"))
    assert predictor.seen_texts == ["a red", "an orange", "a red", "a orange"]


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ((), ("a {}",), "class_names is empty"),
        (("red",), (), "non-empty list"),
        (("red",), "a {}", "non-empty list"),
        (("red",), ("a photo",), "has no {}"),
    ],
)
def test_class_embeddings_bad_arguments(fake, names, templates, message):
    with pytest.raises(ValueError, match=message):
        classification.class_embeddings(fake.Predictor(), names, templates)


def _source(fake, names=("red", "green", "blue")):
    return fake.Source(
        [
            fake.plain(0, "red", label=0),
            fake.plain(1, "blue", label=2),
            None,
            fake.plain(3, "green", label=0),
            fake.plain(4, "green", label=1),
        ],
        class_names=names,
    )


def test_run_end_to_end(fake):
    result = classification.run(fake.Predictor(), _source(fake))
    assert result == pytest.approx({"top1": 75.0, "top5": 100.0})
    assert classification.run(fake.Constant(), _source(fake))["top1"] == 0
    assert classification.run(fake.Predictor(), _source(fake), limit=2)["top1"] == 100


def test_run_without_labels_or_names(fake):
    with pytest.raises(ValueError, match="label"):
        classification.run(
            fake.Predictor(), fake.Source([fake.plain(0, "red")], class_names=("red",))
        )
    with pytest.raises(ValueError, match="class_names"):
        classification.run(fake.Predictor(), _source(fake, names=None))

"""Recall at k against a sort-free loop, by hand, and end to end."""

import numpy as np
import pytest

from ccl_jax.evaluation import retrieval
from ccl_jax.evaluation.scoring import cosine_scores, unbeaten_count


def _loop_recall(image_emb, text_emb, text_image, k):
    """(image to text, text to image) percent, one comparison at a time."""
    score = [[float(np.dot(i, t)) for t in text_emb] for i in image_emb]
    image_hits = []
    for i in range(len(image_emb)):
        best = max(score[i][t] for t in range(len(text_emb)) if text_image[t] == i)
        ahead = sum(score[i][t] >= best for t in range(len(text_emb)) if text_image[t] != i)
        image_hits.append(ahead < k)
    text_hits = []
    for t in range(len(text_emb)):
        right = score[text_image[t]][t]
        ahead = sum(score[i][t] >= right for i in range(len(image_emb)) if i != text_image[t])
        text_hits.append(ahead < k)
    return 100 * sum(image_hits) / len(image_hits), 100 * sum(text_hits) / len(text_hits)


@pytest.mark.parametrize("block_scores", [1, 50, 1 << 24])
def test_matches_the_loop(unit_rows, block_scores):
    rng = np.random.default_rng(0)
    images = unit_rows(20, 8, 1)
    text_image = rng.permutation(np.concatenate([np.arange(20), rng.integers(0, 20, 27)]))
    texts = images[text_image] + 0.4 * unit_rows(47, 8, 2)
    texts = (texts / np.linalg.norm(texts, axis=1, keepdims=True)).astype(np.float32)
    result = retrieval.retrieval_recall(
        images, texts, text_image, ks=(1, 3, 5), block_scores=block_scores
    )
    for k in (1, 3, 5):
        expected = _loop_recall(images, texts, text_image, k)
        got = (result[f"image_to_text_recall@{k}"], result[f"text_to_image_recall@{k}"])
        assert got == pytest.approx(expected)
    assert 0 < result["text_to_image_recall@1"] < 100


def test_ranks_are_those_of_the_exact_scores(unit_rows):
    """Captions that occur several times, in the order of no image, in blocks of any size."""
    rng = np.random.default_rng(1)
    images, texts = unit_rows(60, 32, 0), unit_rows(240, 32, 1)[rng.integers(0, 90, 240)]
    text_image = rng.permutation(np.arange(240) % 60)
    scores = cosine_scores(images, texts)
    own = text_image[None, :] == np.arange(60)[:, None]
    best = np.where(own, scores, -np.inf).max(axis=1)
    expected = [
        unbeaten_count(best, scores, ~own),
        unbeaten_count(scores[text_image, np.arange(240)], scores.T, ~own.T),
    ]
    for block in (1, 1000, 1 << 24):
        found = retrieval.retrieval_ranks(images, texts, text_image, block_scores=block)
        for rank, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(rank, wanted)


def test_hand_value():
    images = np.float32([[1, 0], [0, 1]])
    # Image 0's second caption is right, image 1's only caption points at image 0.
    texts = np.float32([[0, 1], [1, 0], [0.8, 0.6]])
    result = retrieval.retrieval_recall(images, texts, np.array([0, 0, 1]), ks=(1, 2))
    assert result == pytest.approx(
        {
            "image_to_text_recall@1": 50.0,
            "text_to_image_recall@1": 100 / 3,
            "image_to_text_recall@2": 100.0,
            "text_to_image_recall@2": 100.0,
        }
    )


def test_constant_scorer_gets_zero():
    images, texts = np.ones((15, 37), np.float32), np.ones((30, 37), np.float32)
    result = retrieval.retrieval_recall(images, texts, np.arange(30) // 2)
    assert set(result.values()) == {0.0}


def test_nan_gets_zero(unit_rows):
    nan = np.full((12, 4), np.nan, np.float32)
    other = unit_rows(12, 4, 0)
    for pair in ((nan, other), (other, nan)):
        assert set(retrieval.retrieval_recall(*pair, np.arange(12)).values()) == {0.0}


def test_one_image_is_always_found(unit_rows):
    result = retrieval.retrieval_recall(unit_rows(1, 4, 0), unit_rows(3, 4, 1), np.zeros(3, int))
    assert set(result.values()) == {100.0}


@pytest.mark.parametrize(
    ("text_image", "ks", "message"),
    [
        ([0, 1], (1,), "shape"),
        ([0, 1, 2], (1,), r"rows in \[0, 2\)"),
        ([0, 0, -1], (1,), r"rows in \[0, 2\)"),
        ([0, 0, 0], (1,), "every image needs a text"),
        ([0, 1, 1], (0,), "cut-offs"),
        ([0, 1, 1], (), "cut-offs"),
    ],
)
def test_bad_arguments(unit_rows, text_image, ks, message):
    with pytest.raises(ValueError, match=message):
        retrieval.retrieval_recall(
            unit_rows(2, 4, 0), unit_rows(3, 4, 1), np.array(text_image), ks=ks
        )


def test_empty_raises():
    with pytest.raises(ValueError, match="non-empty"):
        retrieval.retrieval_recall(np.ones((0, 4)), np.ones((0, 4)), np.zeros(0, int))


def _source(fake):
    return fake.Source(
        [
            fake.plain(0, "red", captions=("red", "the colour is blue")),
            None,
            fake.plain(2, "blue", captions=("blue", "really quite blue")),
            fake.plain(3, "green", captions=("green",)),
        ]
    )


def test_run_end_to_end(fake):
    result = retrieval.run(fake.Predictor(), _source(fake))
    # The wrong caption of image 0 ties with nothing of its own and costs text_to_image once.
    assert result["text_to_image_recall@1"] == pytest.approx(80.0)
    # It also ties with image 2's captions, which costs image 2.
    assert result["image_to_text_recall@1"] == pytest.approx(200 / 3)
    assert set(result) == {
        f"{d}_recall@{k}" for d in ("image_to_text", "text_to_image") for k in (1, 5, 10)
    }


@pytest.mark.parametrize(("captions", "expected"), [("first", 100.0), ("longest", 200 / 3)])
def test_run_choice_of_captions(fake, captions, expected):
    result = retrieval.run(fake.Predictor(), _source(fake), captions=captions)
    assert result["text_to_image_recall@1"] == pytest.approx(expected)


def test_run_limit_and_constant(fake):
    assert retrieval.run(fake.Predictor(), _source(fake), limit=1)["image_to_text_recall@1"] == 100
    assert retrieval.run(fake.Constant(), _source(fake))["image_to_text_recall@1"] == 0


def test_run_unknown_choice(fake):
    with pytest.raises(ValueError, match="captions must be one of"):
        retrieval.run(fake.Predictor(), _source(fake), captions="shortest")

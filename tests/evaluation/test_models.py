"""Images and texts are embedded once; what cannot be read is named."""

import numpy as np
import pytest

from ccl_jax.evaluation.cache import EmbeddingCache
from ccl_jax.evaluation.models import EvaluatedModel, cropped, decoded
from ccl_jax.evaluation.results import Image


@pytest.fixture
def counting(fake):
    """A predictor that counts what goes through it."""

    class Counting(fake.Predictor):
        batch_size = 4
        seen_images = 0

        def images(self, images):
            assert len(images) <= self.batch_size
            self.seen_images += len(images)
            return super().images(images)

    return Counting()


@pytest.fixture
def images(fake):
    """Ten images of three colours, of which number 3 cannot be decoded."""

    def make(index):
        colour = ("red", "green", "blue")[index % 3]
        data = b"no image" if index == 3 else fake.plain(0, colour).image
        return Image(f"{index}.png", f"path {index}", lambda: data)

    return [make(index) for index in range(10)]


def test_each_image_is_embedded_once_and_the_bad_one_named(counting, images):
    model = EvaluatedModel("m", counting)
    found = model.images([*images, images[0]])
    assert counting.seen_images == 9
    assert found.bad == {"3.png": "unreadable image"}
    assert found.row_of[3] == -1 and (np.delete(found.row_of, 3) >= 0).all()
    for index in (0, 1, 2, 4, 9, 10):
        axis = (0, 1, 2)[(index % 10) % 3]
        assert found.rows[found.row_of[index]].argmax() == axis
    again = model.images(images[4:6])
    assert counting.seen_images == 9 and len(again.rows) == 2 and not again.bad
    assert again.fingerprint != found.fingerprint


def test_the_cache_outlives_the_model(fake, counting, images, tmp_path):
    EvaluatedModel("m", counting, EmbeddingCache(tmp_path, "x")).images(images)
    fresh = EvaluatedModel("m", type(counting)(), EmbeddingCache(tmp_path, "x"))
    assert fresh.predictor.seen_images == 0
    assert len(fresh.images(images).rows) == 9
    assert fresh.predictor.seen_images == 0


def test_an_interrupted_run_keeps_what_it_had(counting, images, tmp_path):
    class Tired(type(counting)):
        def images(self, images):
            if self.seen_images == 4:
                raise KeyboardInterrupt
            return super().images(images)

    with pytest.raises(KeyboardInterrupt):
        EvaluatedModel("m", Tired(), EmbeddingCache(tmp_path, "x")).images(images)
    fresh = EvaluatedModel("m", counting, EmbeddingCache(tmp_path, "x"))
    fresh.images(images)
    assert counting.seen_images == 5


def test_texts_and_classes_are_embedded_once(counting):
    model = EvaluatedModel("m", counting)
    rows = model.texts(["red", "blue", "red"])
    np.testing.assert_array_equal(rows[0], rows[2])
    assert counting.seen_texts == ["red", "blue"]
    model.texts(["blue", "green"])
    assert counting.seen_texts == ["red", "blue", "green"]
    classes = model.classes(("red", "blue"), ("a {}", "the {}"))
    np.testing.assert_allclose(classes, np.eye(3)[[0, 2]])
    before = len(counting.seen_texts)
    model.classes(("blue",), ("a {}", "the {}"))
    assert len(counting.seen_texts) == before
    model.classes(("blue",), ("a {}",))  # other prompts, another embedding
    assert len(counting.seen_texts) == before + 1


def test_decoding_keeps_the_order_and_the_batch(images):
    bad = {}
    options = {"size": 8, "transform": "squash"}
    found = list(decoded(images, options, 4, bad))
    assert [positions for _, positions in found] == [[0, 1, 2, 4], [5, 6, 7, 8], [9]]
    assert all(pixels.shape[1:] == (8, 8, 3) for pixels, _ in found)
    assert list(bad) == ["3.png"]
    assert list(decoded([], options, 4, {})) == []


def test_a_crop_is_cut_before_anything_else(fake):
    record = fake.record(0, [("red", 0, 0, 32, 16), ("blue", 0, 16, 32, 32)])
    whole = Image("two", "id", lambda: record.image)
    model = EvaluatedModel("m", fake.Predictor())
    left, right = cropped(whole, (0, 0, 16, 32)), cropped(whole, (16, 0, 32, 32))
    assert len({whole.identity, left.identity, right.identity}) == 3
    found = model.images([whole, left, right, cropped(whole, (5, 5, 5, 9))])
    np.testing.assert_allclose(found.rows[1:], np.eye(3)[[0, 2]], atol=1e-6)
    assert list(found.bad.values()) == ["empty crop"]


def test_a_model_without_other_strides(fake):
    model = EvaluatedModel("m", fake.Predictor())
    assert model.dense(None) is model.predictor
    with pytest.raises(ValueError, match="patch stride"):
        model.dense(4)

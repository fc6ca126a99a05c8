"""Heat maps: the blend by value, the picture by size and content."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from ccl_jax.evaluation import heatmaps


def test_overlay_is_hottest_where_the_similarity_is():
    image = np.full((32, 32, 3), 128, np.uint8)
    similarity = np.zeros((4, 4), np.float32)
    similarity[1, 2] = 0.1
    blended = heatmaps.overlay(image, similarity)
    assert blended.min() >= 0 and blended.max() <= 1
    side = len(blended)
    assert blended.shape == (side, side, 3) and side % 32 == 0 and side >= 224
    hot, cold = blended[side * 12 // 32, side * 20 // 32], blended[-1, 0]
    assert hot[0] > hot[2] + 0.3  # red
    np.testing.assert_allclose(cold, 128 / 255, atol=1e-6)  # the image itself, in grey


def test_overlay_keeps_the_size_of_a_large_image():
    image = np.zeros((240, 300, 3), np.uint8)
    assert heatmaps.overlay(image, np.eye(3, dtype=np.float32)).shape == (240, 300, 3)


def test_overlay_of_a_constant_map_is_the_grey_image():
    blended = heatmaps.overlay(np.full((8, 8, 3), 51, np.uint8), np.full((2, 2), 0.3, np.float32))
    np.testing.assert_allclose(blended, 0.2, atol=1e-6)


def test_phrases_of(fake):
    record = fake.plain(0, "red", captions=("one", "two"))
    assert heatmaps.phrases_of(record, 3) == ["one"]
    named = fake.plain(0, "red", object_phrases=("a", "b", "a", "c", "d"))
    assert heatmaps.phrases_of(named, 3) == ["a", "b", "c"]
    parsed = dataclasses.replace(named, phrases=(("x", "y"),))
    assert heatmaps.phrases_of(parsed, 1) == ["x"]
    assert heatmaps.phrases_of(dataclasses.replace(named, phrases=((),)), 1) == ["a"]


def test_draws_a_grid(fake, tmp_path):
    long = "a very long caption of a red square beside a blue square, with $ and % signs " * 3
    records = [
        fake.record(
            i,
            [("red", 0, 0, 16, 16), ("blue", 16, 16, 32, 32)],
            captions=(long,),
            object_phrases=("a red square", "a blue square")[: i + 1],
        )
        for i in range(2)
    ]
    path = tmp_path / "figures" / "maps.png"
    models = {"before": fake.Predictor(), "after": fake.Constant("center_crop")}
    heatmaps.draw_heatmaps(models, records, path)
    picture = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))
    height, width = picture.shape[:2]
    assert width > 1.5 * height  # 5 columns, 2 rows
    # The first row has one phrase, so its last two cells are blank.
    assert (picture[: height // 2, -int(width * 0.36) :] == 255).all()
    assert (picture[height // 2 :, -int(width * 0.36) :] != 255).any()


def test_nothing_to_draw(fake, tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        heatmaps.draw_heatmaps({}, [fake.plain(0, "red")], tmp_path / "x.png")
    with pytest.raises(ValueError, match="at least one"):
        heatmaps.draw_heatmaps({"m": fake.Predictor()}, [], tmp_path / "x.png")

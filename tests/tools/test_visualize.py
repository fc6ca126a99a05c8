"""Phrases over an image: maps against their formulas, files, and errors in one line."""

import os
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

from ccl_jax.evaluation import visualization
from ccl_jax.evaluation.segmentation import IGNORE


class Colours:
    """A model that sees, in each patch, its mean colour."""

    image_size = 32
    grid = (4, 4)
    model = types.SimpleNamespace(patch_embedder=False)
    image_options = {"size": 32, "transform": "center_crop"}
    names = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}

    def image_tokens(self, images, kind=None):
        assert kind == "image_tokens" or self.model.patch_embedder
        patches = images.reshape(len(images), 4, 8, 4, 8, 3).mean(axis=(2, 4)).reshape(-1, 16, 3)
        return self._unit(patches)

    def images(self, images):
        return self._unit(images.mean(axis=(1, 2)))

    def texts(self, texts):
        return self._unit(np.array([self.names[text.split()[-1]] for text in texts], float))

    @staticmethod
    def _unit(rows):
        return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def picture():
    """Left half red, right half blue, twice as wide as high."""
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40, 0] = 255
    pixels[:, 40:, 2] = 255
    return Image.fromarray(pixels)


def test_maps_and_segmentation_cover_the_whole_image(picture):
    found = visualization.visualize(Colours(), picture, ["a red", "a blue"], sharpness=3.0)
    assert list(found.maps) == ["attention", "similarity"]
    np.testing.assert_allclose(found.maps["similarity"][0], [[1, 1, 0, 0]] * 4, atol=0.02)
    weights = np.exp(3.0 * np.array([1, 1, 0, 0]))
    expected = [weights / weights.sum() / 4] * 4
    np.testing.assert_allclose(found.maps["attention"][0], expected, atol=2e-3)
    segments = found.segments["similarity"]
    assert segments.shape == (40, 80)
    assert (segments[:, :39] == 0).all() and (segments[:, 41:] == 1).all()
    np.testing.assert_allclose(found.scores, [0.5**0.5] * 2, atol=0.02)


def test_sharper_attention_is_more_peaked(picture):
    soft, sharp = (
        visualization.visualize(Colours(), picture, ["red"], sharpness=s) for s in (1.0, 20.0)
    )
    assert sharp.maps["attention"].max() > soft.maps["attention"].max()
    assert not soft.segments  # one phrase has nothing to be told from


def test_pacl_needs_its_embedder(picture):
    model = Colours()
    with pytest.raises(ValueError, match="no patch embedder"):
        visualization.visualize(model, picture, ["red"], kinds=["pacl"])
    model.model = types.SimpleNamespace(patch_embedder=True)
    assert list(visualization.visualize(model, picture, ["red"]).maps) == list(visualization.MAPS)
    with pytest.raises(ValueError, match="choose among"):
        visualization.visualize(model, picture, ["red"], kinds=["xac"])
    with pytest.raises(ValueError, match="positive"):
        visualization.visualize(model, picture, ["red"], sharpness=0.0)


def test_phrases():
    assert visualization.split_phrases(" a red  cup;; the dog ;a red cup") == [
        "a red cup",
        "the dog",
    ]
    with pytest.raises(ValueError, match="no phrase"):
        visualization.split_phrases(" ; ")
    with pytest.raises(ValueError, match="more than 50"):
        visualization.split_phrases(";".join(map(str, range(51))))


def test_an_image_of_a_phone_is_turned_upright(picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    picture.save(tmp_path / "turned.jpg", exif=exif)
    found = np.asarray(visualization.read_image(tmp_path / "turned.jpg"))
    assert found.shape == (80, 40, 3)
    assert found[10, 20, 0] > 200 and found[70, 20, 2] > 200
    Image.new("RGB", (3000, 1500)).save(tmp_path / "large.png")
    assert visualization.read_image(tmp_path / "large.png").size == (1024, 512)


def test_a_file_that_was_cut_off_is_no_image(tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(ValueError, match="cut.png.*give a JPEG"):
        visualization.read_image(path)


def test_no_image(tmp_path):
    with pytest.raises(ValueError, match="cannot read .*nowhere.jpg"):
        visualization.read_image(tmp_path / "nowhere.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ValueError, match="give a JPEG"):
        visualization.read_image(tmp_path / "text.jpg")


def test_colours_differ_and_ties_stay_grey():
    for count in (3, 10, 30):
        assert len(np.unique(visualization.colours(count).round(3), axis=0)) == count
    image = np.full((2, 2, 3), 100, np.uint8)
    painted = visualization.paint_segments(image, np.array([[0, 1], [IGNORE, 0]]), 2)
    assert (painted[1, 0] == 100).all() and (painted[0, 0] != painted[0, 1]).any()


def test_files(picture, tmp_path):
    phrases = ["a $5 red", "_ / blue", "green"]
    model = Colours()
    found = visualization.visualize(model, picture, phrases)
    names = visualization.write_pictures(found, tmp_path / "out")
    assert sorted(names) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert "similarity_1_a-5-red.png" in names and "attention_2_blue.png" in names
    assert "segmentation_similarity.png" in names
    sheet = Image.open(tmp_path / "out/contact_sheet.png")
    assert sheet.width > 1000 and len(np.unique(np.asarray(sheet)[..., :3])) > 50
    stored = np.load(tmp_path / "out/maps.npz")
    assert stored["phrases"].tolist() == phrases and stored["attention"].shape == (3, 4, 4)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--output"):
        visualization.write_pictures(found, tmp_path / "file")


@pytest.mark.slow
def test_command(shared, tmp_path, picture):
    from ccl_jax.data.text import Tokenizer
    from ccl_jax.data.text_ids import swap_ids

    model = tmp_path / "model"
    shutil.copytree(shared / "golden" / "hf_siglip_tiny", model)
    os.chmod(model, 0o755)
    swap_ids(Tokenizer.train(["a red square", "a blue one"], 60), 0, 1).save(str(model))
    picture.save(tmp_path / "x.png")

    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "ccl_jax.tools.visualize", "--model", str(model),
             "--output", str(tmp_path / "out"), *arguments],
            capture_output=True, text=True, env=os.environ, check=False,
        )  # fmt: skip

    image = str(tmp_path / "x.png")
    found = call("--image", image, "--phrases", "a red square; a blue one")
    assert found.returncode == 0, found.stderr
    assert "contact_sheet.png" in found.stdout and "a blue one" in found.stdout
    assert (tmp_path / "out" / "segmentation_similarity.png").stat().st_size > 1000
    found = call("--image", image, "--phrases", "red", "--maps", "pacl")
    assert found.returncode == 1 and "Traceback" not in found.stderr
    assert "no patch embedder" in found.stderr.splitlines()[-1]

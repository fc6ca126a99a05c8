"""The demo page's answers and their HTML: against the formulas, limits, and models that differ."""

import base64
import doctest
import html.parser
import io
import re
import sys
import types

import numpy as np
import pytest
from PIL import Image

from ccl_jax.evaluation import demo, demo_html, demo_page, visualization
from ccl_jax.evaluation.benchmarks.class_sets import prompts

HOSTILE = "red </td><script>alert(1)</script> & \"q\" 'p'"


def trained(predictor, *, pacl=False):
    """Gives a predictor of `conftest.py` what a trained one has: scale 10, maybe PACL's head."""
    predictor.params = {"log_scale": np.log(np.float32(10))}
    predictor.model = types.SimpleNamespace(patch_embedder=pacl)
    return predictor


@pytest.fixture
def model(fake):
    return trained(fake.Predictor())


@pytest.fixture
def picture(tmp_path):
    """Left three quarters red, the rest blue."""
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :60, 0] = 255
    pixels[:, 60:, 2] = 255
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    return path


class Text(html.parser.HTMLParser):
    """Tags with their attributes, and the text between."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_examples():
    assert doctest.testmod(demo).failed == 0


def test_an_answer_is_what_the_model_sees(model, picture):
    (answer,) = demo.Demo({"a": model}).answer(
        picture, "red; blue\nred", classes="blue, red", templates="a {} thing", sharpness=3
    )
    assert answer.model == "a" and not answer.error
    expected = visualization.visualize(
        model, visualization.read_image(picture), ["red", "blue"], sharpness=3
    )
    assert answer.found.phrases == ("red", "blue")
    np.testing.assert_array_equal(answer.found.scores, expected.scores)
    np.testing.assert_array_equal(answer.found.maps["attention"], expected.maps["attention"])
    # The mean colour is (3, 0, 1) / 4.
    cosines = np.array([3, 1]) / np.sqrt(10)
    assert [label.name for label in answer.labels] == ["red", "blue"]
    np.testing.assert_allclose([label.cosine for label in answer.labels], cosines, atol=0.02)
    weights = np.exp(10 * cosines)
    shares = [label.share for label in answer.labels]
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=1e-3)
    assert "a red thing" in model.seen_texts


def test_class_names_alone_and_their_embeddings_are_kept(model, picture):
    shown = demo.Demo({"a": model})
    (first,) = shown.answer(picture, " ;\n", classes="red\nblue")
    assert first.found is None and len(first.labels) == 2
    seen = len(model.seen_texts)
    (second,) = shown.answer(picture, "", classes="red;blue")
    assert second.labels == first.labels and len(model.seen_texts) == seen
    shown.answer(picture, "", classes="red;blue", templates="{}")
    assert len(model.seen_texts) == seen + 2
    shown.answer(picture, "", classes="red", templates="CIFAR10")
    assert len(model.seen_texts) == seen + 2 + len(prompts()["CIFAR10"]["templates"])


def test_models_that_differ(fake, picture):
    """In width and in heads; what one lacks does not keep the other from answering."""
    models = {"plain": trained(fake.Constant()), "with": trained(fake.Predictor(), pacl=True)}
    shown = demo.Demo(models)
    shown.warm_up()
    plain, having = shown.answer(picture, "red; blue", kinds=["similarity", "pacl"], classes="red")
    assert "no patch embedder" in plain.error and list(plain.found.maps) == ["similarity"]
    assert not having.error and list(having.found.maps) == ["similarity", "pacl"]
    assert plain.labels and having.labels
    plain, having = shown.answer(picture, "red", kinds=["pacl"])
    assert plain.found is None and "no patch embedder" in plain.error
    assert list(having.found.maps) == ["pacl"]
    assert list(shown.answer(picture, "red")[0].found.maps) == ["attention", "similarity"]


def test_limits(model, picture, tmp_path):
    limits = demo.Limits(file_bytes=2000, pixels=4000, phrases=2, prompts=30, characters=100)
    shown = demo.Demo({"a": model}, limits)

    def refused(match, path=picture, phrases="red", **options):
        with pytest.raises(ValueError, match=match) as error:
            shown.answer(path, phrases, **options)
        assert "\n" not in str(error.value) and str(tmp_path) not in str(error.value)

    shown.answer(picture, "red; blue")
    refused("3 phrases are more than 2", phrases="a; b; c")
    refused("over 100 characters", phrases="x" * 101)
    refused("2 class names in 18 templates are 36 texts", classes="a, b", templates="CIFAR10")
    refused("there is no phrase", phrases=" ; ")
    refused("there is no image", path=None)
    refused("no longer there", path=tmp_path / "gone.png")
    refused("there are no maps 'xac'", kinds=["xac"])
    refused("no {} for the class name", classes="a", templates="a photo")
    Image.new("RGB", (100, 50)).save(tmp_path / "large.png")
    refused(r"large.png: image too large \(100 x 50, over 4000", path=tmp_path / "large.png")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    refused("more than 0.00190735 MB; give a smaller", path=tmp_path / "noise.png")
    (tmp_path / "text.jpg").write_text("no image")
    refused("text.jpg: unreadable image.*give a JPEG", path=tmp_path / "text.jpg")
    Image.new("RGB", (210, 10)).save(tmp_path / "strip.png")
    refused("strip.png has 210 x 10 pixels, more than 20 to 1", path=tmp_path / "strip.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(picture.read_bytes()[:-60])
    refused("^cut.png: unreadable image", path=cut)
    for field in ("file_bytes", "phrases"):
        with pytest.raises(ValueError, match=f"limit of {field} must be at least 1"):
            demo.Limits(**{field: 0})
    with pytest.raises(ValueError, match="no model"):
        demo.Demo({})


def test_html_holds_the_numbers_and_escapes_the_rest(model, picture):
    name = f"model {HOSTILE}"
    classes = ";".join([HOSTILE, *(f"blue {i}" for i in range(25))])
    (answer,) = demo.Demo({name: model}).answer(picture, f"{HOSTILE}\nblue", classes=classes)
    source = demo_html.answers_html([answer, demo.Answer("b", error=HOSTILE)])
    page = Text(source)
    assert "script" not in [tag for tag, _ in page.tags]
    assert page.text.count(HOSTILE) >= 6 and "b" in page.text
    for score in answer.found.scores:
        assert f"{score:+.3f}" in page.text
    assert f"{answer.labels[0].cosine:+.3f}" in page.text
    assert f"{100 * answer.labels[0].share:.1f} %" in page.text
    assert "and 6 more" in page.text  # 20 of 26 are shown
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 5  # two maps of two kinds, and a segmentation
    assert all(p["src"].startswith("data:image/jpeg;base64,") and p["alt"] for p in pictures)
    assert not re.search(r"https?://", source + demo_html.CSS)


def test_pictures_are_small_and_segments_are_as_found(model, tmp_path):
    pixels = np.zeros((900, 1800, 3), np.uint8)
    pixels[:, :900, 0] = pixels[:, 900:, 2] = 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    (answer,) = demo.Demo({"a": model}).answer(tmp_path / "x.png", "red; blue")
    page = Text(demo_html.answers_html([answer]))
    *_, last = (attrs for tag, attrs in page.tags if tag == "img")
    assert (last["width"], last["height"]) == ("480", "240")
    drawn = Image.open(io.BytesIO(base64.b64decode(last["src"].split(",")[1])))
    drawn = np.asarray(drawn).astype(float)
    fills = [attrs["fill"] for tag, attrs in page.tags if tag == "rect"]
    for column, fill in ((100, fills[0]), (380, fills[1])):
        colour = np.array([int(fill[i : i + 2], 16) for i in (1, 3, 5)])
        grey = 255 / 3
        np.testing.assert_allclose(drawn[120, column], 0.45 * grey + 0.55 * colour, atol=8)
    assert "50 %" in page.text


def test_an_error_is_one_line():
    page = Text(demo_html.error_html(f"{HOSTILE}\n  and more"))
    assert page.text == f"{HOSTILE} and more" and page.tags[0][1]["role"] == "alert"
    assert [tag for tag, _ in page.tags] == ["p"]


def test_an_address_in_use_or_unknown():
    with demo_page.bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"127.0.0.1:{port} .*in use.*--port"):
            demo_page.bind("127.0.0.1", port)
    with pytest.raises(ValueError, match="cannot serve at"):
        demo_page.bind("192.0.2.1", 0)  # of nobody: kept for documentation


def test_without_gradio(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(demo_page.os, "environ", {})
    with pytest.raises(ValueError, match=r'needs Gradio: pip install "ccl_jax\[demo\]"'):
        demo_page.require_gradio()

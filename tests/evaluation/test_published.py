"""Published benchmarks as an evaluator: parts, names of metrics, what is kept and for how long."""

import gc
import json

import numpy as np
import pytest

from ccl_jax.evaluation import published, runner
from ccl_jax.evaluation.benchmarks.sugarcrepe import SUBSETS
from ccl_jax.evaluation.pixel_cache import PixelCache
from ccl_jax.evaluation.results import Image


@pytest.fixture
def data(tmp_path, fake):
    """SugarCrepe with 20 items a subset on 20 images, of which every other one is there."""
    places = tmp_path / "coco" / "val2017"
    places.mkdir(parents=True)
    for i in range(0, 20, 2):
        (places / f"{i:012}.jpg").write_bytes(fake.plain(0, ("red", "blue")[i // 2 % 2]).image)
    folder = tmp_path / "sugarcrepe"
    folder.mkdir()
    for subset in SUBSETS:
        items = {
            str(i): {
                "filename": f"{i:012}.jpg",
                "caption": ("red", "blue")[i // 2 % 2],
                "negative_caption": "green",
            }
            for i in range(20)
        }
        (folder / f"{subset}.json").write_text(json.dumps(items))
    return tmp_path


def entry(data, **options):
    return {"evaluator": "benchmarks", "data_dir": str(data), "names": ("sugarcrepe",), **options}


def test_metrics_of_a_part(data, fake):
    predictor = fake.Predictor()
    entries = {"sugarcrepe": entry(data, items=28)}
    runner.check(entries)
    found = runner.evaluate(predictor, entries, None)
    assert found["sugarcrepe/mean"] == found["sugarcrepe/swap_att"] == 100
    assert len(found) == 11
    assert len(predictor.seen_texts) <= 3
    again = runner.evaluate(fake.Constant(), entries, None)
    assert again == dict.fromkeys(found, 0.0)


def test_several_benchmarks_have_their_names_before_their_metrics(data, fake):
    captions = [{"filename": "000000000000.jpg", "caption": "red", "caption2": "so red",
                 "negative_caption": "blue"}]  # fmt: skip
    (data / "sugarcrepe_pp").mkdir()
    for subset in SUBSETS[:5]:
        (data / "sugarcrepe_pp" / f"{subset}.json").write_text(json.dumps(captions))
    names = ("sugarcrepe", "sugarcrepe_pp")
    found = runner.evaluate(fake.Predictor(), {"all": entry(data, names=names)}, None)
    assert found["all/sugarcrepe/mean"] == found["all/sugarcrepe_pp/i2t/mean"] == 100


def test_images_are_decoded_once_for_a_predictor_and_embedded_each_time(data, fake, monkeypatch):
    decoded, embedded = [], []
    read = published.EvaluatedModel.images.__globals__["transform_image"]
    monkeypatch.setitem(
        published.EvaluatedModel.images.__globals__,
        "transform_image",
        lambda data, name, **options: decoded.append(name) or read(data, name, **options),
    )
    predictor = fake.Predictor()
    whole = predictor.images
    monkeypatch.setattr(predictor, "images", lambda x: embedded.append(len(x)) or whole(x))
    for _ in range(2):
        runner.evaluate(predictor, {"s": entry(data)}, None)
    assert sorted(decoded) == [f"{i:012}.jpg" for i in range(0, 20, 2)]
    assert embedded == [10, 10]  # of other weights, each time
    held = len(published._PIXELS)
    monkeypatch.undo()
    del predictor, whole
    gc.collect()
    assert len(published._PIXELS) == held - 1


def test_annotations_are_read_once(data, fake):
    entries = {"s": entry(data)}
    runner.check(entries)
    (data / "sugarcrepe" / "swap_att.json").write_text("no JSON")
    assert runner.evaluate(fake.Predictor(), entries, None)["s/mean"] == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ("winoground",)}, "benchmark winoground cannot be evaluated: no Winoground"),
        ({"names": ("compositionality",)}, "sugarcrepe_pp cannot be evaluated: no SugarCrepe"),
        ({"names": ("sugarcrep",)}, "did you mean 'sugarcrepe'"),
        ({"names": ()}, "no benchmark chosen"),
        ({"data_dir": "/nowhere"}, "there is no folder /nowhere; give data_dir"),
        ({"items": 0}, "a benchmark needs items; got items=0"),
    ],
)
def test_what_is_missing_is_known_before_a_run(data, options, message):
    with pytest.raises(ValueError, match=rf"^evaluators\['s'\]: .*{message}") as error:
        runner.check({"s": entry(data) | options})
    assert "\n" not in str(error.value)


def test_pixels_stay_within_their_bytes():
    cache = PixelCache(2500)
    images = [Image(f"{i}", f"{i}", lambda: b"") for i in range(3)]
    read = []

    def load(image):
        read.append(image.name)
        return np.full(1000, int(image.name), np.uint8)

    for _ in range(2):
        for image in images:
            assert (cache.of(image, {"size": 1}, load) == int(image.name)).all()
    assert len(cache) == 2 and read == ["0", "1", "2", "2"]
    cache.of(images[0], {"size": 2}, load)  # prepared in another way
    assert read[-1] == "0" and len(cache) == 2


def test_a_constant_scorer_gets_nothing_on_parts_of_real_data(shared, fake):
    names = ("sugarcrepe", "sugarcrepe_pp", "valse", "flickr8k_retrieval", "zero_shot")
    entries = {"all": entry(shared / "data", names=names, items=40)}
    runner.check(entries)
    found = runner.evaluate(fake.Constant(), entries, None)
    assert {name.split("/")[1] for name in found} == set(names)
    # Among ten classes a tie with nine is not within five.
    assert set(found.values()) == {0.0}

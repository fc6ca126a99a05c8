"""SugarCrepe and SugarCrepe++: the published aggregation, layouts, what is left out."""

import csv

import numpy as np
import pytest

from ccl_jax.evaluation.benchmarks import sugarcrepe
from ccl_jax.evaluation.benchmarks.files import MissingData
from ccl_jax.evaluation.benchmarks.matching import Scores, Table
from ccl_jax.evaluation.models import EvaluatedModel


def test_aggregation_gives_the_published_row(shared):
    """OpenAI's CLIP B/32, item by item, as published with BiVLC."""
    with open(
        shared / "data/sugarcrepe/clip_vitb32_openai_per_item.csv", newline="", encoding="utf-8"
    ) as file:
        rows = list(csv.DictReader(file))
    groups = np.array([f"{row['type']}_{row['subtype']}" for row in rows])
    table = Table(
        groups=groups,
        clusters=np.unique([row["filename"] for row in rows], return_inverse=True)[1],
        outcomes={"right": np.array([float(row["correct"]) for row in rows])},
        families=np.full(len(rows), ""),
        marks=np.full(len(rows), ""),
        totals=dict(zip(*np.unique(groups, return_counts=True), strict=True)),
    )
    found = {name: metric.value for name, metric in sugarcrepe._metrics(table).items()}
    published = {
        "replace_obj": 90.92, "replace_att": 80.08, "replace_rel": 69.20,
        "swap_obj": 61.38, "swap_att": 63.96, "add_obj": 77.21, "add_att": 68.79,
    }  # fmt: skip
    for name, value in published.items():
        assert round(found[name], 2) == value, name
    assert found["replace"] == pytest.approx((90.92 + 80.08 + 69.20) / 3, abs=0.01)
    assert found["mean"] == pytest.approx(np.mean(list(published.values())), abs=0.01)


@pytest.fixture
def filled(folder):
    """Two items a subset; the image of the second is missing in swap_obj."""
    for number, subset in enumerate(sugarcrepe.SUBSETS):
        right = number % 2 == 0
        folder.json(
            f"sugarcrepe/data/{subset}.json",
            {
                "0": item("000000000001.jpg", "red", "blue"),
                "7": item(
                    "000000000099.jpg" if subset == "swap_obj" else "000000000002.jpg",
                    "blue" if right else "green",
                    "green" if right else "blue",
                ),
            },
        )
        if not subset.startswith("add"):
            folder.json(
                f"sugarcrepe_pp/data/{subset}.json",
                [
                    {"id": 0, **item("000000000001.jpg", "red", "blue"), "caption2": "so red"},
                    {"id": 1, **item("000000000002.jpg", "blue", "red"), "caption2": "green"},
                ],
            )
    folder.image("coco/val2017/000000000001.jpg", "red")
    folder.image("coco/val2017/000000000002.jpg", "blue")
    return folder


def item(name, caption, negative):
    return {"filename": name, "caption": caption, "negative_caption": negative}


def test_sugarcrepe_end_to_end(filled, run, fake):
    found = run(sugarcrepe.BENCHMARK, fake.Predictor())
    values = {name: metric.value for name, metric in found.metrics.items()}
    # Odd subsets have one item of two right; swap_obj has lost the wrong one.
    expected = {s: 100.0 if i % 2 == 0 else 50.0 for i, s in enumerate(sugarcrepe.SUBSETS)}
    expected["swap_obj"] = 100.0
    for subset in sugarcrepe.SUBSETS:
        assert values[subset] == expected[subset], subset
    assert values["replace"] == pytest.approx((100 + 50 + 100) / 3)
    assert values["swap"] == pytest.approx((100 + 100) / 2)
    assert values["mean"] == pytest.approx(np.mean(list(expected.values())))
    assert found.left_out == {"missing image": ("swap_obj/7 (000000000099.jpg)",)}
    swap = found.metrics["swap_obj"]
    assert (swap.items, swap.total, swap.coverage) == (1, 2, 0.5)
    assert found.metrics["mean"].total == 14
    # Items of one image are one cluster.
    assert len(np.unique(found.items.clusters)) == 2
    worst = int(np.argmin(found.items.margin))
    assert found.items.outcomes["right"][worst] == 0
    assert found.items.texts[worst] == ("green", "blue")


def test_a_constant_scorer_gets_nothing(filled, values, fake):
    assert set(values(sugarcrepe.BENCHMARK, fake.Constant()).values()) == {0.0}
    assert set(values(sugarcrepe.PLUS, fake.Constant()).values()) == {0.0}


def test_plus_needs_both_positives(filled, values):
    found = values(sugarcrepe.PLUS)
    # The second item's other caption says green: the image is nearer to neither than to red.
    assert found["i2t/mean"] == 50 and found["i2t/swap_att"] == 50
    assert found["tot/mean"] == 50


def test_plus_by_hand():
    image = np.float32([[[3, 2, 1]], [[3, 1, 2]], [[2, 3, 2]], [[1, 1, 0]]])
    text = np.zeros((4, 3, 3), np.float32)
    for n, (p, a, b) in enumerate([(0.9, 0.8, 0.7), (0.9, 0.9, 0.1), (0.5, 0.1, 0.6), (1, 0, 0)]):
        text[n, 0, 1], text[n, 0, 2], text[n, 1, 2] = p, a, b
    found = sugarcrepe._outcomes_plus(Scores(image, text))
    assert found["i2t"].tolist() == [True, False, False, True]
    assert found["tot"].tolist() == [True, False, False, True]


def test_damaged_annotations_say_what_is_wrong(filled, folder):
    folder.json("sugarcrepe/data/add_att.json", {"0": {"filename": "a.jpg", "caption": "x"}})
    with pytest.raises(ValueError, match=r"add_att.json has an item without 'negative_caption'"):
        sugarcrepe.BENCHMARK.open(folder.path)
    folder.json("sugarcrepe/data/add_att.json", [1])
    with pytest.raises(ValueError, match="holds a list"):
        sugarcrepe.BENCHMARK.open(folder.path)
    folder.text("sugarcrepe/data/add_att.json", "{")
    with pytest.raises(ValueError, match="download it again"):
        sugarcrepe.BENCHMARK.open(folder.path)


def test_missing_parts_are_told_apart(folder, filled):
    with pytest.raises(MissingData, match="no SugarCrepe annotations"):
        sugarcrepe.BENCHMARK.open(folder.path / "sugarcrepe_pp")
    for name in ("1", "2"):
        (folder.path / f"coco/val2017/00000000000{name}.jpg").unlink()
    with pytest.raises(MissingData, match="none of its 3 images"):
        sugarcrepe.BENCHMARK.open(folder.path)


def test_the_images_may_be_a_tar_and_one_may_not_decode(filled, folder, run, fake):
    first = (folder.path / "coco/val2017/000000000001.jpg").read_bytes()
    folder.tar("coco_some.tar", {"000000000001.jpg": first, "x/000000000002.jpg": b"no image"})
    for name in ("1", "2"):
        (folder.path / f"coco/val2017/00000000000{name}.jpg").unlink()
    found = run(sugarcrepe.BENCHMARK, fake.Predictor())
    assert {reason: len(keys) for reason, keys in found.left_out.items()} == {
        "missing image": 1,
        "unreadable image": 6,
    }
    assert found.metrics["mean"].items == 7 and found.metrics["mean"].value == 100


def test_the_images_at_hand(shared, fake):
    model = EvaluatedModel("m", fake.Constant())
    data = sugarcrepe.BENCHMARK.open(shared / "data")
    assert len(data) == 7511
    found = sugarcrepe.BENCHMARK.run(model, data)
    assert found.metrics["mean"].value == 0
    assert 1000 < found.metrics["mean"].items < 1500
    assert len(sugarcrepe.PLUS.open(shared / "data")) == 4757

"""Retrieval on Karpathy's splits, BLIP's JSON and tars."""

import json

import numpy as np
import pytest

from ccl_jax.evaluation.benchmarks import karpathy, retrieval
from ccl_jax.evaluation.benchmarks.files import MissingData
from ccl_jax.evaluation.models import EvaluatedModel


def entry(name, split, *captions, **more):
    sentences = [{"raw": caption} for caption in captions]
    return {"filename": name, "split": split, "sentences": sentences, **more}


@pytest.fixture
def coco(folder):
    folder.json(
        "coco/dataset_coco.json",
        {
            "images": [
                entry(
                    "COCO_val2014_000000000001.jpg", "test", "red ", "so red", filepath="val2014"
                ),
                entry("COCO_val2014_000000000002.jpg", "test", "blue", "red", filepath="val2014"),
                entry("COCO_val2014_000000000003.jpg", "test", "green", filepath="val2014"),
                entry("COCO_train2014_000000000004.jpg", "restval", "blue", filepath="train2014"),
                entry("COCO_val2014_000000000005.jpg", "test", *["red"] * 7, filepath="val2014"),
            ]
        },
    )
    folder.image("coco/val2014/COCO_val2014_000000000001.jpg", "red")
    folder.image("coco/val2017/000000000002.jpg", "blue")  # as 2017 calls it
    folder.image("coco/train2014/COCO_train2014_000000000004.jpg", "blue")
    return folder


def test_karpathys_test_split(coco, run, fake):
    split = karpathy.read_split(coco.path, "coco")
    assert [len(item.captions) for item in split.images] == [2, 2, 1, 5]
    assert split.images[0].captions[0] == "red"
    found = run(retrieval.COCO, fake.Predictor())
    values = {name: metric.value for name, metric in found.metrics.items()}
    # Image 2's caption "red" ties with image 1's own.
    assert values["image_to_text_recall@1"] == 50
    assert values["text_to_image_recall@1"] == 75
    assert set(values) == {
        f"{d}_recall@{k}" for d in ("image_to_text", "text_to_image") for k in (1, 5, 10)
    }
    assert found.left_out == {
        "missing image": ("COCO_val2014_000000000003.jpg", "COCO_val2014_000000000005.jpg")
    }
    images, texts = (found.metrics[f"{d}_recall@1"] for d in ("image_to_text", "text_to_image"))
    assert (images.items, images.total, texts.items, texts.total) == (2, 4, 4, 10)
    assert len(texts.sums) == 2  # captions of one image are one cluster
    assert found.items.margin.tolist() == [-1, 0]
    assert found.arrays["image_to_text_rank"].tolist() == [1, 0]
    assert found.arrays["text_to_image_rank"].shape == (4,)


def test_the_training_split_has_the_rest_of_val(coco):
    (item,) = karpathy.read_split(coco.path, "coco", "train").images
    assert item.image is not None


def test_blips_json(folder, values):
    folder.json(
        "flickr30k/flickr30k_test.json",
        [
            {"image": "flickr30k-images/1.jpg", "caption": ["red", "red red"]},
            {"image": "flickr30k-images/2.jpg", "caption": ["blue"]},
        ],
    )
    folder.image("flickr30k/flickr30k-images/1.jpg", "red")
    folder.image("flickr30k/flickr30k-images/2.jpg", "blue")
    assert set(values(retrieval.FLICKR30K).values()) == {100}


def test_tars_and_their_development_split(folder, run, fake):
    def record(colour, *captions):
        return folder.encoded(colour), json.dumps({"captions": captions}).encode()

    members = {}
    for key, (image, text) in {
        "a": record("red", "red", " "),
        "b": record("blue", "blue"),
        "c": (b"no image", json.dumps({"captions": ["green"]}).encode()),
    }.items():
        members |= {f"{key}.jpg": image, f"{key}.json": text}
    folder.tar("flickr8k_112_dev-00000.tar", members)
    found = run(retrieval.FLICKR8K, fake.Predictor())
    assert {metric.value for metric in found.metrics.values()} == {100}
    assert found.settings["split"] == "dev"
    assert found.left_out == {"unreadable image": ("c.jpg",)}
    folder.tar("flickr8k_112_dev-00000.tar", {"a.jpg": folder.encoded("red")})
    with pytest.raises(ValueError, match="no a.json with a list of captions"):
        retrieval.FLICKR8K.open(folder.path)
    folder.bytes("flickr8k_112_dev-00000.tar", b"x" * 1000)
    with pytest.raises(ValueError, match="plain tar"):
        retrieval.FLICKR8K.open(folder.path)


def test_nothing_there(tmp_path, coco):
    with pytest.raises(MissingData, match=r"flickr8k/dataset_flickr8k.json"):
        retrieval.FLICKR8K.open(tmp_path)
    for path in coco.path.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(MissingData, match="none of the 4 images"):
        retrieval.COCO.open(coco.path)
    coco.json("coco/dataset_coco.json", {"images": [{"filename": "x"}]})
    with pytest.raises(ValueError, match="without 'split'"):
        retrieval.COCO.open(coco.path)


def test_flickr8k_at_hand(shared, fake):
    split = retrieval.FLICKR8K.open(shared / "data")
    assert (len(split.images), split.name) == (1000, "dev")
    assert {len(item.captions) for item in split.images} == {5}
    found = retrieval.FLICKR8K.run(EvaluatedModel("m", fake.Constant()), split)
    assert {metric.value for metric in found.metrics.values()} == {0}
    assert np.unique(found.metrics["text_to_image_recall@1"].counts).tolist() == [5]

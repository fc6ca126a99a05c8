"""Labelled folders, tars and TFDS: classes, prompts, zero-shot accuracy and probes."""

import numpy as np
import pytest

from ccl_jax.evaluation.benchmarks import class_sets, zero_shot
from ccl_jax.evaluation.benchmarks.files import MissingData
from ccl_jax.evaluation.models import EvaluatedModel


def test_prompts_are_openais():
    sets = class_sets.prompts()
    assert len(sets) == 27
    assert (len(sets["ImageNet1k"]["classes"]), len(sets["ImageNet1k"]["templates"])) == (1000, 80)
    assert sets["ImageNet1k"]["classes"][0] == "tench"
    assert "itap of a {}." in sets["ImageNet1k"]["templates"]
    assert all("{}" in t for s in sets.values() for t in s["templates"])


def test_class_names_follow_the_prompts():
    wordnet = [f"n{i:08}" for i in range(1000)]
    classes, templates, source = class_sets.described("imagenet", wordnet)
    assert (classes[1], len(templates), "80" in source) == ("goldfish", 80, True)
    classes, templates, _ = class_sets.described("oxford_iiit_pet", ["Abyssinian", "egyptian_mau"])
    assert classes == ("Abyssinian", "Egyptian Mau")
    assert templates == ("a photo of a {}, a type of pet.",)
    classes, templates, _ = class_sets.described("mine", ["old_shoe", "new shoe"])
    assert (classes, templates) == (("old shoe", "new shoe"), ("a photo of a {}.",))


@pytest.fixture
def predictor(fake):
    """Knows colours before a full stop, too."""

    class Predictor(fake.Predictor):
        def texts(self, texts):
            return super().texts([text.rstrip(".") for text in texts])

    return Predictor()


@pytest.fixture
def colours(folder):
    """Three classes; one test image of green looks blue; red has the most to train on."""
    root = "classification/colours"
    for split, counts in (("test", (2, 1, 2)), ("train", (6, 5, 5))):
        for colour, count in zip(("red", "green", "blue"), counts, strict=True):
            for i in range(count):
                folder.image(f"{root}/{split}/{colour}/{i}.png", colour)
    folder.image(f"{root}/test/green/odd.png", "blue")
    return folder


def test_zero_shot_on_folders(colours, run, fake, predictor):
    colours.bytes("classification/colours/test/red/bad.png", b"no image")
    found = run(zero_shot.ZERO_SHOT, predictor)
    top1 = found.metrics["colours/top1"]
    assert top1.value == pytest.approx(100 * 5 / 6)
    assert (top1.items, top1.total, top1.chance) == (6, 7, pytest.approx(100 / 3))
    assert "colours/top5" not in found.metrics  # of three classes every one is among five
    assert found.left_out == {"unreadable image": ("colours/bad.png",)}
    worst = int(np.argmin(found.items.margin))
    assert found.items.keys[worst] == "colours/odd.png"
    assert found.items.texts[worst] == ("green", "blue")
    assert run(zero_shot.ZERO_SHOT, fake.Constant()).metrics["colours/top1"].value == 0


def test_probes(colours, run, fake):
    found = run(zero_shot.LINEAR_PROBE, fake.Predictor())
    for name in ("linear", "1_shot", "4_shot"):
        assert found.metrics[f"colours/{name}"].value == pytest.approx(100 * 5 / 6), name
    assert "colours/16_shot" not in found.metrics  # there are not so many
    assert run(zero_shot.LINEAR_PROBE, fake.Constant()).metrics["colours/1_shot"].value == 0


def test_an_empty_class_is_named(colours, run):
    (colours.path / "classification/colours/test/yellow").mkdir()
    with pytest.raises(ValueError, match=r"yellow holds no image \(1 of 4 classes"):
        zero_shot.ZERO_SHOT.open(colours.path)


def test_a_class_in_training_alone_is_named(colours):
    colours.image("classification/colours/train/white/1.png", "red")
    with pytest.raises(ValueError, match="'white' has training images but no test"):
        zero_shot.LINEAR_PROBE.open(colours.path)
    assert not zero_shot.ZERO_SHOT.open(colours.path)[0].train  # it does not look for any


def test_one_set_that_cannot_be_used_leaves_the_others(colours, predictor):
    (colours.path / "classification/colours/test/yellow").mkdir()
    for number in range(2):
        colours.image(f"classification/fine/test/red/{number}.png", "red")
        colours.image(f"classification/fine/test/blue/{number}.png", "blue")
    colours.text("classification/cut.tar", "no tar")
    sets = zero_shot.ZERO_SHOT.open(colours.path)
    found = zero_shot.ZERO_SHOT.run(EvaluatedModel("m", predictor), sets)
    assert list(found.metrics) == ["fine/top1"] and found.metrics["fine/top1"].value == 100
    reasons = {name: reason for reason, (name,) in found.left_out.items()}
    assert set(reasons) == {"colours", "cut"} and "yellow holds no image" in reasons["colours"]
    with pytest.raises(ValueError, match="yellow holds no image"):  # a run ends at its start
        zero_shot.ZERO_SHOT.bounded(sets, 10)


def test_any_folder_of_classes(folder, run, predictor):
    for colour in ("red", "blue"):
        folder.image(f"classification/plain/{colour}/deep/1.png", colour)
    assert run(zero_shot.ZERO_SHOT, predictor).metrics["plain/top1"].value == 100
    # A test split without labels, as ImageNet's, is no split of classes.
    for colour in ("red", "blue"):
        folder.image(f"imagenet/val/{colour}/1.png", colour)
    folder.image("imagenet/test/1.png", "red")
    names = {data.name: len(data.test) for data in class_sets.find_class_sets(folder.path)}
    assert names == {"imagenet": 2, "plain": 2}


def test_a_tar(folder):
    folder.tar(
        "cifar10_small.tar",
        {
            f"{split}/{name}/{i}.jpg": folder.encoded(colour)
            for split in ("test", "train")
            for name, colour in (("ship", "blue"), ("frog", "green"))
            for i in range(2)
        },
    )
    folder.tar("others.tar", {"test/a/1.jpg": b""})  # of no known set
    (found,) = class_sets.find_class_sets(folder.path, train=True)
    assert found.name == "cifar10" and found.classes == ("frog", "ship")
    assert len(found.templates) == 18
    assert (len(found.test), len(found.train)) == (4, 4)


def test_nothing_there(tmp_path, folder):
    with pytest.raises(MissingData, match="no labelled images"):
        zero_shot.ZERO_SHOT.open(tmp_path)
    folder.image("classification/x/test/a/1.png", "red")
    with pytest.raises(MissingData, match="training images"):
        zero_shot.LINEAR_PROBE.open(folder.path)


@pytest.mark.slow
def test_tfds_by_name(folder, run, predictor):
    """A labelled set as TFDS prepares it: two versions, and a test split without labels."""
    tfds = pytest.importorskip("tensorflow_datasets")
    tfds.disable_progress_bar()
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["red", "blue"])}
    )
    pixels = [np.full((32, 32, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255))]

    class Hues(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            splits = {"train": 4, "validation": self.count, "test": 2}
            return {name: self._generate_examples(name, n) for name, n in splits.items()}

        def _generate_examples(self, split, count):
            for i in range(count):
                yield i, {"image": pixels[i % 2], "label": -1 if split == "test" else i % 2}

    for version, Hues.count in (("1.9.0", 2), ("1.10.0", 6)):
        Hues.VERSION = tfds.core.Version(version)
        Hues(data_dir=str(folder.path / "tfds")).download_and_prepare()
    (found,) = class_sets.find_class_sets(folder.path, train=True)
    assert (found.name, found.classes) == ("hues", ("red", "blue"))
    assert (len(found.test), len(found.train)) == (6, 4)
    assert "validation" in found.test[0][0].name
    assert run(zero_shot.ZERO_SHOT, predictor).metrics["hues/top1"].value == 100


def test_cifar10_at_hand(shared):
    (found,) = class_sets.find_class_sets(shared / "data", train=True)
    assert (len(found.test), len(found.train), len(found.classes)) == (1000, 3000, 10)

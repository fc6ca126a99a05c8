"""Segmentation in the published layouts: which pixels count, background, pointing, coverage."""

import numpy as np
import pytest

from ccl_jax.data.records import BadRecord
from ccl_jax.evaluation.benchmarks import mask_sets, segmentation
from ccl_jax.evaluation.benchmarks.files import MissingData
from ccl_jax.evaluation.models import EvaluatedModel
from ccl_jax.evaluation.segmentation import IGNORE

HALF = np.zeros((32, 32), np.uint8)
HALF[:, 16:] = 1


@pytest.fixture
def named(monkeypatch):
    """Data sets whose classes are colours."""
    names = {
        "voc": ["red", "green", "blue"] + [f"class {i}" for i in range(17)],
        "context": ["red", "blue"] + [f"class {i}" for i in range(57)],
        "coco_stuff": ["red", "green", "blue"] + [f"class {i}" for i in range(168)],
        "ade20k": ["red", "blue"] + [f"class {i}" for i in range(148)],
    }
    monkeypatch.setattr(mask_sets, "_classes", lambda: names)


def fill_voc(folder):
    """Image 1: red left, blue right, with a border of void; image 2 is half background."""
    root = "voc/VOC2012"
    folder.text(f"{root}/ImageSets/Segmentation/val.txt", "1\n2\n3\n")
    for key, (left, right) in {"1": ("red", "blue"), "2": ("green", "green")}.items():
        folder.image(f"{root}/JPEGImages/{key}.jpg", left)
        path = folder.path / f"{root}/JPEGImages/{key}.jpg"
        from PIL import Image

        pixels = np.zeros((32, 32, 3), np.uint8)
        colours = {"red": 0, "green": 1, "blue": 2}
        pixels[:, :16, colours[left]] = pixels[:, 16:, colours[right]] = 255
        Image.fromarray(pixels).save(path, "PNG")
    one = np.where(HALF, 3, 1)
    one[:4] = 255
    folder.mask(f"{root}/SegmentationClass/1.png", one)
    folder.mask(f"{root}/SegmentationClass/2.png", np.where(HALF, 2, 0))


def test_voc(folder, named, run, fake):
    fill_voc(folder)
    found = run(segmentation.PLAIN, fake.Predictor())
    values = {name: metric.value for name, metric in found.metrics.items()}
    assert values["voc/patch/miou"] == pytest.approx(100)
    assert values["voc/patch/pixel_accuracy"] == pytest.approx(100)
    # Every red patch is as red as any other: a tie points nowhere.
    assert values["voc/patch/pointing"] == 0
    metric = found.metrics["voc/patch/miou"]
    # Three classes occur in two images of three.
    assert metric.sums.shape == (2, 3) and (metric.items, metric.total) == (2, 3)
    assert found.left_out == {"missing image": ("voc/3.jpg",)}
    # The unlabelled half of image 2 is green, too, and not seen as background.
    assert 0 < values["voc/patch/miou_with_background"] < 100


def test_pointing(folder, named, run, fake):
    """The reddest patch is on red's mask, the bluest is not on blue's."""
    from PIL import Image

    root = "ADEChallengeData2016"
    folder.image(f"{root}/images/validation/1.jpg", "green")
    pixels = np.full((32, 32, 3), 90, np.uint8)
    pixels[8:16, 0:8] = (255, 0, 0)
    pixels[24:32, 8:16] = (0, 0, 255)
    Image.fromarray(pixels).save(folder.path / f"{root}/images/validation/1.jpg", "PNG")
    folder.mask(f"{root}/annotations/validation/1.png", 1 + HALF)
    found = run(segmentation.PLAIN, fake.Predictor())
    assert found.metrics["ade20k/patch/pointing"].value == 50
    assert found.metrics["ade20k/patch/pointing"].items == 2


def test_a_constant_scorer_gets_nothing(folder, named, run, fake):
    fill_voc(folder)
    found = run(segmentation.PLAIN, fake.Constant())
    for name in ("miou", "pixel_accuracy", "pointing"):
        assert found.metrics[f"voc/patch/{name}"].value == 0, name
    # Its classes are alike everywhere, which is what background is taken to be: 2 images, 1/4.
    assert found.metrics["voc/patch/miou_with_background"].value < 15


def test_entropy_rule_by_hand():
    sure, unsure = np.zeros(5), np.zeros(5)
    sure[0] = 1
    maps = np.stack([sure, unsure])[None]  # log 5 = 1.609 nats is above the limit, 0 is below
    found = segmentation._is_background(maps, (1, 2))
    assert found.tolist() == [[False, True]]
    maps = np.stack([sure[:4], unsure[:4]])[None]  # log 4 = 1.386 is not
    assert not segmentation._is_background(maps, (1, 2)).any()


def test_the_other_layouts(folder, named, run, fake):
    folder.image("context/VOC2010/JPEGImages/1.jpg", "red")
    folder.mask("context/VOC2010/SegmentationClassContext/1.png", HALF)
    folder.text("context/VOC2010/ImageSets/SegmentationContext/val.txt", "1")
    folder.image("coco_stuff/images/val2017/1.jpg", "blue")
    folder.mask("coco_stuff/annotations/val2017/1_labelTrainIds.png", np.where(HALF, 2, 255))
    folder.image("ADEChallengeData2016/images/validation/ADE_1.jpg", "blue")
    folder.mask("ADEChallengeData2016/annotations/validation/ADE_1.png", 2 * HALF)
    found = run(segmentation.PLAIN, fake.Predictor())
    for name in ("context", "coco_stuff", "ade20k"):
        assert found.metrics[f"{name}/patch/miou"].value == 100, name
        assert found.metrics[f"{name}/patch/pixel_accuracy"].counts.sum() == 512


def test_label_ids_of_coco_stuff(folder, named):
    """The pixel maps number 182 classes, of which 11 were never annotated."""
    folder.image("coco/val2017/1.jpg", "blue")
    folder.mask("coco_stuff/stuffthingmaps/val2017/1.png", [[0, 10, 12, 91, 181, 255, 11]])
    (found,) = mask_sets.find_mask_sets(folder.path)
    assert len(found.ids) == 171 and found.images[0].image is not None
    truth = found.truth(found.images[0])
    # person, fire hydrant, stop sign, banner (the first stuff), wood; void; a gap.
    assert truth.tolist() == [[0, 10, 11, 80, 170, IGNORE, IGNORE]]


def test_class_lists_have_their_published_sizes():
    sizes = {name: len(values) for name, values in mask_sets._classes().items() if name != "source"}
    assert sizes == {"voc": 20, "context": 59, "coco_stuff": 171, "ade20k": 150}
    for name in sizes:
        assert len(set(mask_sets._classes()[name])) == sizes[name]
    assert mask_sets._classes()["coco_stuff"][80] == "banner"
    assert mask_sets._classes()["ade20k"][149] == "flag"


def test_names_of_stuff_are_words():
    names = ("floor-wood", "sky-other", "sky-other-merged", "door-stuff", "tree-merged", "sand")
    found = [mask_sets._readable(name) for name in names]
    assert found == ["wood floor", "sky", "sky", "door", "tree", "sand"]


def test_a_tar_and_a_mask_that_cannot_be_read(folder, run, fake):
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.where(HALF, 7, 0).astype(np.uint8)).save(file, "PNG")
    yaml = b"classes:\n  0: unlabeled\n  7: red\n  9: blue\n"
    folder.tar(
        "coco_seg2.tar",
        {
            "classes.yaml": yaml, "a/1.jpg": folder.encoded("red"), "a/1.png": file.getvalue(),
            "a/2.jpg": folder.encoded("red"), "a/2.png": b"no mask",
        },
    )  # fmt: skip
    found = run(segmentation.PLAIN, fake.Predictor())
    assert found.metrics["coco_seg2/patch/miou"].value == 100
    assert found.left_out == {"unreadable mask": ("coco_seg2/a/2.jpg",)}
    (data,) = mask_sets.find_mask_sets(folder.path)
    with pytest.raises(BadRecord, match="unreadable mask"):
        data.truth(data.images[1])
    folder.tar("coco_seg2.tar", {"a/1.jpg": b"", "a/1.png": b""})
    with pytest.raises(ValueError, match="no classes.yaml"):
        segmentation.PLAIN.open(folder.path)


def test_a_damaged_tar_leaves_the_other_sets(folder, named, fake):
    fill_voc(folder)
    folder.text("my_seg.tar", "no tar")
    sets = segmentation.PLAIN.open(folder.path)
    found = segmentation.PLAIN.run(EvaluatedModel("m", fake.Predictor()), sets)
    assert found.metrics["voc/patch/miou"].value == pytest.approx(100)
    (reason,) = (reason for reason, names in found.left_out.items() if names == ("my_seg",))
    assert "not a whole, plain tar" in reason
    with pytest.raises(ValueError, match="not a whole, plain tar"):
        segmentation.PLAIN.bounded(sets, 10)


def test_nothing_there(tmp_path):
    with pytest.raises(MissingData, match="no masks"):
        segmentation.PLAIN.open(tmp_path)


def test_a_finer_grid_comes_from_the_model(folder, named, fake):
    fill_voc(folder)

    class Fine(fake.Predictor):
        grid = (8, 8)

        def image_tokens(self, images, kind=None):
            n = len(images)
            patches = images.reshape(n, 8, 4, 8, 4, 3).mean(axis=(2, 4)).reshape(n, 64, 3)
            return patches / np.linalg.norm(patches, axis=-1, keepdims=True)

    class Coarse(fake.Predictor):
        class model:
            image = {"patch_size": 8}
            patch_embedder = False

    asked = []
    restride = lambda stride: asked.append(stride) or Fine()  # noqa: E731
    model = EvaluatedModel("m", Coarse(), restride=restride)
    found = segmentation.STRIDE.run(model, segmentation.STRIDE.open(folder.path))
    assert asked == [2] and found.settings["grid"] == "8 x 8"
    with pytest.raises(ValueError, match="patch stride"):
        segmentation.STRIDE.run(EvaluatedModel("m", Coarse()), [])

"""The scenes: deterministic, and true in every annotation."""

import collections
import io
import random
import re

import numpy as np
import pytest
from PIL import Image

from ccl_jax.data import scene_captions, scene_drawing, scene_examples
from ccl_jax.data.records import Source
from ccl_jax.data.scene_captions import PAIR_CATEGORIES, STYLES
from ccl_jax.data.scene_drawing import COLOR_NAMES, COLORS, HELD_OUT, SHAPES, SceneObject
from ccl_jax.data.scenes import ScenesSource

SPLITS = ("train", "validation", "compositional", "objects")
COUNT = 150
OPENINGS = r"(?:a photo of |there is |the image shows )?"
RELATIONS = {
    "left of": lambda a, b: a.x < b.x,
    "right of": lambda a, b: a.x > b.x,
    "above": lambda a, b: a.y < b.y,
    "below": lambda a, b: a.y > b.y,
}


@pytest.fixture(scope="module")
def examples():
    return {
        split: [scene_examples.make_example(0, split, i) for i in range(COUNT)] for split in SPLITS
    }


def scene(seed, held_out=False):
    """Objects, image and mask of one scene, and the generator after it."""
    rng = random.Random(seed)
    pairs = scene_drawing.sample_pairs(rng, 2 + seed % 3, held_out=held_out)
    objects = scene_drawing.sample_objects(rng, 48, pairs)
    return objects, *scene_drawing.draw_scene(rng, objects, 48), rng


def pixels(file):
    file.seek(0)
    return np.asarray(Image.open(io.BytesIO(file.read())))


def describes(phrase, obj: SceneObject):
    """Whether every word of a phrase holds for an object."""
    article, *words = phrase.split()
    assert article == ("an" if words[0][0] in "aeiou" else "a")
    assert words[-1] in SHAPES
    return set(words) <= {obj.color, obj.shape, obj.size, obj.texture}


def is_true(caption, objects):
    """Reads a caption and checks it against the scene, by a grammar of its own."""
    related = re.fullmatch(r"(.+) (left of|right of|above|below) (.+)", caption)
    if related:
        one, relation, other = related.groups()
        return any(
            describes(one, a) and describes(other, b) and RELATIONS[relation](a, b)
            for a in objects
            for b in objects
        )
    said = re.split(r", | and ", re.fullmatch(OPENINGS + r"(an? .+)", caption).group(1))
    return all(any(describes(phrase, obj) for obj in objects) for phrase in said)


def test_the_reader_tells_true_from_false():
    red = SceneObject("red", "circle", "small", "plain", 5, 9, 3)
    blue = SceneObject("blue", "star", "large", "dotted", 30, 9, 3)
    for caption in ("a red circle left of a blue star", "there is a large blue star and a circle"):
        assert is_true(caption, (red, blue))
    for caption in ("a red circle right of a blue star", "a red circle and a small blue star"):
        assert not is_true(caption, (red, blue))


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_example_twice(split, examples):
    again = scene_examples.make_example(0, split, 7)
    first = examples[split][7]
    assert again.keys() == first.keys()
    for name, value in again.items():
        if isinstance(value, io.BytesIO):
            assert value.getvalue() == first[name].getvalue()
        else:
            assert value == first[name]


def test_examples_differ_by_seed_split_and_index():
    drawn = [
        scene_examples.make_example(seed, split, index)["image"].getvalue()
        for seed in (0, 1)
        for split in SPLITS
        for index in range(4)
    ]
    assert len(set(drawn)) == len(drawn)


def test_pairs_held_out_of_training():
    # One colour for each shape and one shape for each colour.
    assert len({c for c, _ in HELD_OUT}) == len({s for _, s in HELD_OUT}) == len(HELD_OUT) == 8


def test_where_the_held_out_pairs_occur(examples):
    held_out = {
        split: [
            sum(scene_examples.CLASSES[label] in HELD_OUT for label in example["object_labels"])
            for example in examples[split]
        ]
        for split in SPLITS
    }
    assert set(held_out["train"]) == set(held_out["validation"]) == {0}
    assert set(held_out["compositional"]) == {1}
    # Every class in turn: 8 of 64.
    assert sum(held_out["objects"][:64]) == 8


def test_train_captions_never_name_a_held_out_pair(examples):
    names = {f"{color} {shape}" for color, shape in HELD_OUT}
    for example in examples["train"]:
        assert not any(name in caption for name in names for caption in example["captions"])


def test_numbers_of_objects(examples):
    for split in ("train", "validation", "compositional"):
        counts = {len(example["object_labels"]) for example in examples[split]}
        assert counts == {2, 3, 4}
    labels = [example["object_labels"] for example in examples["objects"][:64]]
    assert labels == [[i] for i in range(64)]


def test_captions_say_what_is_there():
    for seed in range(COUNT):
        objects, _, _, rng = scene(seed)
        captions = scene_captions.scene_captions(rng, objects)
        assert tuple(caption.style for caption in captions) == STYLES
        for caption in captions:
            assert is_true(caption.text, objects), caption
            positions = [caption.text.index(phrase) for phrase in caption.phrases]
            assert positions == sorted(positions)
            for phrase in caption.phrases:
                # A phrase is true of one object: colour and shape tell them apart.
                assert sum(describes(phrase, obj) for obj in objects) == 1, (phrase, objects)


def test_phrases_are_those_of_the_caption(examples):
    for split in SPLITS:
        for example in examples[split]:
            for caption, phrases in zip(example["captions"], example["phrases"], strict=True):
                # From an article to the next shape; only the opening has an article of its own.
                found = re.findall(rf"\ban? (?:\w+ )*?(?:{'|'.join(SHAPES)})\b", caption)
                assert [phrase.removeprefix("a photo of ") for phrase in found] == phrases


def test_false_captions_are_false_of_the_scene():
    seen = collections.Counter()
    for seed in range(COUNT):
        objects, _, _, rng = scene(seed, held_out=seed % 2 == 0)
        for pair in scene_captions.scene_pairs(rng, objects):
            assert is_true(pair.caption, objects), pair
            assert not is_true(pair.negative, objects), pair
            seen[pair.category] += 1
    assert seen.keys() == set(PAIR_CATEGORIES)
    assert min(seen.values()) > COUNT / 2


def test_no_swap_where_the_swapped_scene_is_there_too():
    kinds = [("red", "circle"), ("blue", "square"), ("blue", "circle"), ("red", "square")]
    for seed in range(20):
        rng = random.Random(seed)
        objects = scene_drawing.sample_objects(rng, 48, kinds)
        categories = {pair.category for pair in scene_captions.scene_pairs(rng, objects)}
        assert categories == set(PAIR_CATEGORIES) - {"swap_attribute"}


def test_swaps_use_the_words_of_the_caption():
    bag = lambda text: sorted(re.sub(r"\ban\b", "a", text).split())  # noqa: E731
    for seed in range(COUNT):
        objects, _, _, rng = scene(seed)
        for pair in scene_captions.scene_pairs(rng, objects):
            same = bag(pair.caption) == bag(pair.negative)
            assert same == pair.category.startswith("swap"), pair


def test_one_object_has_no_false_caption(examples):
    assert not any(example["pair_captions"] for example in examples["objects"] + examples["train"])


def test_masks_agree_with_objects():
    for seed in range(60):
        objects, _, mask, _ = scene(seed)
        assert mask.shape == (48, 48)
        assert set(np.unique(mask)) == set(range(len(objects) + 1))
        for k, obj in enumerate(objects, start=1):
            rows, columns = np.nonzero(mask == k)
            for places, centre in ((rows, obj.y), (columns, obj.x)):
                assert places.min() >= centre - obj.radius
                assert places.max() < centre + obj.radius
            # Even a thin moon covers a sixth of its window, no shape more than all of it.
            assert 1 / 6 < len(rows) / (2 * obj.radius) ** 2 < 0.85


def test_objects_have_their_colours():
    names = list(COLORS)
    palette = np.array([COLORS[name] for name in names], float)
    right = total = 0
    for seed in range(60):
        objects, image, mask, _ = scene(seed)
        for k, obj in enumerate(objects, start=1):
            # Stripes and dots darken: the brighter half of the pixels is bare paint.
            painted = image[mask == k].astype(float)
            bare = np.median(painted[painted.sum(1) >= np.median(painted.sum(1))], axis=0)
            right += names[abs(palette - bare).sum(1).argmin()] == obj.color
            total += 1
    assert right / total > 0.95


def test_objects_do_not_lie_on_each_other():
    for seed in range(60):
        objects, _, mask, _ = scene(seed)
        for k, obj in enumerate(objects, start=1):
            alone = scene_drawing.draw_scene(random.Random(0), (obj,), 48)[1]
            # Corners that touch may lose a pixel.
            assert (mask == k).sum() >= 0.95 * (alone > 0).sum()


def test_every_colour_shape_size_and_texture_occurs():
    drawn = [obj for seed in range(COUNT) for obj in scene(seed)[0]]
    for field, values in {
        "color": COLOR_NAMES,
        "shape": SHAPES,
        "size": scene_drawing.SIZE_NAMES,
        "texture": scene_drawing.TEXTURES,
    }.items():
        assert {getattr(obj, field) for obj in drawn} == set(values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "no split 'test'.*compositional"),
        ({"split": "train", "size": "tiny"}, "no size 'tiny'.*mini"),
    ],
)
def test_unknown_names_are_named(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ScenesSource(data_dir=str(tmp_path), **options)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    """Opens a split of the mini data set, drawn once."""
    folder = str(tmp_path_factory.mktemp("tfds"))
    return lambda split: ScenesSource(split, data_dir=folder, size="mini")


def test_the_builder_writes_every_split(mini):
    sources = {split: mini(split) for split in SPLITS}
    assert {split: len(source) for split, source in sources.items()} == {
        "train": 400,
        "validation": 20,
        "compositional": 20,
        "objects": 20,
    }
    for source in sources.values():
        assert isinstance(source, Source)
        assert len(source.class_names) == 64


@pytest.mark.parametrize("split", SPLITS)
def test_records_are_the_examples(mini, split):
    source = mini(split)
    for index in (0, 3, 19):
        example = scene_examples.make_example(0, split, index)
        # TFDS shuffles: the record is found by its image.
        (record,) = [
            source[i] for i in range(len(source)) if source[i].image == example["image"].getvalue()
        ]
        assert record.captions == tuple(example["captions"])
        assert record.phrases == tuple(map(tuple, example["phrases"]))
        extra = record.extra
        np.testing.assert_array_equal(extra["mask"], pixels(example["mask"]))
        assert extra["mask"].dtype == np.uint8
        assert extra["object_labels"] == tuple(example["object_labels"])
        assert extra["object_phrases"] == tuple(example["object_phrases"])
        pairs = (example[f"pair_{part}"] for part in ("categories", "captions", "negatives"))
        assert extra["pairs"] == tuple(zip(*pairs, strict=True))
        for label, phrase in zip(extra["object_labels"], extra["object_phrases"], strict=True):
            assert phrase.split(maxsplit=1)[1] == source.class_names[label]
        if split == "objects":
            assert extra["label"] == example["object_labels"][0]
        else:
            assert "label" not in extra


def test_sample_ids_are_stable(mini):
    one, other = mini("train"), mini("train")
    assert [one[i].sample_id for i in range(400)] == list(range(400))
    assert one.name == "scenes-mini/train"
    for i in (0, 17, 399):
        assert (one[i].key, one[i].image) == (other[i].key, other[i].image)
    assert len({one[i].key for i in range(400)}) == 400

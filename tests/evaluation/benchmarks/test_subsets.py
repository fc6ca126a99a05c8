"""Parts of benchmarks: the same at every call, from every group, families whole."""

import collections

import numpy as np
import pytest

from ccl_jax.evaluation.benchmarks import segmentation, subsets, zero_shot
from ccl_jax.evaluation.benchmarks.class_sets import ClassSet
from ccl_jax.evaluation.benchmarks.cola import SINGLE
from ccl_jax.evaluation.benchmarks.karpathy import Captioned, Split
from ccl_jax.evaluation.benchmarks.mask_sets import Masked, MaskSet
from ccl_jax.evaluation.benchmarks.matching import Item, MatchingBenchmark
from ccl_jax.evaluation.benchmarks.retrieval import FLICKR8K
from ccl_jax.evaluation.results import Image


def image(name):
    return Image(f"{name}.png", f"/at/{name}", lambda: b"")


def take(words, count, size=1):
    return subsets.spread(words, count, key=lambda w: w[: len(w) - size + 1], group=lambda w: w[0])


def test_groups_get_their_share_and_at_least_one():
    words = [f"a{i}" for i in range(900)] + [f"b{i}" for i in range(90)] + ["c0"]
    found = take(words, 100)
    assert len(found) == 100 and found == sorted(found, key=words.index)
    counts = collections.Counter(word[0] for word in found)
    assert counts["c"] == 1 and counts["b"] in (9, 10)
    assert [word[0] for word in take(words, 3)] == ["a", "b", "c"]
    assert take(words, 2000) == words


def test_the_order_of_things_does_not_matter_and_larger_parts_hold_smaller_ones():
    words = [f"{group}{i}" for group in "ab" for i in range(200)]
    small, large = set(take(words, 30)), set(take(words, 90))
    assert set(take(words[::-1], 30)) == small < large
    assert small != set(words[:15] + words[200:215])  # not the first ones


def test_things_of_one_key_stay_together():
    words = [f"a{i:02}{end}" for i in range(40) for end in "wxyz"]
    found = take(words, 22, size=2)
    assert len(found) == 20 and set(collections.Counter(w[:3] for w in found).values()) == {4}
    assert len(take(words, 1, size=2)) == 4


def test_matching_takes_items_with_images_and_whole_families():
    items = [
        Item(f"{g}/{i}", g, (None if i % 3 == 0 else image(i),), (f"{i}",), ("x", "y"))
        for g in ("one", "two")
        for i in range(60)
    ]
    items += [
        Item(f"three/{i}", "three", (image(i),), (f"{i}",), ("x", "y"), family=f"f{i // 4}")
        for i in range(40)
    ]
    found = MatchingBenchmark("m", None, None, None).bounded(items, 30)
    assert 27 <= len(found) <= 30 and all(None not in item.images for item in found)
    assert {item.group for item in found} == {"one", "two", "three"}
    families = collections.Counter(item.family for item in found if item.family)
    assert set(families.values()) == {4}


def test_retrieval_keeps_the_captions_of_its_images():
    images = [Captioned(f"{i}", image(i) if i % 2 else None, ("a", "b")) for i in range(50)]
    found = FLICKR8K.bounded(Split(tuple(images), "test"), 10)
    assert len(found.images) == 10 and found.name == "test"
    assert all(one.image is not None and one.captions == ("a", "b") for one in found.images)


def test_classification_keeps_all_classes():
    rows = tuple((image(f"{label}-{i}"), label) for label in range(4) for i in range(30))
    sets = [ClassSet(n, tuple("abcd"), ("{}",), "", rows, rows[:80]) for n in ("x", "y")]
    for benchmark in (zero_shot.ZERO_SHOT, zero_shot.LINEAR_PROBE):
        for data in benchmark.bounded(sets, 40):
            assert data.classes == tuple("abcd") and len(data.test) == len(data.train) == 20
            assert set(collections.Counter(label for _, label in data.test).values()) == {5}


def test_masks_and_strides():
    images = tuple(Masked(image(i) if i % 2 else None, f"{i}", lambda: b"") for i in range(50))
    (found,) = segmentation.PLAIN.bounded([MaskSet("s", ("a",), {1: 0}, images)], 10)
    assert len(found.images) == 10 and all(one.image is not None for one in found.images)
    with pytest.raises(ValueError, match="too slow .* take 'segmentation'"):
        segmentation.STRIDE.bounded([], 10)


def test_single_objects_keep_rows_and_images_together():
    images = [(f"{i}", None if i == 3 else image(i)) for i in range(20)]
    present = np.eye(20, 5, dtype=bool)
    data = {"gqa": (list("abcde"), images, present, ~present)}
    labels, kept, right, hard = SINGLE.bounded(data, 6)["gqa"]
    rows = [int(name) for name, _ in kept]
    assert labels == list("abcde") and len(rows) == 6 and 3 not in rows
    np.testing.assert_array_equal(right, present[rows])
    np.testing.assert_array_equal(hard, ~present[rows])

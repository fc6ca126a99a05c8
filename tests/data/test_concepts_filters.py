"""Each filter drops what its name says, by that name, and leaves what is alike alone."""

import pytest

from ccl_jax.data.concepts import open_extractor


@pytest.mark.parametrize(
    "caption, dropped",
    [
        ("a dog in the background", {("the background", "generic place")}),
        ("a dog on the left side and a cat", {("the left side", "generic place")}),
        ("a dog in an area", {("an area", "generic place")}),
        ("a vase isolated on a white background", {("a white background", "generic place")}),
        ("a group of dogs in a field", {("a group", "count")}),
        ("a dog without a collar in a field", {("a collar", "absent")}),
        ("no people and a dog on grass", {("no people", "absent")}),
        ("a photo of a dog", {("a photo", "boilerplate")}),
        ("a portrait of a dog", {("a portrait", "boilerplate")}),
        ("free stock image with a dog", {("free stock image", "boilerplate")}),
        ("a dog looks at the camera", {("the camera", "boilerplate")}),
        ("a dog / courtesy of Jane Doe", {("jane doe", "boilerplate")}),
        ("a dog", {("a dog", "whole caption")}),
        ("a dog and a dog", {("a dog", "duplicate")}),
        ("a dog with two others", {("two others", "pronoun")}),
    ],
)
def test_what_is_dropped_has_the_name_of_its_filter(caption, dropped):
    (found,) = open_extractor()([caption])
    assert set(found.dropped) == dropped


@pytest.mark.parametrize(
    "caption, phrase",
    [
        ("a grassy area with a dog", "a grassy area"),
        ("a dog on his back on a mat", "his back"),
        ("a girl holds a framed photo of her dog and a cup", "a cup"),
        ("a portrait hangs over a sofa", "a portrait"),
        ("a camera lies on a sofa", "a camera"),
        ("a stock car on a track", "a stock car"),
        ("a large group on a hill", "a large group"),
    ],
)
def test_what_can_be_seen_stays(caption, phrase):
    assert phrase in open_extractor()([caption])[0].kept


def test_every_candidate_is_kept_or_dropped_once():
    caption = "a photo of a dog , a dog and a man in the background without a hat"
    (found,) = open_extractor()([caption])
    assert found.kept == ("a dog", "a man")
    names = [name for _, name in found.dropped]
    assert sorted(names) == ["absent", "boilerplate", "duplicate", "generic place"]

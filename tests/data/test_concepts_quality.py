"""Precision and recall on captions that a reader annotated, with a floor."""

import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))

import concepts_scores as scores  # noqa: E402

from ccl_jax.data.concepts import open_extractor  # noqa: E402

# Percent; measured are 96 to 98.
FLOOR = 93


@pytest.mark.parametrize("half", scores.HALVES)
def test_the_embedded_extractor_stays_above_its_floor(shared, half):
    examples = scores.read_annotations(half, str(shared / "data"))
    assert len(examples) == 100
    extractor = open_extractor("embedded")
    found = [extraction.kept for extraction in extractor([each.caption for each in examples])]
    for same in (scores.normalise, scores.head):
        percent = scores.score(examples, found, same)
        assert min(percent.values()) >= FLOOR, percent


def test_the_draw_is_the_one_that_was_annotated(shared):
    for half, drawn in scores.draw(str(shared / "data")).items():
        items = json.loads((scores.ANNOTATIONS / f"{half}.json").read_text(encoding="utf-8"))
        assert [(item["file"], item["key"], item["caption"]) for item in items] == drawn


def test_the_reader_copied_from_the_caption(shared):
    for half in scores.HALVES:
        for example in scores.read_annotations(half, str(shared / "data")):
            for phrase in example.phrases:
                assert phrase in example.caption.lower()


def test_scores_by_hand():
    examples = [
        scores.Example("", ("a red car", "the lake", "a man")),
        scores.Example("", ("a dog",)),
    ]
    found = [("the red car", "a big lake"), ("a dog", "dog", "a cat")]
    # Matched are "red car" and "dog"; given are four ("a dog" and "dog" are one), wanted four.
    assert scores.score(examples, found) == {"precision": 50, "recall": 50}
    # By the last word "lake" is right too.
    assert scores.score(examples, found, scores.head) == {"precision": 75, "recall": 75}
    lines = scores.mistakes(examples, found)
    assert "wrong: ['big lake'] missing: ['lake', 'man']" in lines[0]

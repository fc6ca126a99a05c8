"""Records to images: order, chunks, skipped records, messages."""

import collections
import dataclasses

import numpy as np
import pytest

from ccl_jax.evaluation import reading


def test_reads_in_order_and_counts_bad_records(fake):
    source = fake.Source([fake.plain(0, "red"), None, fake.plain(2, "blue")])
    images, records, skipped = reading.read_images(source, fake.Predictor())
    assert images.shape == (2, 32, 32, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(images[:, 5, 5], [[255, 0, 0], [0, 0, 255]])
    assert [record.key for record in records] == ["record-0", "record-2"]
    assert skipped == 1


def test_undecodable_bytes_are_skipped_too(fake):
    broken = dataclasses.replace(fake.plain(1, "red"), image=b"not an image")
    _, records, skipped = reading.read_images(
        fake.Source([broken, fake.plain(0, "red")]), fake.Predictor()
    )
    assert (len(records), skipped) == (1, 1)


def test_skipped_records_are_named_in_the_log(fake, monkeypatch):
    lines = []
    monkeypatch.setattr(
        reading.logging, "warning", lambda form, *values: lines.append(form % values)
    )
    reading.read_images(fake.Source([None, fake.plain(1, "red")]), fake.Predictor())
    assert any("bad-0" in line for line in lines)
    assert any("skipped 1 of 2" in line and "truncated" in line for line in lines)


def test_limit_and_chunks(fake):
    source = fake.Source([fake.plain(i, "red") for i in range(5)])
    sizes = [len(r) for _, r in reading.iterate_images(source, fake.Predictor(), chunk_size=2)]
    assert sizes == [2, 2, 1]
    assert len(reading.read_images(source, fake.Predictor(), limit=3)[1]) == 3
    assert len(reading.read_images(source, fake.Predictor(), limit=9)[1]) == 5


def test_wanted_passes_over_records(fake):
    source = fake.Source([fake.plain(i, "red") for i in range(4)])
    skipped = collections.Counter()
    chunks = reading.iterate_images(
        source, fake.Predictor(), wanted=lambda r: r.sample_id % 2 == 1, skipped=skipped
    )
    assert [r.sample_id for _, records in chunks for r in records] == [1, 3]
    assert not skipped


@pytest.mark.parametrize("records", [[], [None, None]])
def test_nothing_readable_raises(fake, records):
    with pytest.raises(ValueError, match="no image to evaluate"):
        reading.read_images(fake.Source(records), fake.Predictor())


def test_limit_below_one_raises(fake):
    with pytest.raises(ValueError, match="limit must be at least 1"):
        reading.read_images(fake.Source([fake.plain(0, "red")]), fake.Predictor(), limit=0)


def test_embed_texts_embeds_each_distinct_text_once(fake):
    predictor = fake.Predictor()
    embedded = reading.embed_texts(predictor, ["red", "blue", "red"])
    assert predictor.seen_texts == ["red", "blue"]
    np.testing.assert_array_equal(embedded, [[1, 0, 0], [0, 0, 1], [1, 0, 0]])
    with pytest.raises(ValueError, match="no text"):
        reading.embed_texts(predictor, [])


def test_missing_annotations_are_named(fake):
    source = fake.Source([])
    with pytest.raises(ValueError, match="record-0.*label.*choose"):
        reading.required_extra(fake.plain(0, "red"), "label", source, "choose another split")
    with pytest.raises(ValueError, match="class_names"):
        reading.class_names_of(source)

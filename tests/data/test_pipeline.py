"""Training batches over a source whose images, captions and phrases all tell their number."""

import collections
import dataclasses
import threading

import numpy as np
import pytest
from absl import logging
from numbered import OPTIONS, VERBS, Numbered, numbers, read, stream

from ccl_jax.data import packing
from ccl_jax.data.pipeline import PipelineOptions
from ccl_jax.data.records import BadRecord


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_shapes_and_types():
    (batch,) = stream(Numbered(20)).batches(0, 1)
    expected = {
        "image": ((8, 4, 4, 3), np.uint8),
        "text": ((8, 8), np.int32),
        "sample_id": ((8,), np.int32),
        "phrase_text": ((16, 5), np.int32),
        "phrase_image": ((16,), np.int32),
    }
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == expected


def test_every_record_once_an_epoch():
    epochs = np.reshape(
        [i for batch in stream(Numbered(24)).batches(0, 15) for i in numbers(batch)], (5, 24)
    )
    for epoch in epochs:
        assert sorted(epoch) == list(range(24))
    assert len({tuple(epoch) for epoch in epochs}) == 5  # each in an order of its own


def test_epochs_are_laid_end_to_end():
    # 20 does not divide by 8: batches go over the border, nothing is left out.
    seen = [i for batch in stream(Numbered(20)).batches(0, 5) for i in numbers(batch)]
    assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20))


def test_a_batch_is_a_function_of_its_step():
    source = Numbered(20, captions=2, phrases=3)
    options = {"transform": "random_resized_crop", "image_size": 3}
    whole = list(stream(source, **options).batches(0, 8))
    assert_equal(list(stream(source, **options).batches(5, 8)), whole[5:])


@pytest.mark.parametrize("workers", [1, 7])
def test_workers_do_not_matter(workers):
    source = Numbered(20, captions=2, phrases=3, bad={4})
    one, other = (list(stream(source, workers=n).batches(0, 6)) for n in (3, workers))
    assert_equal(one, other)


def test_the_seed_matters():
    orders = {
        seed: [numbers(batch) for batch in stream(Numbered(40), seed=seed).batches(0, 2)]
        for seed in (0, 1)
    }
    assert orders[0] != orders[1]


def test_all_captions_of_an_image_in_as_many_epochs():
    read_of = collections.defaultdict(list)
    for batch in stream(Numbered(8, captions=3)).batches(0, 6):
        for row, number in zip(batch["text"], numbers(batch), strict=True):
            read_of[number].append(read(row)[1])
    assert len(read_of) == 8
    for verbs in read_of.values():
        assert sorted(verbs[:3]) == sorted(verbs[3:]) == sorted(VERBS)
    # Not all images begin with the same caption.
    assert len({verbs[0] for verbs in read_of.values()}) > 1


def test_phrases_point_to_their_images_within_the_group():
    for batch in stream(Numbered(24, phrases=2)).batches(0, 4):
        owners = numbers(batch)
        rows = batch["phrase_image"]
        assert (rows >= 0).sum() == 16
        for place, (row, text) in enumerate(zip(rows, batch["phrase_text"], strict=True)):
            assert read(text)[0] == f"n{owners[row]}"
            # 8 phrases and 4 images a group: any split of the batch into groups nests.
            assert row // 4 == place // 8
        both = collections.Counter(tuple(read(text)) for text in batch["phrase_text"])
        assert both == {(f"n{i}", f"x{part}"): 1 for i in owners for part in range(2)}


def test_unused_room_is_padding():
    (batch,) = stream(Numbered(20, phrases=1)).batches(0, 1)
    rows = batch["phrase_image"].reshape(2, 8)
    np.testing.assert_array_equal(rows, [[0, 1, 2, 3] + [-1] * 4, [4, 5, 6, 7] + [-1] * 4])
    np.testing.assert_array_equal(batch["phrase_text"][batch["phrase_image"] < 0], 0)


def test_phrases_over_the_budget_are_dropped_and_counted():
    batches = stream(Numbered(40, phrases=3))
    kept, places = collections.Counter(), collections.Counter()
    for batch in batches.batches(0, 10):
        owners = numbers(batch)
        assert (batch["phrase_image"] >= 0).all()
        assert len({tuple(text) for text in batch["phrase_text"]}) == 16
        for row, text in zip(batch["phrase_image"], batch["phrase_text"], strict=True):
            number, part = read(text)
            assert number == f"n{owners[row]}"
            kept[part] += 1
            places[row % 4] += 1
    # 12 phrases a group with room for 8: 4 dropped in each of 20 groups, not always the same.
    assert batches.dropped_phrases == 4 * 20
    assert sum(kept.values()) == 8 * 20
    # Even chances would leave 53 of each part, and 40 to each place in the group.
    assert min(kept.values()) > 35
    assert min(places[place] for place in range(4)) > 25


def test_without_phrases_the_caption_is_the_phrase():
    (batch,) = stream(Numbered(20, phrases=0)).batches(0, 1)
    owners = numbers(batch)
    found = [read(text) for text in batch["phrase_text"][batch["phrase_image"] >= 0]]
    assert found == [[f"n{i}", "first"] for i in owners]


def test_a_phrase_said_twice_counts_once():
    class Repeating(Numbered):
        def __getitem__(self, index):
            return dataclasses.replace(super().__getitem__(index), phrases=(("x0", "x0"),))

    (batch,) = stream(Repeating(20)).batches(0, 1)
    assert (batch["phrase_image"] >= 0).sum() == 8


def test_an_extractor_that_would_hold_training_up_is_refused():
    with pytest.raises(ValueError, match="'llm'.*tools.concepts"):
        PipelineOptions(batch_size=8, image_size=8, text_length=4, concepts="llm")


def test_phrases_are_extracted_where_the_source_has_none(monkeypatch):
    class Bare(Numbered):
        def __getitem__(self, index):
            return dataclasses.replace(super().__getitem__(index), phrases=None)

    monkeypatch.setattr(packing, "_extracted", lambda text, _: (text.split()[0] + " x5",))
    (batch,) = stream(Bare(20)).batches(0, 1)
    found = [read(text) for text in batch["phrase_text"][batch["phrase_image"] >= 0]]
    assert found == [[f"n{i}", "x5"] for i in numbers(batch)]


def test_no_budget_no_phrases():
    (batch,) = stream(Numbered(20), phrases_per_image=0.0).batches(0, 1)
    assert batch.keys() == {"image", "text", "sample_id"}


def test_a_bad_record_is_skipped_named_counted_and_replaced(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: lines.append(text % args))
    batches = stream(Numbered(40, bad={13}))
    seen = collections.Counter(i for batch in batches.batches(0, 10) for i in numbers(batch))
    assert batches.skipped == {"truncated": 1}  # once, though two epochs met it
    assert [line for line in lines if "record-13" in line and "truncated" in line]
    assert len([line for line in lines if "record-13" in line]) == 1
    # 80 places in two epochs: 13's two go to others.
    assert sum(seen.values()) == 80
    assert seen.keys() == set(range(40)) - {13}
    assert min(seen.values()) == 2


def test_bad_records_leave_the_order_of_the_others_alone():
    bad = {3, 17, 18}
    whole, damaged = (
        np.reshape(
            [i for batch in stream(Numbered(60, bad=out)).batches(0, 15) for i in numbers(batch)],
            (2, 60),
        )
        for out in (set(), bad)
    )
    for order, changed in zip(whole, damaged, strict=True):
        kept = ~np.isin(order, list(bad))
        np.testing.assert_array_equal(order[kept], changed[kept])
        # Each bad place has a stand-in of its own, and none from its own batch.
        stand_ins = changed[~kept]
        assert len(set(stand_ins)) == len(bad) and not set(stand_ins) & bad
        for place in np.flatnonzero(~kept):
            batch = changed[place // 8 * 8 :][:8]
            assert (batch == changed[place]).sum() == 1


def test_the_stand_in_of_a_bad_stand_in_is_found():
    bad = set(range(1, 40))
    batches = stream(Numbered(40, bad=bad), max_bad_share=1.0)
    assert {i for batch in batches.batches(0, 5) for i in numbers(batch)} == {0}


@pytest.mark.parametrize("bad", [set(), {4, 30}])
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_make_together_what_one_makes_alone(hosts, bad):
    source = Numbered(44, captions=2, phrases=3, bad=bad)
    options = {"batch_size": 16, "transform": "random_resized_crop", "image_size": 3}
    alone = list(stream(source, **options).batches(2, 9))
    share = 4 // hosts
    parts = [
        list(
            stream(source, groups=range(host * share, (host + 1) * share), **options).batches(2, 9)
        )
        for host in range(hosts)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_equal(joined, alone)


def test_each_host_reads_its_own_records_alone():
    class Watched(Numbered):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    read = []
    batches = stream(Watched(48), groups=[1])
    seen = [i for batch in batches.batches(0, 6) for i in numbers(batch)]
    assert sorted(read) == sorted(seen) and len(set(read)) == 24


def test_groups_that_are_not_in_a_batch_are_refused():
    for groups in ([2], []):
        with pytest.raises(ValueError, match="not among the 2 of a batch of 8"):
            stream(Numbered(20), groups=groups)


def test_samples_are_the_images_of_a_batch():
    batches = stream(Numbered(40, captions=3, phrases=3))
    for step, batch in enumerate(batches.batches(0, 4)):
        samples = batches.samples(step)
        assert [sample.record.sample_id for sample in samples] == numbers(batch)
        np.testing.assert_array_equal(np.stack([s.image for s in samples]), batch["image"])
        captions = [" ".join(read(row)) for row in batch["text"]]
        assert [sample.caption for sample in samples] == captions
        owned = [(row, phrase) for row, s in enumerate(samples) for phrase in s.phrases]
        rows = zip(batch["phrase_image"].tolist(), batch["phrase_text"], strict=True)
        assert owned == [(row, " ".join(read(text))) for row, text in rows]
        assert all(len(sample.phrases) + len(sample.dropped) == 3 for sample in samples)


def test_a_stream_that_is_left_stops_its_threads():
    before = threading.active_count()
    batches = stream(Numbered(20), workers=3).batches(0, 1_000_000)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_an_image_that_does_not_decode_is_a_bad_record():
    class Broken(Numbered):
        def __getitem__(self, index):
            record = super().__getitem__(index)
            return dataclasses.replace(record, image=record.image[:30]) if index == 2 else record

    batches = stream(Broken(24))
    seen = {i for batch in batches.batches(0, 3) for i in numbers(batch)}
    assert 2 not in seen
    assert batches.skipped == {"unreadable image": 1}


@pytest.mark.parametrize("bad", [range(5, 9), range(40)])
def test_too_many_bad_records_end_the_run(bad):
    batches = stream(Numbered(40, bad=frozenset(bad)))
    # 5 % of 40 are 2: the third ends it, with what to do; other threads may meet more.
    with pytest.raises(ValueError, match=r"\d+ of 40.*truncated x \d+.*max_bad_share"):
        for _ in batches.batches(0, 5):
            pass


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (0.05, r"of the first \d+ records read are unusable \(too small"),
        (1.0, "none of 200 records tried in a row.*too small"),
    ],
)
def test_a_large_source_without_a_usable_record_ends_after_few(share, message):
    class Filtered(Numbered):
        reads = 0

        def __getitem__(self, index):
            Filtered.reads += 1
            raise BadRecord(f"record-{index}", "too small")

    with pytest.raises(ValueError, match=message):
        next(stream(Filtered(10**9), max_bad_share=share).batches(0, 5))
    # Of a billion: the threads' own places at most.
    assert Filtered.reads <= 200 * 2 * OPTIONS.workers


def test_an_error_in_a_source_arrives_as_it_is():
    class Faulty(Numbered):
        def __getitem__(self, index):
            if index == 30:
                raise PermissionError("locked")
            return super().__getitem__(index)

    with pytest.raises(PermissionError, match="locked"):
        for _ in stream(Faulty(40)).batches(0, 5):
            pass


def test_a_source_smaller_than_a_batch_repeats_and_says_so(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: lines.append(text % args))
    (batch,) = stream(Numbered(3)).batches(0, 1)
    assert "3 records, fewer than a batch of 8" in lines[0]
    seen = numbers(batch)
    assert sorted(seen[:3]) == sorted(seen[3:6]) == [0, 1, 2]


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="numbered has no records"):
        stream(Numbered(0))


def test_a_batch_that_does_not_divide_into_groups_is_refused():
    with pytest.raises(ValueError, match="batch_size 10.*phrase_group = 4.*multiple"):
        PipelineOptions(batch_size=10, image_size=4, text_length=8, phrase_group=4)

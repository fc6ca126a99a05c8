"""Unusable records: counted once, named in a file, and the end of the run where they abound."""

import json

import numpy as np
import pytest
from absl import logging

from ccl_jax.data.records import BadRecord
from ccl_jax.data.skipping import SkippedRecords


def bad(number, reason="truncated"):
    return BadRecord(f"record-{number}", reason, f"detail {number}")


def test_each_is_counted_once_by_reason():
    skipped = SkippedRecords("source", 1_000, 0.05)
    for number in (3, 3, 4):
        skipped.add(bad(number), number)
    skipped.add(bad(5, "no caption"), 5)
    assert skipped.reasons == {"truncated": 2, "no caption": 1}


def test_records_of_one_key_are_not_one_record():
    skipped = SkippedRecords("two shards that count from zero", 1_000, 0.05)
    skipped.add(bad(3), 3)
    skipped.add(bad(3), 503)
    assert skipped.reasons == {"truncated": 2}


def test_the_file_names_them_all_and_none_twice_over_runs(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: lines.append(text % args))
    path = tmp_path / "skipped.jsonl"
    for _ in range(2):  # the second run begins after the first
        skipped = SkippedRecords("source", 10_000, 0.05, str(path))
        for number in range(60):
            for _ in range(20):
                skipped.add_usable()
            skipped.add(bad(number), number)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [one["key"] for one in found] == [f"record-{number}" for number in range(60)]
    assert found[7] == {
        "index": 7, "key": "record-7", "reason": "truncated", "detail": "detail 7"
    }  # fmt: skip
    named = [line for line in lines if "Skipped record" in line]
    assert len(named) == 40 and any(str(path) in line for line in lines)


def test_more_than_the_share_of_all_records_ends_the_run():
    skipped = SkippedRecords("source", 100, 0.05)
    for number in range(5):
        skipped.add(bad(number), number)
    with pytest.raises(ValueError, match=r"source: 6 of 100 records are unusable \(truncated x 6"):
        skipped.add(bad(6), 6)


def test_one_is_always_forgiven():
    skipped = SkippedRecords("source", 3, 0.0)
    skipped.add(bad(0), 0)
    with pytest.raises(ValueError, match="2 of 3"):
        skipped.add(bad(1), 1)


def first_stop(share, true_share, seed, size=10_000_000, reads=20_000):
    """Records read before the run ends; None if it does not."""
    skipped = SkippedRecords("source", size, share)
    skipped._tell = lambda error, index: None
    outcomes = np.random.default_rng(seed).random(reads) < true_share
    for number, unusable in enumerate(outcomes):
        try:
            skipped.add(bad(number), number) if unusable else skipped.add_usable()
        except ValueError as error:
            assert f"of the first {number + 1:,} records read" in str(error)
            return number + 1
    return None


def test_a_large_source_of_bad_records_ends_the_run_early():
    # 5 % of ten million are half a million: nobody waits for these.
    assert first_stop(0.05, 1.0, 0) < 50
    assert first_stop(0.05, 0.5, 0) < 100
    assert first_stop(0.05, 0.1, 0) < 2_000


@pytest.mark.parametrize("seed", range(5))
def test_a_share_within_the_limit_does_not(seed):
    assert first_stop(0.05, 0.045, seed) is None
    assert first_stop(0.01, 0.009, seed) is None

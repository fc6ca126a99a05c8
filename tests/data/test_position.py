"""The saved position: small, exact, and a resumed run whose order would differ is refused."""

import dataclasses
import json
import os
import time

import pytest
from numbered import OPTIONS, Numbered, numbers, stream, tokenizer

from ccl_jax.data.pipeline import TrainingBatches
from ccl_jax.data.position import check_position, fingerprint
from ccl_jax.data.records import BadRecord


def test_it_says_which_record_comes_next():
    batches = stream(Numbered(20))
    position = batches.position(7)
    assert (position.step, position.epoch, position.place) == (7, 2, 16)  # 56 = 2 x 20 + 16
    # The records of an epoch before that place are those that were seen in it.
    seen = [i for batch in batches.batches(0, 7) for i in numbers(batch)]
    rest = [i for batch in batches.batches(7, 8) for i in numbers(batch)]
    assert sorted(seen[40:] + rest[:4]) == list(range(20))


def test_a_save_is_small_and_fast(tmp_path):
    path = str(tmp_path / "position.json")
    batches = stream(Numbered(20))
    batches.position(1).save(path)  # the first reads the keys of a few records
    start = time.monotonic()
    batches.position(10**9).save(path)
    assert time.monotonic() - start < 0.1
    assert os.path.getsize(path) < 1_000


def test_the_same_data_goes_on_on_any_number_of_hosts_and_workers(tmp_path):
    path = str(tmp_path / "position.json")
    stream(Numbered(20)).position(5).save(path)
    check_position(path, stream(Numbered(20)).position(5))
    check_position(path, stream(Numbered(20), groups=[1], workers=5).position(3))


def test_no_position_is_no_objection(tmp_path):
    check_position(str(tmp_path / "none.json"), stream(Numbered(20)).position(5))


class Other(Numbered):
    """Of the same length, with records of other names."""

    def __getitem__(self, index):
        record = super().__getitem__(index)
        return dataclasses.replace(record, key=f"other-{index}")


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        (Numbered(21), {}, "numbered had records: 20, now 21"),
        (Numbered(20), {"seed": 4}, "config.seed was 3, now 4"),
        (Numbered(20), {"batch_size": 16}, "config.data.batch_size was 8, now 16"),
        (Other(20), {}, "numbered holds other records"),
    ],
)
def test_another_order_is_refused_by_name(tmp_path, source, changes, message):
    path = str(tmp_path / "position.json")
    stream(Numbered(20)).position(5).save(path)
    options = dataclasses.replace(OPTIONS, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        check_position(path, TrainingBatches(source, tokenizer(), options).position(5))
    assert "new workdir" in str(caught.value) and path in str(caught.value)


def test_another_version_of_the_order_is_refused(tmp_path):
    path = str(tmp_path / "position.json")
    position = stream(Numbered(20)).position(5)
    dataclasses.replace(position, order=1).save(path)
    with pytest.raises(ValueError, match="orders records anew: version 1, now 2"):
        check_position(path, position)


@pytest.mark.parametrize("content", ["", "[1, 2]", json.dumps({"step": 3})])
def test_a_damaged_file_says_what_to_do(tmp_path, content):
    path = tmp_path / "position.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="remove it to go on"):
        check_position(str(path), stream(Numbered(20)).position(5))


def test_the_fingerprint_reads_few_records_and_bears_bad_ones():
    class Counting(Numbered):
        reads = 0

        def __getitem__(self, index):
            Counting.reads += 1
            if index % 3 == 0:
                raise BadRecord(f"record-{index}", "truncated")
            return super().__getitem__(index)

    # A bad record has a name, too: it counts as the same record.
    assert fingerprint(Counting(85)) == fingerprint(Numbered(85))
    assert Counting.reads == 16

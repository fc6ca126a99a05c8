"""Mixtures against a plain merge of all draws."""

import collections
import fractions
import itertools
import pickle

import pytest
from source_files import numbered, write_tar

from ccl_jax.data.records import BadRecord, Record, Source
from ccl_jax.data.sources import MixtureSource, open_source, source_counts


class Numbered:
    """Record i of source `name` says so."""

    def __init__(self, name, count, bad=()):
        self.name, self.count, self.bad = name, count, bad

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.bad:
            raise BadRecord(f"{index}", "truncated", "by hand")
        return Record(index, f"{index}", b"", (f"{self.name} {index}",))


def mix(sizes, weights=None):
    sources = [Numbered("abcdef"[i], size) for i, size in enumerate(sizes)]
    return MixtureSource.of(sources, weights)


def merged(draws):
    """Every draw at its time, sorted: (source, number of the draw)."""
    times = [
        (fractions.Fraction(2 * r + 1, 2 * count), place, r)
        for place, count in enumerate(draws)
        for r in range(count)
    ]
    return [(place, r) for _, place, r in sorted(times)]


@pytest.mark.parametrize(
    "sizes, weights, draws",
    [
        ((5,), (0.3,), (5,)),
        ((10, 10), (1, 1), (10, 10)),
        ((10, 4), (1, 1), (10, 10)),
        ((4, 10), (3, 1), (30, 10)),
        ((7, 1, 30), (2, 1, 1), (60, 30, 30)),
        ((3, 3, 3, 3, 3, 100), (1, 1, 1, 1, 1, 95), (3, 3, 3, 3, 3, 285)),
        ((1, 97, 13, 41), (0.1, 0.2, 0.3, 0.4), (48, 97, 146, 194)),
        ((11, 23, 5), None, (11, 23, 5)),
    ],
)
def test_draws_are_laid_in_as_a_merge_of_their_times(sizes, weights, draws):
    mixture = mix(sizes, weights)
    counts = collections.Counter(mixture.locate(i)[0] for i in range(len(mixture)))
    found = tuple(counts[place] for place in range(len(sizes)))
    # Halves may round either way; the source that is seen once is exact.
    assert found[0] == draws[0] and all(abs(a - b) <= 1 for a, b in zip(found, draws, strict=True))
    expected = [(place, r % sizes[place]) for place, r in merged(found)]
    assert [mixture.locate(i) for i in range(len(mixture))] == expected


def test_every_record_comes_at_least_once_and_repeats_evenly():
    mixture = mix((4, 10), (3, 1))
    seen = collections.Counter(record.captions[0] for record in mixture)
    assert {f"b {i}": seen[f"b {i}"] for i in range(10)} == {f"b {i}": 1 for i in range(10)}
    assert sorted(seen[f"a {i}"] for i in range(4)) == [7, 7, 8, 8]
    assert len(seen) == 14 and mixture.shares == [0.75, 0.25]


def test_without_weights_every_record_comes_once():
    mixture = mix((11, 23, 5))
    assert len({record.captions for record in mixture}) == len(mixture) == 39


@pytest.mark.parametrize("sizes, weights", [((50, 50, 50), (5, 3, 2)), ((9, 90, 30), None)])
def test_any_run_has_its_shares(sizes, weights):
    mixture = mix(sizes, weights)
    places = [mixture.locate(i)[0] for i in range(len(mixture))]
    for place, share in enumerate(mixture.shares):
        prefix = [0, *itertools.accumulate(found == place for found in places)]
        for start, stop in itertools.combinations(range(len(prefix)), 2):
            count = prefix[stop] - prefix[start]
            assert abs(count - share * (stop - start)) <= len(sizes)


def test_sample_ids_are_unique_and_stay_with_their_records():
    mixture = mix((4, 10, 2), (3, 1, 1))
    owners = collections.defaultdict(set)
    for record in mixture:
        owners[record.sample_id].add(record.captions[0])
    assert sorted(owners) == list(range(16))
    assert all(len(captions) == 1 for captions in owners.values())
    outer = MixtureSource.of([mixture, Numbered("z", 5)])
    assert len({(record.sample_id, record.captions) for record in outer}) == 21
    assert {record.sample_id for record in outer} == set(range(16)) | {
        len(mixture) + i for i in range(5)
    }


def test_a_mixture_of_a_config(tmp_path):
    paths = [write_tar(tmp_path / f"{i}.tar", numbered(4, start=4 * i)) for i in range(2)]
    mixture = open_source(
        "mixture",
        sources=(
            {"kind": "webdataset", "path": paths[0], "weight": 2},
            {"kind": "mixture", "sources": [{"kind": "webdataset", "path": paths[1]}], "weight": 1},
        ),
    )
    assert isinstance(mixture, Source) and len(mixture) == 12
    assert mixture.name == "0 (0.667) + 1 (1) (0.333)"
    keys = collections.Counter(record.key for record in mixture)
    assert keys["0/0001"] == 2 and keys["1 (1)/1/0005"] == 1
    assert source_counts(mixture)["0:0: records"] == 4
    assert list(pickle.loads(pickle.dumps(mixture))) == list(mixture)


def test_a_config_dict_is_a_mapping_too(tmp_path):
    ml_collections = pytest.importorskip("ml_collections")
    path = write_tar(tmp_path / "x.tar", numbered(4))
    config = ml_collections.ConfigDict()
    config.source = {"kind": "mixture", "sources": ({"kind": "webdataset", "path": path},)}
    assert len(open_source(**config.source)) == 4


def test_a_bad_record_names_its_source():
    mixture = MixtureSource.of([Numbered("a", 3), Numbered("b", 3, bad={1})])
    index = next(i for i in range(6) if mixture.locate(i) == (1, 1))
    with pytest.raises(BadRecord, match="b/1: truncated .by hand") as caught:
        mixture[index]
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize(
    "sizes, weights, message",
    [
        ((), None, "at least one source"),
        ((3, 0), None, "b has no records"),
        ((3, 3), (1, None), "b has no weight: give one to every source or to none"),
        ((3, 3), (1, 0), "weight of b is 0: give one above 0"),
        ((3, 3), (1, -2.0), "weight of b is -2.0"),
        ((3, 3), (1, float("nan")), "weight of b is nan"),
        ((3, 3), (1, "2"), "weight of b is '2': give a number"),
        ((3, 3), (1, True), "weight of b is True: give a number"),
        ((10**6, 3), (1e-6, 1), "1e.12 records, since a has 1000000 .*raise its weight"),
    ],
)
def test_impossible_mixtures_say_what_to_change(sizes, weights, message):
    with pytest.raises(ValueError, match=message):
        mix(sizes, weights)


def test_wrong_entries_of_a_config_are_named(tmp_path):
    with pytest.raises(ValueError, match="names no kind"):
        open_source("mixture", sources=[{"path": "x.tar"}])
    with pytest.raises(ValueError, match="dicts of kind, weight and options, got 'x.tar'"):
        open_source("mixture", sources=["x.tar"])
    with pytest.raises(ValueError, match="no option 'wieght': did you mean"):
        open_source("mixture", sources=[{"kind": "webdataset", "path": "x", "wieght": 1}])


def test_indices_end():
    mixture = mix((2, 2))
    for index in (-1, 4):
        with pytest.raises(IndexError):
            mixture[index]


def test_millions_of_records_need_no_table():
    mixture = mix((12_000_000, 3_000_001), (3, 1))
    assert len(mixture) == 16_000_000
    assert [mixture.locate(i)[0] for i in range(4_000_000, 4_000_008)].count(1) == 2
    assert mixture.locate(len(mixture) - 1)[1] in (11_999_999, 3_999_999 - 3_000_001)

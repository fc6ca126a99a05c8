"""Tars at scale: kept indexes, compressed tars, several processes, the release's own layout."""

import bz2
import gzip
import io
import json
import lzma
import os
import pathlib
import pickle

import numpy as np
import pytest
from absl import logging
from source_files import JPEG, numbered, write_tar

from ccl_jax.data.records import BadRecord
from ccl_jax.data.sources import WebDatasetSource, cache, tar, webdataset


@pytest.fixture
def warnings_logged(monkeypatch):
    messages = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: messages.append(text % args))
    return messages


@pytest.fixture
def indexed(monkeypatch):
    """The tars that were indexed rather than found in the cache."""
    paths = []

    def spy(path, label):
        paths.append(os.path.basename(label))
        return index_tar(path, label)

    index_tar = tar.index_tar
    monkeypatch.setattr(tar, "index_tar", spy)
    return paths


def captions(source):
    return [record.captions[0] for record in source]


def test_an_index_is_made_once_and_anew_for_another_file(tmp_path, indexed, warnings_logged):
    path, index_dir = tmp_path / "x.tar", tmp_path / "index"
    write_tar(path, [*numbered(3), ("é/ü.jpg", JPEG), ("é/ü.txt", "ä"), ("9.txt", "no image")])
    first = WebDatasetSource(path, index_dir=index_dir)
    again = WebDatasetSource(path, index_dir=index_dir)
    assert indexed == ["x.tar"]
    assert list(first) == list(again)
    assert again[3].key == "é/ü" and again.counts == first.counts
    # What is wrong with a tar is said every time.
    assert len(warnings_logged) == 2 and warnings_logged[0] == warnings_logged[1]
    write_tar(path, numbered(2))
    assert captions(WebDatasetSource(path, index_dir=index_dir)) == ["caption 0", "caption 1"]
    os.utime(path, ns=(1, 1))  # of the same size, changed
    WebDatasetSource(path, index_dir=index_dir)
    assert indexed == ["x.tar"] * 3
    assert len(os.listdir(index_dir)) == 1


def test_a_damaged_entry_is_made_anew(tmp_path, indexed):
    path, index_dir = write_tar(tmp_path / "x.tar", numbered(3)), tmp_path / "index"
    WebDatasetSource(path, index_dir=index_dir)
    (entry,) = index_dir.iterdir()
    whole = entry.read_bytes()
    for damaged in (b"", b"<html>", whole[: len(whole) // 2], pickle.dumps([1])):
        entry.write_bytes(damaged)
        assert len(WebDatasetSource(path, index_dir=index_dir)) == 3
    assert len(indexed) == 5


def test_small_tars_leave_nothing_in_the_home(tmp_path, monkeypatch, indexed):
    monkeypatch.setenv("CCL_JAX_CACHE", str(tmp_path / "cache"))
    path = write_tar(tmp_path / "x.tar", numbered(3))
    WebDatasetSource(path)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(cache, "_WORTH_KEEPING", 1)
    WebDatasetSource(path)
    WebDatasetSource(path)
    assert indexed == ["x.tar"] * 2 and len(os.listdir(tmp_path / "cache")) == 1


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path):
    (tmp_path / "file").write_text("no folder")
    path = write_tar(tmp_path / "x.tar", numbered(3))
    assert len(WebDatasetSource(path, index_dir=tmp_path / "file")) == 3
    packed = tmp_path / "x.tar.gz"
    packed.write_bytes(gzip.compress(pathlib.Path(path).read_bytes()))
    with pytest.raises(ValueError, match="cannot be written .*give index_dir"):
        WebDatasetSource(packed, index_dir=tmp_path / "file")


@pytest.mark.parametrize("ending, pack", [("gz", gzip), ("bz2", bz2), ("xz", lzma)])
def test_compressed_tars_are_read_as_plain_ones(tmp_path, monkeypatch, ending, pack):
    whole = pathlib.Path(write_tar(tmp_path / "plain.tar", numbered(4))).read_bytes()
    path = tmp_path / f"set.tar.{ending}"
    path.write_bytes(pack.compress(whole))
    before = path.read_bytes()
    source = WebDatasetSource(path, index_dir=tmp_path / "index")
    assert source.name == "set"
    assert captions(source) == [f"caption {i}" for i in range(4)]
    assert source[2].image == b"image 2"
    assert path.read_bytes() == before
    monkeypatch.setattr(cache, "_decompress", None)  # it is not called again
    assert len(WebDatasetSource(path, index_dir=tmp_path / "index")) == 4


def test_plain_and_compressed_tars_keep_their_order(tmp_path):
    for shard in range(4):
        path = pathlib.Path(write_tar(tmp_path / f"{shard}.tar", numbered(1, start=shard)))
        if shard % 2:
            path.write_bytes(gzip.compress(path.read_bytes()))
    source = WebDatasetSource(f"{tmp_path}/*.tar", index_dir=tmp_path / "index")
    assert captions(source) == [f"caption {i}" for i in range(4)]


def test_a_cut_gzip_gives_its_complete_records(tmp_path, warnings_logged):
    rng = np.random.default_rng(0)
    members = [
        (f"{i}.{ending}", rng.bytes(4096) if ending == "jpg" else f"caption {i}")
        for i in range(8)
        for ending in ("jpg", "txt")
    ]
    whole = pathlib.Path(write_tar(tmp_path / "x.tar", members)).read_bytes()
    packed = gzip.compress(whole)
    path = tmp_path / "cut.tar.gz"
    path.write_bytes(packed[: len(packed) // 2])
    for _ in range(2):
        source = WebDatasetSource(path, index_dir=tmp_path / "index")
        assert 2 <= len(source) < 8
        assert captions(source) == [f"caption {i}" for i in range(len(source))]
        assert source.counts["damaged shards"] == 1
    assert [str(path) in line for line in warnings_logged] == [True] * 3
    path.write_bytes(packed[:20])
    with pytest.raises(ValueError, match=r"cut\.tar\.gz is not a tar"):
        WebDatasetSource(path, index_dir=tmp_path / "index")


def test_a_full_disk_is_named_and_leaves_no_debris(tmp_path, monkeypatch):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(b"x" * 5000))
    monkeypatch.setattr(cache, "_KEEP_FREE", 1 << 60)
    with pytest.raises(ValueError, match="No space left on device.*give index_dir"):
        WebDatasetSource(path, index_dir=tmp_path / "index")
    assert not [name for name in os.listdir(tmp_path / "index") if not name.endswith(".lock")]


def test_the_released_layout_of_cc3m_is_read_as_it_is(tmp_path, warnings_logged):
    class Program:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was run"),)

    fields = {
        "shortLLA_captions": "A red bus on a street.",
        "nounphrases": ["A red bus", "a street"],
    }
    path = write_tar(
        tmp_path / "cc3m-train-0000.tar",
        [
            ("000000000.jpg", JPEG),
            ("000000000.txt", "bus on the road"),
            ("000000000.json", json.dumps(fields)),
            ("000000001.jpg", JPEG),
            ("000000001.pyd", pickle.dumps(Program())),
        ],
    )
    source = WebDatasetSource(path)
    assert source[0].captions == ("A red bus on a street.",)
    assert source[0].phrases == (("A red bus", "a street"),)
    with pytest.raises(BadRecord, match="missing caption"):
        source[1]
    (warning,) = warnings_logged
    assert "left out 1 pickles, the first is 000000001.pyd" in warning
    assert "write its contents as KEY.json" in warning
    assert not (tmp_path / "was run").exists()


def test_a_tar_of_pickles_alone_says_so(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.jpg", JPEG), ("a.pickle", pickle.dumps(1))])
    with pytest.raises(ValueError, match=r"captions as KEY\.txt.*a\.pickle are never loaded"):
        WebDatasetSource(path)


def test_a_thousand_tars_do_not_flood_the_log(tmp_path, warnings_logged):
    for shard in range(14):
        write_tar(tmp_path / f"{shard}.tar", [*numbered(1), ("0.pkl", "x"), ("1.pkl", "x")])
    source = WebDatasetSource(f"{tmp_path}/*.tar")
    assert source.counts["pickles"] == 28 and len(warnings_logged) == 11
    assert warnings_logged[-1] == "4 more tars are like that; in all: shards x 14, pickles x 28"


def test_a_source_crosses_processes(tmp_path):
    source = WebDatasetSource(write_tar(tmp_path / "x.tar", numbered(3)))
    source[0]
    assert list(pickle.loads(pickle.dumps(source))) == list(source)


def test_an_index_is_compact(tmp_path):
    members = [(f"{i:09d}.{end}", b"x") for i in range(100) for end in ("jpg", "txt", "json")]
    arrays, _ = tar.index_tar(write_tar(tmp_path / "x.tar", members), "x.tar")
    # 3 parts of 8 + 4 bytes, a key of 9 letters and where it ends.
    assert sum(array.nbytes for array in arrays.values()) == 100 * (36 + 9 + 8)


@pytest.mark.slow
def test_large_collections_are_indexed_by_several_processes(tmp_path, monkeypatch):
    for shard in range(4):
        write_tar(tmp_path / f"{shard}.tar", numbered(2, start=2 * shard))
    expected = list(WebDatasetSource(f"{tmp_path}/*.tar"))
    monkeypatch.setattr(webdataset, "_PARALLEL_FROM", 0)
    assert list(WebDatasetSource(f"{tmp_path}/*.tar")) == expected
    write_tar(tmp_path / "2.tar", [("a.txt", "no image")])
    with pytest.raises(ValueError, match=r"2\.tar holds no \.jpg"):
        WebDatasetSource(f"{tmp_path}/*.tar")


def test_without_new_processes_this_one_does_the_work(tmp_path, monkeypatch, warnings_logged):
    class Broken:
        def __init__(self, *_, **__):
            raise webdataset.concurrent.futures.process.BrokenProcessPool("unguarded script")

    monkeypatch.setattr(webdataset.concurrent.futures, "ProcessPoolExecutor", Broken)
    for shard in range(4):
        write_tar(tmp_path / f"{shard}.tar", numbered(2, start=2 * shard))
    monkeypatch.setattr(webdataset, "_PARALLEL_FROM", 0)
    assert captions(WebDatasetSource(f"{tmp_path}/*.tar")) == [f"caption {i}" for i in range(8)]
    assert "in one process" in warnings_logged[0]


def test_long_indexing_says_how_far_it_is(monkeypatch, capsys):
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(webdataset.time, "monotonic", lambda: next(clock))
    sizes = [10**9] * 5
    assert list(webdataset._reported(iter("abcde"), sizes)) == list("abcde")
    assert capsys.readouterr().err.splitlines() == [
        "Indexed 2 of 5 tars, 2.0 of 5.0 GB, about 18 s left",
        "Indexed 4 of 5 tars, 4.0 of 5.0 GB, about 6 s left",
    ]


@pytest.mark.parametrize("form", ["USTAR", "GNU", "PAX"])
def test_headers_are_read_as_tarfile_reads_them(tmp_path, form):
    names = ["a.jpg", "é.txt", "f/" * 70 + "long.json", "n" * 99, "m" * 100, "sub/"]
    with tar.tarfile.open(
        tmp_path / "x.tar", "w", format=getattr(tar.tarfile, f"{form}_FORMAT")
    ) as file:
        for size, name in enumerate(names):
            info = tar.tarfile.TarInfo(name.rstrip("/"))
            info.mtime = 1.5
            if name.endswith("/"):
                info.type = tar.tarfile.DIRTYPE
            else:
                info.size = 700 * size
            file.addfile(info, io.BytesIO(bytes(info.size)))
    with tar.tarfile.open(tmp_path / "x.tar") as file:
        found = [(m.name, m.offset_data, m.size) for m in file.getmembers() if m.isreg()]
    assert len(found) == 5
    assert tar._read_headers(tmp_path / "x.tar", "x.tar") == (found, None)


def test_names_that_are_no_utf8_stay_apart(tmp_path):
    path = tmp_path / "x.tar"
    file = io.BytesIO()
    with tar.tarfile.open(fileobj=file, mode="w", format=tar.tarfile.GNU_FORMAT) as opened:
        for name in ("caf\udce9", "caf\udce8"):
            for ending, data in (("jpg", JPEG), ("txt", ascii(name).encode())):
                info = tar.tarfile.TarInfo(f"{name}.{ending}")
                info.size = len(data)
                opened.addfile(info, io.BytesIO(data))
    path.write_bytes(file.getvalue())
    records = list(WebDatasetSource(path))
    assert [record.key for record in records] == ["caf\\xe9", "caf\\xe8"]
    assert [record.captions[0] for record in records] == ["'caf\\udce9'", "'caf\\udce8'"]

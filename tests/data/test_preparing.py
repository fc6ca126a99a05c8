"""Conversion: what is written, left out, resumed, verified, and shrunk on the way."""

import csv
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image, ImageCms
from small_tars import picture, records, write_tar

from ccl_jax.data import engines, verifying
from ccl_jax.data.converting import Settings
from ccl_jax.data.fetching import FetchOptions
from ccl_jax.data.prepared import FORMATS, PreparedSource
from ccl_jax.data.preparing import describe, prepare, settings_from
from ccl_jax.data.records import BadRecord
from ccl_jax.data.shrinking import shrink_image

ORIENTATION = 0x0112


def settings(tar, folder, **options):
    source = {"kind": "webdataset", "path": tar}
    return Settings(source, str(folder), **{"shards": 3, **options})


def shards(folder):
    """{name: bytes} of the shards of a set."""
    paths = [*folder.glob("*.array_record-*"), *folder.glob("*.tfrecord-*")]
    return {path.name: path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def tar(tmp_path_factory):
    return write_tar(tmp_path_factory.mktemp("tar") / "x.tar", records(30))


def test_the_manifest_counts_what_was_written(tar, tmp_path, capfd):
    manifest = prepare(settings(tar, tmp_path / "set"), workers=1)
    # Every second record has two captions; every third one two phrases of its first caption.
    assert (manifest["records"], manifest["captions"], manifest["phrases"]) == (30, 45, 20)
    assert [shard["records"] for shard in manifest["shards"]] == [10, 10, 10]
    assert manifest["skipped"] == {} and manifest["resized"] == 0
    assert json.loads((tmp_path / "set" / "manifest-train.json").read_text()) == manifest
    text = describe(manifest, "set")
    assert text.startswith("set: 30 records of train in 3 shards (array_record), ")
    assert "45 captions, 20 phrases; verified" in text
    assert "30 of 30 records" in capfd.readouterr().err


@pytest.mark.parametrize("form", FORMATS)
def test_the_files_do_not_depend_on_who_writes_them(tar, tmp_path, form):
    prepare(settings(tar, tmp_path / "a" / "set", format=form), workers=1)
    prepare(settings(tar, tmp_path / "b" / "set", format=form), workers=2, runner=engines.THREADS)
    assert shards(tmp_path / "a" / "set") == shards(tmp_path / "b" / "set")


@pytest.mark.slow
def test_processes_write_the_same_files(tar, tmp_path):
    prepare(settings(tar, tmp_path / "a" / "set"), workers=1)
    prepare(settings(tar, tmp_path / "b" / "set"), workers=2)
    assert shards(tmp_path / "a" / "set") == shards(tmp_path / "b" / "set")


@pytest.mark.slow
def test_beam_writes_the_same_files(tar, tmp_path):
    pytest.importorskip("apache_beam", reason="needs the extra beam")
    prepare(settings(tar, tmp_path / "a" / "set"), workers=1)
    prepare(settings(tar, tmp_path / "b" / "set"), runner="DirectRunner")
    assert shards(tmp_path / "a" / "set") == shards(tmp_path / "b" / "set")


def test_workers_import_neither_jax_nor_tensorflow():
    code = "import sys, ccl_jax.data.converting as c; c.open_source; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"jax", "tensorflow", "tensorflow_datasets"} & set(found.stdout.split())


def test_bad_records_are_left_out_counted_and_named(tmp_path):
    found = records(30)
    found[3] = ("cut", found[3][1][:300], {"caption": "a"})
    found[9] = ("html", b"<html>not found</html>", {"caption": "a"})
    found[20] = ("m\udce9te", found[20][1], {"caption": " "})
    tar = write_tar(tmp_path / "x.tar", found)
    manifest = prepare(settings(tar, tmp_path / "set", max_bad_share=0.2), workers=1)
    assert manifest["records"] == 27
    assert manifest["skipped"] == {"unreadable image": 2, "empty caption": 1}
    keys = [PreparedSource(tmp_path / "set")[i].key for i in range(27)]
    assert keys == [f"key{i:04d}" for i in range(30) if i not in (3, 9, 20)]
    with open(tmp_path / "set" / "skipped-train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["index"], row["key"], row["reason"]) for row in rows] == [
        ("3", "cut", "unreadable image"),
        ("9", "html", "unreadable image"),
        ("20", "m\\xe9te", "empty caption"),
    ]
    counts = json.loads((tmp_path / "set" / "skipped-train.json").read_text())
    assert (counts["read"], counts["written"], counts["skipped"]) == (30, 27, 3)


def test_a_shard_of_bad_records_is_empty_and_tfds_reads_past_it(tmp_path):
    found = [(key, image if i < 10 else b"x", fields) for i, (key, image, fields) in
             enumerate(records(15))]  # fmt: skip
    tar = write_tar(tmp_path / "x.tar", found)
    manifest = prepare(settings(tar, tmp_path / "set", max_bad_share=0.5), workers=1)
    assert [shard["records"] for shard in manifest["shards"]] == [5, 5, 0]
    assert len([r for r in PreparedSource(tmp_path / "set")]) == 10
    tfds = pytest.importorskip("tensorflow_datasets")
    assert len(tfds.builder_from_directory(tmp_path / "set").as_data_source("train")) == 10


def test_too_many_bad_records_stop_the_run(tmp_path):
    found = records(40)
    found[5:15] = [(f"bad{i}", b"", fields) for i, (_, _, fields) in enumerate(found[5:15])]
    tar = write_tar(tmp_path / "x.tar", found)
    message = r"unusable \(unreadable image x \d+; the first is bad0\): .* max_bad_share above 0.05"
    with pytest.raises(ValueError, match=message):
        prepare(settings(tar, tmp_path / "set"), workers=1)
    assert not shards(tmp_path / "set")
    # What came to nothing binds nobody to its settings.
    prepare(settings(tar, tmp_path / "set", max_bad_share=0.3, shards=2, resize=9), workers=1)
    assert len(PreparedSource(tmp_path / "set")) == 30


def test_a_source_without_one_good_record_stops_at_once(tmp_path):
    found = [(key, b"<html>", fields) for key, _, fields in records(3)]
    tar = write_tar(tmp_path / "x.tar", found)
    with pytest.raises(ValueError, match="3 of 3 records are unusable"):
        prepare(settings(tar, tmp_path / "set", max_bad_share=1.0), workers=1)


def test_unchecked_images_are_not_decoded(tmp_path):
    tar = write_tar(tmp_path / "x.tar", [("a", b"\xff\xd8 no image", {"caption": "a"})])
    prepare(settings(tar, tmp_path / "set", check_images=False), workers=1)
    assert PreparedSource(tmp_path / "set")[0].image == b"\xff\xd8 no image"


def test_killed_at_any_time_a_run_goes_on(tmp_path):
    tar = write_tar(tmp_path / "x.tar", records(120, size=(300, 200)))
    prepare(settings(tar, tmp_path / "whole" / "set", shards=40, resize=150), workers=1)
    folder = tmp_path / "set"
    reports = folder / ".prepare-train"
    command = [sys.executable, "-m", "ccl_jax.tools.prepare", f"--input={tar}", "--shards=40"]
    command += [f"--output={folder}", "--workers=1", "--resize=150"]
    for wanted in (1, 20):  # shards that are complete when the run is killed
        run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while len(list(reports.glob("shard-*.json"))) < wanted and run.poll() is None:
            time.sleep(0.001)
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    before = {path: path.stat().st_mtime_ns for path in reports.glob("shard-*.json")}
    (folder / ".set-train.array_record-00039-of-00040.1.tmp").write_bytes(b"left half done")
    with pytest.raises(ValueError, match="not prepared to its end"):
        PreparedSource(folder)
    manifest = prepare(settings(tar, folder, shards=40, resize=150), workers=1)
    assert manifest["records"] == manifest["resized"] == 120
    assert shards(folder) == shards(tmp_path / "whole" / "set")
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert not list(folder.glob(".*.tmp")) and not list(reports.glob("*.tmp"))


def test_a_finished_run_is_only_verified(tar, tmp_path):
    first = prepare(settings(tar, tmp_path / "set"), workers=1)
    when = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()}
    assert prepare(settings(tar, tmp_path / "set"), workers=1) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()} == when


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"resize": 20}, "another run .*resize = None"),
        ({"shards": 4}, "another run .*shards = 3"),
        ({"format": "tfrecord"}, "another run .*format = 'array_record'"),
    ],
)
def test_a_folder_of_another_run_is_refused(tar, tmp_path, changes, message):
    prepare(settings(tar, tmp_path / "set"), workers=1)
    with pytest.raises(ValueError, match=message):
        prepare(settings(tar, tmp_path / "set", **changes), workers=1)


def test_an_input_that_changed_is_no_resumption(tmp_path):
    tar = write_tar(tmp_path / "x.tar", records(30))
    prepare(settings(tar, tmp_path / "set"), workers=1)
    write_tar(tmp_path / "x.tar", records(30)[::-1])
    with pytest.raises(ValueError, match=r"another run \(content = '\w+'\): choose another"):
        prepare(settings(tar, tmp_path / "set"), workers=1)


def test_a_folder_of_another_origin_is_refused(tar, tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(ValueError, match="of another origin: choose another output"):
        prepare(settings(tar, tmp_path), workers=1)
    # Killed between the last two files of a run, or while it was being mended, it is our own.
    prepare(settings(tar, tmp_path / "set"), workers=1)
    (tmp_path / "set" / "manifest-train.json").unlink()
    prepare(settings(tar, tmp_path / "set"), workers=1)


def test_a_second_run_beside_the_first_is_refused(tar, tmp_path):
    prepare(settings(tar, tmp_path / "set"), workers=1)
    with open(tmp_path / "set" / ".prepare-train" / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another preparation is at work"):
            prepare(settings(tar, tmp_path / "set"), workers=1)


@pytest.mark.parametrize("form", FORMATS)
def test_damage_is_found_and_mended(tar, tmp_path, form):
    folder = tmp_path / "set"
    prepare(settings(tar, folder, format=form), workers=1)
    assert verifying.verify(folder, workers=1)["records"] == 30
    whole = shards(folder)
    names = sorted(whole)
    flipped = bytearray(whole[names[0]])
    flipped[len(flipped) // 3] ^= 4
    (folder / names[0]).write_bytes(flipped)
    (folder / names[1]).unlink()
    (folder / names[2]).write_bytes(whole[names[2]][:-5])
    with pytest.raises(ValueError) as caught:
        verifying.verify(folder, workers=1)
    assert "3 of 3 shards" in str(caught.value)
    for name, problem in zip(names, ("its checksum differs", "missing", "bytes instead"),
                             strict=True):  # fmt: skip
        assert f"{name}: " in str(caught.value) and problem in str(caught.value)
    prepare(settings(tar, folder, format=form), workers=1)
    assert shards(folder) == whole
    verifying.verify(folder, workers=1)


def test_verify_wants_a_finished_set(tmp_path):
    with pytest.raises(ValueError, match="not prepared to its end"):
        verifying.verify(tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"format": "riegeli"}, "choose array_record or tfrecord"),
        ({"split": "a-b"}, "must be a word"),
        ({"resize": 0}, "short side in pixels"),
        ({"quality": 101}, "1 to 100"),
        ({"max_bad_share": 5}, "0 to 1"),
        ({"shards": -1}, "must be positive"),
        ({"output": "gs://bucket/x"}, "not a local path"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        Settings({"kind": "webdataset", "path": "x.tar"}, **{"output": "x", **options})


FLAGS = {
    "input": None, "download": None, "output": "set", "split": "train", "format": "tfrecord",
    "shards": 0, "resize": 64, "quality": 90, "check_images": True, "max_bad_share": None,
    "url_column": None, "caption_column": "text", "columns": None, "connections": 8,
    "per_host": 2, "retries": 0, "timeout": 3.0, "deadline": 9.0, "max_megabytes": 1.5,
    "allow_private": False, "user_agent": None,
}  # fmt: skip


def test_settings_from_flags():
    parse = {"x.tar": {"kind": "webdataset", "path": "x.tar"}}.get
    found = settings_from({**FLAGS, "input": "x.tar"}, parse)
    assert (found.source, found.network) == (parse("x.tar"), {})
    assert (found.format, found.resize, found.max_bad_share) == ("tfrecord", 64, 0.05)
    found = settings_from({**FLAGS, "download": "t.tsv", "max_bad_share": 0.5}, parse)
    assert found.source == {"kind": "download", "path": "t.tsv", "caption": "text"}
    assert found.max_bad_share == 0.5 and settings_from({**FLAGS, "download": "t.tsv"},
                                                        parse).max_bad_share == 1.0  # fmt: skip
    assert FetchOptions(**found.network) == FetchOptions(8, 2, 0, 3.0, 9.0, 1_500_000)
    for both in ({}, {"input": "x.tar", "download": "t.tsv"}):
        with pytest.raises(ValueError, match="give --input or --download, one of them"):
            settings_from({**FLAGS, **both}, parse)


def opened(data):
    return Image.open(io.BytesIO(data))


def test_small_images_keep_their_bytes():
    for size in ((40, 30), (30, 40), (500, 30)):
        data = picture(0, size)
        assert shrink_image(data, "k", 30, 92) is data
    with pytest.raises(BadRecord, match="unreadable image"):
        shrink_image(picture(0)[:300], "k", 200, 92)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size, expected", [((90, 60), (45, 30)), ((301, 1000), (30, 100))])
def test_large_images_are_scaled_to_the_short_side(form, size, expected):
    data = picture(1, size, form, quality=95)
    small = opened(shrink_image(data, "k", 30, 95))
    assert (small.format, small.size, small.mode) == ("JPEG", expected, "RGB")
    wanted = opened(data).convert("RGB").resize(expected, Image.BICUBIC)
    difference = np.abs(np.asarray(small, int) - np.asarray(wanted, int))
    assert difference.mean() < 2


def test_orientation_and_colour_profile_stay_right():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x010F] = "a maker"
    data = picture(2, (90, 60), exif=exif, icc_profile=profile)
    small = opened(shrink_image(data, "k", 30, 92))
    assert small.size == (45, 30)  # as it lies
    assert dict(small.getexif()) == {ORIENTATION: 6}
    assert small.info["icc_profile"] == profile
    plain = opened(shrink_image(picture(2, (90, 60)), "k", 30, 92))
    assert not dict(plain.getexif()) and "icc_profile" not in plain.info


def test_a_profile_of_other_colours_goes_with_them():
    data = picture(3, (90, 60), mode="CMYK", icc_profile=bytes(16) + b"CMYK" + bytes(108))
    assert opened(data).mode == "CMYK"
    small = opened(shrink_image(data, "k", 30, 92))
    assert small.mode == "RGB" and "icc_profile" not in small.info


def test_transparent_pixels_become_white():
    image = Image.new("RGBA", (60, 60), (255, 0, 0, 0))
    file = io.BytesIO()
    image.save(file, "PNG")
    small = opened(shrink_image(file.getvalue(), "k", 30, 92))
    assert np.asarray(small).min() > 250


def test_quality_is_that_of_the_file():
    data = picture(4, (200, 200), "PNG")
    for quality in (60, 95):
        small = opened(shrink_image(data, "k", 100, quality))
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
        assert small.quantization == Image.open(file).quantization
    # Sampling factors of brightness and colour: equal, or twice as many of brightness.
    for quality, factors in ((89, (2, 2)), (90, (1, 1))):
        layers = opened(shrink_image(data, "k", 100, quality)).layer
        assert layers[0][1:3] == factors and layers[1][1:3] == (1, 1)


@pytest.mark.slow
def test_resized_flickr8k(shared, tmp_path):
    tar = str(shared / "data" / "flickr8k_112_dev-00000.tar")
    manifest = prepare(settings(tar, tmp_path / "set", shards=0, resize=64))
    source = PreparedSource(tmp_path / "set")
    assert len(source) == manifest["resized"] == 1000 and manifest["captions"] == 5000
    assert all(opened(source[i].image).size == (64, 64) for i in range(0, 1000, 50))


def test_nobody_else_reads_half_of_it(tar, tmp_path, monkeypatch):
    """A shard has its name only once it is complete: all renames come after its last byte."""
    renamed = []
    replace = os.replace

    def watched(source, target):
        renamed.append((os.fspath(target), os.path.getsize(source)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    prepare(settings(tar, tmp_path / "set"), workers=1)
    sizes = {path: size for path, size in renamed if ".array_record-" in path}
    assert sizes == {str(p): p.stat().st_size for p in (tmp_path / "set").glob("*.array_record-*")}

"""Phrases for a whole source: files, resumption, statistics, and the source with a table."""

import io
import json
import tarfile

import pytest
from PIL import Image

from ccl_jax.data import parallel
from ccl_jax.data.concepts import annotate, statistics
from ccl_jax.data.concepts.table import PhraseTable
from ccl_jax.data.sources import open_source

CAPTIONS = ("A red car by a lake", "Two dogs in the background of a photo with a man", "Blue .")
PHRASES = (("a red car", "a lake"), ("two dogs", "a man"), ())


def write_tar(path, count, *, bad=(), first=0):
    """Records of the three captions; the images of `bad` are no images."""
    image = io.BytesIO()
    Image.new("RGB", (4, 4)).save(image, "JPEG")
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            data = b"<html>" if number in bad else image.getvalue()
            captions = json.dumps({"captions": CAPTIONS}).encode()
            for name, content in ((f"{number:04d}.jpg", data), (f"{number:04d}.json", captions)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return {"kind": "webdataset", "path": str(path)}


@pytest.fixture
def source(tmp_path):
    return write_tar(tmp_path / "in.tar", 30)


def job(source, output, **options):
    return annotate.plan(source, str(output), extractor="embedded", **options)


def test_tars_hold_images_captions_and_phrases(source, tmp_path):
    found = annotate.annotate(job(source, tmp_path / "out", shards=4), workers=1)

    assert (found.records, found.captions, found.phrases) == (30, 90, 120)
    assert found.lengths == {0: 30, 2: 60}
    assert found.dropped == {"generic place": 30, "boilerplate": 30}
    before = open_source(**source)
    after = open_source("webdataset", path=str(tmp_path / "out" / "*.tar"))
    assert len(after) == 30
    for old, new in zip(before, after, strict=True):
        assert (new.key, new.image, new.captions) == (old.key, old.image, CAPTIONS)
        assert new.phrases == PHRASES


def test_a_table_of_phrases_joins_its_source(source, tmp_path):
    source = write_tar(tmp_path / "in.tar", 30, bad={7})
    found = annotate.annotate(job(source, tmp_path / "out", format="jsonl", shards=3), workers=1)
    assert found.records == 29
    assert (tmp_path / "out" / "skipped.tsv").read_text().startswith("0007\tunreadable image\t")

    joined = PhraseTable(source, tmp_path / "out")
    assert len(joined) == 30
    assert {record.phrases for i in range(30) if i != 7 for record in [joined[i]]} == {PHRASES}
    with pytest.raises(Exception, match="phrases of another record"):
        joined[7]


def test_the_table_of_another_source_is_refused(source, tmp_path):
    annotate.annotate(job(source, tmp_path / "out", format="jsonl"), workers=1)
    with pytest.raises(ValueError, match="phrases of 30 records and more has 31"):
        PhraseTable(write_tar(tmp_path / "more.tar", 31), tmp_path / "out")
    other = PhraseTable(write_tar(tmp_path / "other.tar", 30, first=1), tmp_path / "out")
    with pytest.raises(Exception, match="phrases of another record.*'0000'"):
        other[0]
    with pytest.raises(ValueError, match="--output of tools.concepts"):
        PhraseTable(source, tmp_path / "nowhere")


def test_a_killed_run_goes_on_and_gives_the_same_files(source, tmp_path):
    whole, resumed = job(source, tmp_path / "a", shards=5), job(source, tmp_path / "b", shards=5)
    expected = annotate.annotate(whole, workers=1)
    annotate.annotate(resumed, workers=1)
    # Killed: one shard not begun, one without its counts, one cut in its temporary file.
    resumed.path(1).unlink()
    resumed.statistics_path(1).unlink()
    resumed.statistics_path(2).unlink()
    resumed.path(3).rename(resumed.path(3).with_name(".phrases-00003-of-00005.tar.1.tmp"))
    assert resumed.missing() == [1, 2, 3]
    untouched = resumed.path(4).stat().st_mtime_ns

    assert annotate.annotate(resumed, workers=1) == expected
    for shard in range(5):
        assert resumed.path(shard).read_bytes() == whole.path(shard).read_bytes()
    assert resumed.path(4).stat().st_mtime_ns == untouched
    assert not list((tmp_path / "b").glob(".*"))


@pytest.mark.slow
def test_processes_give_what_one_gives(source, tmp_path):
    one = annotate.annotate(job(source, tmp_path / "a", shards=4), workers=1)
    two = annotate.annotate(job(source, tmp_path / "b", shards=4), workers=2)
    assert one == two
    for name in ("phrases-00000-of-00004.tar", "phrases-00003-of-00004.tar"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.slow
def test_beam_gives_what_one_process_gives(source, tmp_path):
    pytest.importorskip("apache_beam", reason="needs Apache Beam: pip install ccl_jax[beam]")
    here, there = job(source, tmp_path / "a", shards=3), job(source, tmp_path / "b", shards=3)
    expected = annotate.annotate(here, workers=1)
    assert annotate.annotate(there, runner="DirectRunner") == expected
    for shard in range(3):
        assert here.path(shard).read_bytes() == there.path(shard).read_bytes()


def test_other_settings_in_the_same_folder_are_refused(source, tmp_path):
    annotate.annotate(job(source, tmp_path / "out", shards=2), workers=1)
    with pytest.raises(ValueError, match="another run.*shards = 2.*choose another folder"):
        annotate.annotate(job(source, tmp_path / "out", shards=3), workers=1)


def test_too_many_unusable_records_stop_the_run(tmp_path):
    source = write_tar(tmp_path / "in.tar", 30, bad=range(5))
    with pytest.raises(ValueError, match=r"5 of 30 .*unreadable image x 5.*--max_bad_share"):
        annotate.annotate(job(source, tmp_path / "out"), workers=1)
    found = annotate.annotate(job(source, tmp_path / "out", max_bad_share=0.2), workers=1)
    assert found.records == 25


def test_a_shard_of_unusable_records_has_no_tar_and_is_not_done_again(tmp_path):
    source = write_tar(tmp_path / "in.tar", 30, bad=range(3))
    plan = job(source, tmp_path / "out", shards=10, max_bad_share=0.2)
    annotate.annotate(plan, workers=1)
    assert not plan.path(0).exists() and not plan.missing()
    assert len(open_source("webdataset", path=str(tmp_path / "out" / "*.tar"))) == 27


def test_keys_of_several_tars_do_not_collide(tmp_path):
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", 3)
    source = {"kind": "webdataset", "path": str(tmp_path / "{a,b}.tar")}
    annotate.annotate(job(source, tmp_path / "out"), workers=1)
    keys = [r.key for r in open_source("webdataset", path=str(tmp_path / "out" / "*.tar"))]
    assert keys == ["0000", "0001", "0002", "0000_3", "0001_4", "0002_5"]


def test_batches_by_hand():
    # Eight images to a group with room for eight phrases; each image has the phrase "a", and
    # one image has nine more: ten of seventeen find no room.
    sample = [["a"]] * 7 + [["a", *"bcdefghij"]]
    means = statistics.batch_statistics(sample, batch_size=768, phrases_per_image=1, phrase_group=8)
    assert means["images"] == 8 and means["phrases"] == 8 and means["dropped"] == 9
    assert means["padding"] == 0 and 1 < means["losing"] <= 8
    roomy = statistics.batch_statistics(sample, batch_size=8, phrases_per_image=4)
    assert roomy["losing"] == roomy["dropped"] == 0 and roomy["padding"] == 32 - 17
    assert roomy["repeated"] == 8 and roomy["distinct"] == 10
    assert statistics.batch_statistics(sample[:3], batch_size=8) == {}


def test_the_sample_is_spread_over_a_large_source():
    chosen = [i for i in range(200_000) if statistics.in_sample(i, 200_000)]
    assert abs(len(chosen) - statistics.SAMPLE) < 0.02 * statistics.SAMPLE
    tenths = [sum(i // 20_000 == tenth for i in chosen) for tenth in range(10)]
    assert max(tenths) < 1.05 * min(tenths)
    assert all(statistics.in_sample(i, 1_000) for i in range(1_000))


def test_the_summary_says_what_a_reader_wants_to_know(source, tmp_path):
    found = annotate.annotate(job(source, tmp_path / "out"), workers=1)
    text = statistics.format_statistics(found, batch_size=768)
    assert "30 images, 90 captions, 120 phrases (1.33 a caption)" in text
    assert "Captions without phrases: 30 (33.3%)" in text
    assert "generic place x 30" in text and "'a red car' x 30" in text
    assert "A batch of 24 images" in text


def test_shards_cover_every_record_once():
    for records in (1, 7, 500, 12_345):
        shards = min(parallel.shard_count(records), records)
        ranges = [parallel.shard_range(shard, shards, records) for shard in range(shards)]
        assert [i for each in ranges for i in each] == list(range(records))
        assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
    assert parallel.shard_count(3_000_000) == 300


def test_a_file_is_complete_or_not_there(tmp_path):
    with pytest.raises(RuntimeError), parallel.complete_file(tmp_path / "x") as file:
        file.write("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_progress_tells_speed_and_the_time_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(parallel.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    line = parallel.Progress(100, "images", found=20, stream=stream)
    now[0] += 1
    line.show(21)  # too soon after the start for a log
    now[0] += 19
    line.show(60)
    now[0] += 1
    line.show(100)
    # 40 images in 20 s, so 40 more take another 20.
    assert stream.getvalue() == ("60 of 100 images, 2/s, 0:00:20 left\n100 of 100 images, 4/s\n")

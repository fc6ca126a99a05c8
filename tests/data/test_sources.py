import concurrent.futures
import json
import os
import pathlib
import pickle
import tarfile

import pytest
from absl import logging
from source_files import JPEG, numbered, write_tar

from ccl_jax.data.records import BadRecord, Source
from ccl_jax.data.sources import SOURCES, WebDatasetSource, files, open_source, source_counts

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"


def one_record(tmp_path, **parts):
    """Opens a tar of one record with these parts, next to a good one."""
    members = [(f"key.{extension}", data) for extension, data in parts.items()]
    source = WebDatasetSource(write_tar(tmp_path / "x.tar", [*members, *numbered(1)]))
    assert len(source) == 2
    return source


@pytest.fixture
def warnings_logged(monkeypatch):
    messages = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: messages.append(text % args))
    return messages


def test_reads_image_caption_and_key(tmp_path):
    source = WebDatasetSource(write_tar(tmp_path / "set.tar", numbered(3)))
    assert isinstance(source, Source)
    assert source.name == "set"
    assert [record.sample_id for record in source] == [0, 1, 2]
    assert (source[1].key, source[1].image) == ("0001", b"image 1")
    assert source[1].captions == ("caption 1",)
    assert source[1].phrases is None
    for index in (3, -1):
        with pytest.raises(IndexError):
            source[index]


def test_members_of_a_record_may_lie_apart(tmp_path):
    members = numbered(3)
    source = WebDatasetSource(write_tar(tmp_path / "x.tar", members[::2] + members[1::2][::-1]))
    assert [record.captions[0] for record in source] == ["caption 0", "caption 1", "caption 2"]


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"captions": ["a", " b "], "caption": "c"}, ("a", "b")),
        ({"caption": "c"}, ("c",)),
        ({"shortLLA_captions": "s", "caption": "c"}, ("s",)),
        ({"captions": None, "caption": "c"}, ("c",)),
        ({"captions": ["", "a", "  "]}, ("a",)),
        ({"split": "train"}, ("from the text",)),
    ],
)
def test_captions_come_from_the_first_field_else_the_text(tmp_path, fields, expected):
    source = one_record(tmp_path, jpg=JPEG, json=json.dumps(fields), txt="\ufefffrom the text\n")
    assert source[0].captions == expected


def test_fields_can_be_chosen(tmp_path):
    fields = {"caption": "no", "alt": "yes", "tags": ["dog"]}
    path = write_tar(tmp_path / "x.tar", [("k.jpg", JPEG), ("k.json", json.dumps(fields))])
    record = WebDatasetSource(path, caption_fields="alt", phrase_fields=("tags",))[0]
    assert (record.captions, record.phrases) == (("yes",), (("dog",),))


@pytest.mark.parametrize(
    "phrases, expected",
    [
        (["dog", " hat "], (("dog", "hat"), ("dog", "hat"))),
        ([["dog"], ["dropped"], ["hat", ""]], (("dog",), ("hat",))),
        ([], ((), ())),
        (None, None),
    ],
)
@pytest.mark.parametrize("field", ["phrases", "nounphrases"])
def test_phrases_stay_with_their_captions(tmp_path, field, phrases, expected):
    fields = {"captions": ["a dog", "", "a hat"], field: phrases}
    record = one_record(tmp_path, jpg=JPEG, json=json.dumps(fields))[0]
    assert record.captions == ("a dog", "a hat")
    assert record.phrases == expected


@pytest.mark.parametrize(
    "parts, reason",
    [
        ({"jpg": JPEG}, "missing caption"),
        ({"jpg": JPEG, "json": "{}"}, "missing caption"),
        ({"jpg": JPEG, "txt": " \n"}, "empty caption"),
        ({"jpg": JPEG, "json": '{"captions": ["", " "]}'}, "empty caption"),
        ({"jpg": JPEG, "json": '{"captions": []}'}, "empty caption"),
        ({"jpg": JPEG, "json": '{"captions": [1]}'}, "invalid caption"),
        ({"jpg": JPEG, "json": '{"captions": {"en": "a"}}'}, "invalid caption"),
        ({"jpg": JPEG, "json": '{"caption": "a", "phrases": "b"}'}, "invalid phrases"),
        ({"jpg": JPEG, "json": '{"caption": "a", "phrases": [["b"], "c"]}'}, "invalid phrases"),
        ({"jpg": JPEG, "json": '{"caption": "a", "phrases": [["b"], ["c"]]}'}, "invalid phrases"),
        ({"jpg": JPEG, "json": '{"caption": "a"', "txt": "a"}, "invalid json"),
        ({"jpg": JPEG, "json": '["a"]'}, "invalid json"),
        ({"jpg": JPEG, "json": "[" * 100_000}, "invalid json"),
        ({"jpg": JPEG, "txt": b"caf\xe9"}, "invalid UTF-8"),
        ({"jpg": JPEG, "json": b'{"caption": "caf\xe9"}'}, "invalid UTF-8"),
        ({"jpg": JPEG, "json": '{"caption": "half a pair \\ud800"}'}, "invalid UTF-8"),
        ({"jpg": b"", "txt": "a"}, "unreadable image"),
    ],
)
def test_one_bad_record_is_named_and_spares_the_others(tmp_path, parts, reason):
    source = one_record(tmp_path, **parts)
    with pytest.raises(BadRecord) as caught:
        source[0]
    assert (caught.value.key, caught.value.reason) == ("key", reason)
    assert source[1].captions == ("caption 0",)


def test_member_names_only_make_keys(tmp_path):
    names = ["./a", "/etc/b", "../../c", "d/e"]
    members = [(f"{name}.{ext}", name) for name in names for ext in ("JPG", "txt")]
    members += [("d/._e.jpg", "a macOS ghost"), ("d/f.mask.png", "no image")]
    before = set(tmp_path.parent.iterdir())
    source = WebDatasetSource(write_tar(tmp_path / "x.tar", members))
    assert [record.key for record in source] == ["a", "/etc/b", "../../c", "d/e"]
    assert os.listdir(tmp_path) == ["x.tar"] and set(tmp_path.parent.iterdir()) == before


def test_the_first_of_a_repeated_key_wins(tmp_path, warnings_logged):
    members = [*numbered(2), ("0000.jpg", b"other"), ("0000.txt", "other"), ("9.txt", "no image")]
    source = WebDatasetSource(write_tar(tmp_path / "x.tar", members))
    assert [record.captions[0] for record in source] == ["caption 0", "caption 1"]
    assert len(warnings_logged) == 2
    assert "repeats 2 members" in warnings_logged[0]
    assert "1 keys without an image" in warnings_logged[1]


def test_paths_globs_ranges_and_lists(tmp_path, warnings_logged):
    for shard in range(12):
        write_tar(tmp_path / f"x-{shard:05d}.tar", numbered(2, start=2 * shard))

    def first_captions(path):
        return [int(record.captions[0].split()[1]) for record in WebDatasetSource(path)][::2]

    assert first_captions(tmp_path / "x-00003.tar") == [6]
    assert first_captions(f"{tmp_path}/x-*.tar") == list(range(0, 24, 2))
    assert first_captions(f"{tmp_path}/x-{{00009..00011}}.tar") == [18, 20, 22]
    assert first_captions(f"{tmp_path}/x-000{{00..01}}.t{{ar,ar}}") == [0, 2]
    listed = [f"{tmp_path}/x-{{00004..00005}}.tar", tmp_path / "x-00001.tar"]
    assert first_captions(listed) == [8, 10, 2]
    del warnings_logged[:]
    assert first_captions([*listed, f"{tmp_path}/x-00005.tar"]) == [8, 10, 2]
    assert warnings_logged == ["1 tars are named twice and read once"]


def test_a_name_with_pattern_characters_is_found(tmp_path):
    path = write_tar(tmp_path / "x[1]{a..b}.tar", numbered(1))
    assert len(WebDatasetSource(path)) == 1


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("none-*.tar", r"nothing matches .*none-\*\.tar"),
        ("none.tar", "nothing matches .*none.tar"),
        ("no/such/folder/*.tar", "the folder .*no/such/folder does not exist"),
        ("x-{0..3}.tar", r"3 of the 4 tars of .* are missing, the first is .*x-1\.tar"),
        ("x-{3..0}.tar", "smaller number first"),
        ("", r"is a folder: give .*\*\.tar"),
    ],
)
def test_a_pattern_that_finds_nothing_is_named(tmp_path, pattern, message):
    write_tar(tmp_path / "x-0.tar", numbered(1))
    with pytest.raises(ValueError, match=message):
        WebDatasetSource(f"{tmp_path}/{pattern}")


def test_remote_paths_and_empty_lists_are_refused():
    with pytest.raises(ValueError, match="not a local path"):
        WebDatasetSource("gs://bucket/x.tar")
    with pytest.raises(ValueError, match="at least one path"):
        WebDatasetSource([])


def test_a_tar_without_images_lists_what_it_holds(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.txt", "a"), ("b.txt", "b"), ("c.avif", "c")])
    with pytest.raises(ValueError, match=r"x\.tar holds no \.jpg.*found: \.txt x 2, \.avif x 1"):
        WebDatasetSource(path)
    with pytest.raises(ValueError, match="found: nothing"):
        WebDatasetSource(write_tar(tmp_path / "empty.tar", []))


def test_a_tar_without_captions_says_where_they_go(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.jpg", JPEG)])
    with pytest.raises(ValueError, match=r"no \.json and no \.txt.*KEY\.txt.*captions / short"):
        WebDatasetSource(path)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "is not a tar"),
        (b"<html>404</html>" * 100, "is not a tar"),
        (b"\x1f\x8b\x08" + bytes(600), "is not a tar"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "is compressed by zstd: decompress it"),
    ],
)
def test_other_files_are_refused(tmp_path, data, message):
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(ValueError, match=rf"x\.tar {message}"):
        WebDatasetSource(tmp_path / "x.tar", index_dir=tmp_path / "index")


# A member of numbered() is a header of 512 bytes and one block of data.
@pytest.mark.parametrize(
    "kept, records, complaint",
    [
        (4 * 1024 + 512 + 3, 2, "is cut inside 0002.jpg"),
        (4 * 1024 + 100, 2, "is damaged"),
        (4 * 1024, 2, "without an end mark"),
    ],
)
def test_a_cut_tar_gives_its_complete_records(tmp_path, warnings_logged, kept, records, complaint):
    path = pathlib.Path(write_tar(tmp_path / "x.tar", numbered(5)))
    path.write_bytes(path.read_bytes()[:kept])
    source = WebDatasetSource(path)
    assert [record.captions[0] for record in source] == [f"caption {i}" for i in range(records)]
    assert len(warnings_logged) == 1
    assert str(path) in warnings_logged[0] and complaint in warnings_logged[0]


def test_a_tar_cut_in_its_first_record_is_refused(tmp_path):
    path = pathlib.Path(write_tar(tmp_path / "x.tar", numbered(5)))
    path.write_bytes(path.read_bytes()[:515])
    with pytest.raises(ValueError, match=r"x\.tar holds no .*is cut inside 0000\.jpg"):
        WebDatasetSource(path)


def test_damage_inside_and_joined_tars_are_not_silent(tmp_path, warnings_logged):
    path = pathlib.Path(write_tar(tmp_path / "x.tar", numbered(5)))
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\x07" * 512 + whole[4608:])
    assert len(WebDatasetSource(path)) == 2
    assert "is damaged at byte 4096" in warnings_logged[0]
    path.write_bytes(whole + whole)
    assert len(WebDatasetSource(path)) == 5
    assert "joined tars" in warnings_logged[1]


def test_a_shard_that_shrinks_after_indexing_gives_bad_records(tmp_path):
    path = pathlib.Path(write_tar(tmp_path / "x.tar", numbered(5)))
    source = WebDatasetSource(path)
    os.truncate(path, 4 * 1024)
    assert source[1].image == b"image 1"
    with pytest.raises(BadRecord, match="got shorter"):
        source[2]


def test_many_threads_read_many_shards_with_few_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MAX_OPEN_FILES", 2)
    for shard in range(8):
        write_tar(tmp_path / f"{shard}.tar", numbered(20, start=20 * shard))
    source = WebDatasetSource(f"{tmp_path}/*.tar")
    order = [(i * 37) % 160 for i in range(160)] * 4
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        records = list(pool.map(source.__getitem__, order))
    assert [record.image for record in records] == [b"image %d" % i for i in order]
    descriptors = pathlib.Path("/proc/self/fd")
    if descriptors.is_dir():  # Linux
        targets = [os.path.realpath(descriptor) for descriptor in descriptors.iterdir()]
        assert sum(target.startswith(str(tmp_path)) for target in targets) == 2


def test_counts_tell_what_was_found_and_left_out(tmp_path):
    members = [*numbered(2), ("0000.jpg", b"other"), ("9.txt", "no image"), ("8.pyd", "cbuiltins")]
    source = WebDatasetSource(write_tar(tmp_path / "x.tar", members))
    assert source_counts(source) == {
        "records": 2,
        "shards": 1,
        "repeated members": 1,
        "keys without an image": 1,
        "pickles": 1,
    }


def test_a_source_of_ones_own_is_one_line(monkeypatch):
    class Own:
        def __init__(self, count):
            self.name, self.count = "own", count

        def __len__(self):
            return self.count

    monkeypatch.setitem(SOURCES, "own", Own)
    assert source_counts(open_source("own", count=3)) == {"records": 3}
    with pytest.raises(ValueError, match="no option 'cuont': did you mean 'count'"):
        open_source("own", cuont=3)
    with pytest.raises(ValueError, match="source 'own': missing a required argument: 'count'"):
        open_source("own")


@pytest.mark.parametrize("kind", list(SOURCES))
def test_every_kind_can_be_opened_and_names_its_options(kind):
    with pytest.raises(ValueError, match=f"source '{kind}' has no option 'nonsense'.* It takes "):
        open_source(kind, nonsense=1)


def test_bad_records_cross_processes():
    error = pickle.loads(pickle.dumps(BadRecord("k", "missing image", "x.jpg")))
    assert (error.key, error.reason, str(error)) == (
        "k",
        "missing image",
        "k: missing image (x.jpg)",
    )


def test_open_source_names_the_nearest_kind_and_the_options(tmp_path):
    path = write_tar(tmp_path / "x.tar", numbered(1))
    assert isinstance(open_source("webdataset", path=path), WebDatasetSource)
    with pytest.raises(ValueError, match="did you mean 'webdataset'"):
        open_source("web_data", path=path)
    with pytest.raises(
        ValueError, match="no option 'pth': did you mean 'path'.* It takes path, cap"
    ):
        open_source("webdataset", pth=path)


def test_flickr8k_is_read_whole():
    if not SHARED.is_dir():
        pytest.skip(f"needs the Flickr8k tars in {SHARED}")
    source = WebDatasetSource(SHARED / "flickr8k_112_dev-00000.tar")
    records = list(source)
    assert len(records) == 1000
    assert all(len(record.captions) == 5 for record in records)
    assert all(record.image.startswith(b"\xff\xd8") for record in records)
    with tarfile.open(SHARED / "flickr8k_112_dev-00000.tar") as tar:
        assert tar.extractfile(records[500].key + ".jpg").read() == records[500].image

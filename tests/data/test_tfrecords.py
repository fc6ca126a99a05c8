"""TFRecords of others: features by name, read at random, checksums verified."""

import concurrent.futures
import gzip
import os

import pytest

from ccl_jax.data.records import BadRecord, Source
from ccl_jax.data.shards import write_tfrecord
from ccl_jax.data.tfrecords import TFRecordSource

proto = pytest.importorskip("tensorflow_datasets.proto")

JPEG = b"\xff\xd8 not decoded by a source"


def example(**features):
    """A tf.train.Example as TFDS's own copy of the message writes it; _ is / in names."""
    message = proto.tf_example_pb2.Example()
    for name, values in features.items():
        feature = message.features.feature[name.replace("__", "/")]
        values = values if isinstance(values, list) else [values]
        numbers = values and isinstance(values[0], int)
        kind = feature.int64_list if numbers else feature.bytes_list
        kind.SetInParent()
        kind.value.extend(v.encode() if isinstance(v, str) else v for v in values)
    return message.SerializeToString()


def one(tmp_path, **features):
    """A source of one record beside a good one, which names the features."""
    good = example(**{"image": JPEG, "captions": "good", "phrases": ["a", "b"], **{}})
    write_tfrecord(tmp_path / "x.tfrecord", [good, example(**features)])
    return TFRecordSource(tmp_path / "x.tfrecord")


def test_reads_the_usual_features(tmp_path):
    for shard in range(3):
        records = [
            example(
                image__encoded=JPEG + bytes([shard, i]),
                image__caption=f"caption {shard} {i}",
                image__filename=f"{shard}-{i}.jpg",
                image__height=30,
            )
            for i in range(4)
        ]
        write_tfrecord(tmp_path / f"x.tfrecord-{shard:05d}-of-00003", records)
    source = TFRecordSource(f"{tmp_path}/x.tfrecord-{{00000..00002}}-of-00003")
    assert isinstance(source, Source) and len(source) == 12 and source.counts == {"files": 3}
    assert source.features == ("image/caption", "image/encoded", "image/filename", "image/height")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(source.__getitem__, range(12)))
    assert [record.sample_id for record in found] == list(range(12))
    assert [record.key for record in found] == [f"{s}-{i}.jpg" for s in range(3) for i in range(4)]
    assert (found[6].image, found[6].captions) == (JPEG + b"\x01\x02", ("caption 1 2",))
    assert found[6].phrases is None
    for index in (-1, 12):
        with pytest.raises(IndexError):
            source[index]


def test_features_by_option(tmp_path):
    record = example(pixels=JPEG, short="a hat", long=["a red hat", " ", "a very red hat"],
                     objects=["hat", "head"], number=17)  # fmt: skip
    write_tfrecord(tmp_path / "x", [record])
    options = {"image": "pixels", "captions": ["short", "long"]}
    source = TFRecordSource(tmp_path / "x", **options, phrases="objects", key="number")
    assert source[0].captions == ("a hat", "a red hat", "a very red hat")
    assert source[0].phrases == (("hat", "head"),) * 3
    assert source[0].key == "17"
    assert TFRecordSource(tmp_path / "x", **options)[0].key == "x:0"
    with pytest.raises(ValueError, match="no feature 'numbr': did you mean 'number'"):
        TFRecordSource(tmp_path / "x", **options, key="numbr")
    with pytest.raises(ValueError, match="none of the features image/encoded.*name one with image"):
        TFRecordSource(tmp_path / "x")
    with pytest.raises(ValueError, match="captions=; there are .*long.*pixels"):
        TFRecordSource(tmp_path / "x", image="pixels")


@pytest.mark.parametrize(
    "lengths, phrases", [([2, 1], (("a", "b"), ("c",))), ([3, 0], (("a", "b", "c"), ()))]
)
def test_phrases_of_each_caption_as_tfds_stores_them(tmp_path, lengths, phrases):
    ragged = {"phrases__ragged_flat_values": ["a", "b", "c"]}
    ragged["phrases__ragged_row_lengths_0"] = lengths
    write_tfrecord(tmp_path / "x", [example(image=JPEG, captions=["one", "two"], **ragged)])
    source = TFRecordSource(tmp_path / "x")
    assert source.features == ("captions", "image", "phrases")
    assert source[0].phrases == phrases


@pytest.mark.parametrize(
    "features, reason",
    [
        ({"captions": "a"}, "unreadable image"),
        ({"captions": "a", "image": b""}, "unreadable image"),
        ({"captions": "a", "image": 3}, "unreadable image"),
        ({"image": JPEG}, "missing caption"),
        ({"image": JPEG, "captions": []}, "missing caption"),
        ({"image": JPEG, "captions": [" "]}, "empty caption"),
        ({"image": JPEG, "captions": 7}, "invalid caption"),
        ({"image": JPEG, "captions": b"caf\xe9"}, "invalid UTF-8"),
        ({"image": JPEG, "captions": "x" * 100_000}, "caption too long"),
        ({"image": JPEG, "captions": "a", "phrases": 7}, "invalid phrases"),
        ({"image": JPEG, "captions": "a", "phrases__ragged_flat_values": ["a"],
          "phrases__ragged_row_lengths_0": [2]}, "invalid phrases"),
    ],
)  # fmt: skip
def test_one_bad_record_is_named_and_spares_the_others(tmp_path, features, reason):
    source = one(tmp_path, **features)
    with pytest.raises(BadRecord) as caught:
        source[1]
    assert (caught.value.key, caught.value.reason) == ("x.tfrecord:1", reason)
    assert source[0].captions == ("good",)


def test_damage_is_seen(tmp_path):
    records = [example(image=JPEG * 99, captions=f"caption {i}") for i in range(3)]
    write_tfrecord(tmp_path / "x", [*records, b"\xff no example"])
    raw = bytearray((tmp_path / "x").read_bytes())
    raw[raw.index(b"caption 1")] ^= 1
    (tmp_path / "x").write_bytes(raw)
    source = TFRecordSource(tmp_path / "x")
    assert [source[i].captions for i in (0, 2)] == [("caption 0",), ("caption 2",)]
    for index, detail in ((1, "x, record 1: checksum mismatch"), (3, "not a tf.train.Example")):
        with pytest.raises(BadRecord, match=detail) as caught:
            source[index]
        assert caught.value.reason == "damaged record"
    os.truncate(tmp_path / "x", 500)
    with pytest.raises(BadRecord, match="got shorter"):
        source[2]


@pytest.mark.parametrize(
    "data, message",
    [
        (b"<html>404</html>" * 10, "is no TFRecord file"),
        (gzip.compress(bytes(1000), mtime=0), "is compressed, which rules out random access"),
        (b"", "holds no records"),
    ],
)
def test_other_files_are_refused(tmp_path, data, message):
    (tmp_path / "x.tfrecord").write_bytes(data)
    with pytest.raises(ValueError, match=rf"x\.tfrecord {message}"):
        TFRecordSource(tmp_path / "x.tfrecord")
    with pytest.raises(ValueError, match="nothing matches .*none"):
        TFRecordSource(tmp_path / "none*")


def test_records_of_something_else_are_refused(tmp_path):
    write_tfrecord(tmp_path / "x", [b"\xff text"] * 3)
    with pytest.raises(ValueError, match="none of the first records can be read"):
        TFRecordSource(tmp_path / "x")


def test_the_index_is_kept_and_made_anew_for_another_file(tmp_path):
    path, kept = tmp_path / "x", tmp_path / "index"
    write_tfrecord(path, [example(image=JPEG, captions=f"caption {i}") for i in range(3)])
    assert len(TFRecordSource(path, index_dir=kept)) == 3
    assert len(list(kept.iterdir())) == 1
    write_tfrecord(path, [example(image=JPEG, captions=f"a longer {i}") for i in range(5)])
    source = TFRecordSource(path, index_dir=kept)
    assert [source[i].captions[0] for i in range(5)] == [f"a longer {i}" for i in range(5)]

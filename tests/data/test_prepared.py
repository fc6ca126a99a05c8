import concurrent.futures
import json
import pickle

import numpy as np
import pytest
from small_tars import picture, records, write_tar

from ccl_jax.data import examples, prepared
from ccl_jax.data.converting import Settings
from ccl_jax.data.prepared import PreparedSource
from ccl_jax.data.preparing import prepare
from ccl_jax.data.records import BadRecord, Record, Source
from ccl_jax.data.shards import READERS, WRITERS, DamagedRecord
from ccl_jax.data.sources import open_source


@pytest.fixture(scope="module")
def tar(tmp_path_factory):
    return write_tar(tmp_path_factory.mktemp("tar") / "x.tar", records(11))


def make(tar, folder, **options):
    source = {"kind": "webdataset", "path": tar}
    return prepare(Settings(source, str(folder), **{"shards": 3, **options}), workers=1)


@pytest.fixture(scope="module", params=prepared.FORMATS)
def folder(request, tar, tmp_path_factory):
    """A prepared set; tests that change its files copy it."""
    folder = tmp_path_factory.mktemp("data") / "small_set" / "1.2.0"
    make(tar, folder, format=request.param)
    return folder


def shard_of(folder, number, count=3):
    (path,) = folder.glob(f"*-{number:05d}-of-{count:05d}")
    return path


def test_gives_back_what_the_source_had(folder, tar):
    source, wanted = PreparedSource(folder), open_source("webdataset", path=tar)
    assert isinstance(source, Source)
    assert (source.name, len(source)) == ("small_set/train", 11)
    assert [source[i] for i in range(11)] == [wanted[i] for i in range(11)]
    assert source[0].phrases == (("a dog 0", "a hat"),)
    assert source[1].phrases is None
    assert source[3].phrases == (("a dog 3", "a hat"), ())
    for index in (-1, 11):
        with pytest.raises(IndexError):
            source[index]


def test_many_threads_read_one_source(folder):
    source = PreparedSource(folder)
    order = [i * 7 % 11 for i in range(220)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.__getitem__, order))
    assert [record.key for record in found] == [f"key{i:04d}" for i in order]


def test_a_source_goes_to_other_processes(folder):
    source = PreparedSource(folder)
    first = source[0]
    assert pickle.loads(pickle.dumps(source))[0] == first


def test_records_keep_extra_values_as_far_as_json_can():
    extra = {"label": 3, "licence": "CC BY", "pairs": [["a", "b"]], "mask": bytes(3)}
    record = Record(5, "k/\udc80", b"\xff\xd8\x00", ("c",), None, extra)
    found = prepared.decode_record(prepared.encode_record(record), 7)
    assert (found.sample_id, found.image, found.captions) == (7, b"\xff\xd8\x00", ("c",))
    assert found.extra == {"label": 3, "licence": "CC BY", "pairs": [["a", "b"]]}
    assert found.key == "k/\\udc80"


def test_examples_are_those_of_tensorflow():
    proto = pytest.importorskip("tensorflow_datasets.proto")
    given = {"b": [b"x", b"\xff"], "i": np.array([1, -(2**40)]), "f": np.array([0.5])}
    message = proto.tf_example_pb2.Example.FromString(
        examples.encode({**given, "none": np.zeros(0, np.int64)})
    )
    features = message.features.feature
    assert list(features["b"].bytes_list.value) == [b"x", b"\xff"]
    assert list(features["i"].int64_list.value) == [1, -(2**40)]
    assert list(features["f"].float_list.value) == [0.5]
    assert features["none"].WhichOneof("kind") == "int64_list"
    features["unset"].SetInParent()
    assert examples.decode(message.SerializeToString()) == {
        "b": [b"x", b"\xff"], "i": [1, -(2**40)], "f": [0.5], "none": [], "unset": [],
    }  # fmt: skip
    with pytest.raises(ValueError, match="not a tf.train.Example"):
        examples.decode(b"<html>")


def test_tfds_opens_the_folder(folder, tar):
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder_from_directory(folder)
    assert builder.info.full_name == "small_set/1.2.0"
    assert builder.info.splits["train"].num_examples == 11
    raw = {"image": tfds.decode.SkipDecoding()}
    if "array_record" in builder.info.file_format.value:
        found = list(builder.as_data_source("train", decoders=raw))
        # By name as well, as any set of TFDS's.
        named = tfds.data_source("small_set", split="train", data_dir=folder.parents[1])
        assert named[4]["image"].shape == (30, 40, 3)
    else:
        found = list(tfds.as_numpy(builder.as_dataset("train", decoders=raw)))
        assert next(iter(builder.as_dataset("train")))["image"].shape == (30, 40, 3)
    assert len(found) == 11
    source = open_source("webdataset", path=tar)
    by_key = {example["key"].decode(): example for example in found}
    for record in (source[0], source[1], source[3]):
        example = by_key[record.key]
        assert example["image"] == record.image
        assert [caption.decode() for caption in example["captions"]] == list(record.captions)
        groups = example["phrases"]
        groups = groups.to_list() if hasattr(groups, "to_list") else groups
        groups = [[phrase.decode() for phrase in group] for group in groups]
        assert groups == [list(group) for group in record.phrases or ()]


@pytest.mark.parametrize("form", prepared.FORMATS)
def test_a_flipped_bit_costs_one_record_and_is_found(tmp_path, form):
    data = [bytes([i]) * 70_000 for i in range(4)]
    WRITERS[form](tmp_path / "x", data)
    assert [READERS[form]([tmp_path / "x"], [4]).read(0, i) for i in range(4)] == data
    raw = bytearray((tmp_path / "x").read_bytes())
    raw[raw.index(data[2][:1000]) + 3_000] ^= 1
    (tmp_path / "x").write_bytes(raw)
    shards = READERS[form]([tmp_path / "x"], [4])
    with pytest.raises(DamagedRecord, match="x, record 2: .*mismatch"):
        shards.read(0, 2)
    assert shards.read(0, 0) == data[0]


@pytest.mark.parametrize("form", prepared.FORMATS)
@pytest.mark.parametrize("kept", [0, 100, 150_000])
def test_a_cut_shard_is_no_short_shard(tmp_path, form, kept):
    WRITERS[form](tmp_path / "x", [bytes(70_000)] * 4)
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:kept])
    with pytest.raises(DamagedRecord, match=r"holds \d records where its data set names 4|is cut"):
        READERS[form]([tmp_path / "x"], [4]).read(0, 0)


def test_tfrecords_are_those_of_tensorflow(tmp_path):
    tf = pytest.importorskip("tensorflow")
    data = [b"", b"x" * 300, bytes(70_000)]
    WRITERS["tfrecord"](tmp_path / "ours", data)
    assert [x.numpy() for x in tf.data.TFRecordDataset(str(tmp_path / "ours"))] == data
    with tf.io.TFRecordWriter(str(tmp_path / "theirs")) as writer:
        for record in data:
            writer.write(record)
    assert (tmp_path / "theirs").read_bytes() == (tmp_path / "ours").read_bytes()


def test_a_damaged_record_is_named_and_spares_the_others(tar, tmp_path):
    make(tar, tmp_path / "set")
    shard_of(tmp_path / "set", 1).write_bytes(b"")
    source = PreparedSource(tmp_path / "set")
    bad = {}
    for index in range(11):
        try:
            assert source[index].key == f"key{index:04d}"
        except BadRecord as error:
            bad[error.key] = error.reason
    assert bad == {f"set/train/{i}": "damaged record" for i in (3, 4, 5, 6)}


def test_two_splits_share_a_folder(tar, tmp_path):
    make(tar, tmp_path / "set", split="train")
    other = write_tar(tmp_path / "y.tar", records(4))
    make(other, tmp_path / "set", split="val")
    assert len(PreparedSource(tmp_path / "set")) == 11
    assert len(PreparedSource(tmp_path / "set", split="val")) == 4
    with pytest.raises(ValueError, match="has no split 'dev'; there are train, val"):
        PreparedSource(tmp_path / "set", split="dev")
    with pytest.raises(ValueError, match="split train of the format array_record: use the same"):
        make(other, tmp_path / "set", split="test", format="tfrecord")


def test_folders_that_are_no_prepared_set_are_explained(tar, tmp_path):
    with pytest.raises(ValueError, match=r"no dataset_info.json: give the folder"):
        PreparedSource(tmp_path)
    make(tar, tmp_path / "set")
    shard_of(tmp_path / "set", 2).unlink()
    with pytest.raises(ValueError, match="1 of 3 shards are missing, the first is set-train.arr"):
        PreparedSource(tmp_path / "set")
    features = tmp_path / "set" / "features.json"
    fields = json.loads(features.read_text())
    del fields["featuresDict"]["features"]["captions"]
    features.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="open it as the source 'tfds'"):
        PreparedSource(tmp_path / "set")
    (tmp_path / "set" / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match="metadata of .* is damaged"):
        PreparedSource(tmp_path / "set")
    (tmp_path / "set" / "dataset_info.json").unlink()
    with pytest.raises(ValueError, match="not prepared to its end: run .* again"):
        PreparedSource(tmp_path / "set")


@pytest.mark.parametrize(
    "folder, name",
    [("data/flickr", "flickr"), ("CC 3M/2.0.1", "cc_3m"), ("/x/8k", "set_8k"), ("/x/é", "set")],
)
def test_a_set_is_named_after_its_folder(folder, name):
    assert prepared.set_name(folder) == name


def test_an_image_needs_not_be_a_jpeg(tmp_path):
    data = [("a", picture(0, form="PNG"), {"caption": "a"})]
    data += [("b", picture(1, form="WEBP"), {"caption": "b"})]
    make(write_tar(tmp_path / "x.tar", data), tmp_path / "set", shards=1)
    assert [PreparedSource(tmp_path / "set")[i].image for i in range(2)] == [d[1] for d in data]

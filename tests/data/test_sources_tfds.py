"""Sets prepared by TFDS itself, in both of its usual file formats."""

import glob
import gzip
import json
import os
import pathlib
import pickle
import shutil

import numpy as np
import pytest
from source_files import picture

from ccl_jax.data.records import BadRecord, Source
from ccl_jax.data.sources import TfdsSource, open_source, tfrecord

tfds = pytest.importorskip("tensorflow_datasets")

COUNT = 10
FORMATS = ("tfrecord", "array_record")


def image():
    return tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")


def coco_like():
    """The features of coco_captions that matter here, and some that do not."""
    return {
        "image": image(),
        "image/filename": tfds.features.Text(),
        "image/id": np.int64,
        "captions": tfds.features.Sequence({"text": np.str_, "id": np.int64}),
        "objects": tfds.features.Sequence({"bbox": tfds.features.BBoxFeature()}),
    }


def coco_examples(count=COUNT):
    for i in range(count):
        captions = [{"text": f"caption {i} {part}", "id": part} for part in range(i % 3 + 1)]
        yield (
            i,
            {
                "image": np.full((6, 5, 3), i, np.uint8),
                "image/filename": f"COCO_{i}.jpg",
                "image/id": i,
                "captions": captions,
                "objects": [],
            },
        )


def prepare(folder, name, features, examples, file_format="tfrecord"):
    """Has TFDS write a set of one split; gives its folder."""

    def info(self):
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    body = {
        "VERSION": tfds.core.Version("1.0.0"),
        "name": name,
        "_info": info,
        "_split_generators": lambda self, _: {"train": self._generate_examples()},
        "_generate_examples": lambda self: iter(examples),
        "dataset_info_from_configs": lambda self, **options: tfds.core.DatasetInfo(
            builder=self, **options
        ),
    }
    builders = type(tfds.core.GeneratorBasedBuilder)
    maker = builders(name, (tfds.core.GeneratorBasedBuilder,), body, skip_registration=True)
    builder = maker(data_dir=str(folder), file_format=file_format)
    builder.download_and_prepare()
    return builder.data_dir


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """data_dir of a set "coco_like" in each format."""
    tfds.disable_progress_bar()
    folders = {}
    for file_format in FORMATS:
        folder = tmp_path_factory.mktemp(file_format)
        prepare(folder, "coco_like", coco_like(), coco_examples(), file_format)
        folders[file_format] = str(folder)
    return folders


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_layout_of_coco_captions(coco, file_format):
    source = TfdsSource("coco_like", data_dir=coco[file_format])
    assert isinstance(source, Source)
    assert (source.name, len(source)) == ("coco_like/train", COUNT)
    seen = set()
    for index in range(COUNT):
        record = source[index]
        number = int(record.key.removeprefix("COCO_").removesuffix(".jpg"))
        seen.add(number)
        assert record.sample_id == index and record.image.startswith(b"\xff\xd8")
        assert record.captions == tuple(f"caption {number} {p}" for p in range(number % 3 + 1))
        assert record.phrases is None and record.extra == {}
    assert seen == set(range(COUNT))
    for index in (-1, COUNT):
        with pytest.raises(IndexError):
            source[index]


def test_both_formats_give_what_tfds_gives(coco):
    read = {form: [r.key for r in TfdsSource("coco_like", data_dir=coco[form])] for form in FORMATS}
    builder = tfds.builder_from_directory(glob.glob(f"{coco['tfrecord']}/*/*")[0])
    config = tfds.ReadConfig(interleave_cycle_length=1)
    examples = tfds.as_numpy(builder.as_dataset("train", read_config=config))
    names = [example["image/filename"].decode() for example in examples]
    assert read["tfrecord"] == read["array_record"] == names


@pytest.mark.parametrize("file_format", FORMATS)
def test_folders_slices_and_pickles(coco, file_format):
    whole = list(TfdsSource("coco_like", data_dir=coco[file_format]))
    folder = os.path.join(coco[file_format], "coco_like")
    for place in (folder, os.path.join(folder, "1.0.0"), "coco_like:1.0.0"):
        part = TfdsSource(place, split="train[30%:80%]", data_dir=coco[file_format])
        assert [record.image for record in part] == [record.image for record in whole[3:8]]
        assert [record.sample_id for record in part] == list(range(5))
    assert list(pickle.loads(pickle.dumps(part))) == list(part)


def test_other_formats_are_refused(tmp_path):
    folder = prepare(tmp_path, "coco_like", coco_like(), coco_examples(), "parquet")
    with pytest.raises(
        ValueError, match="in parquet files.* prepare it again, tfds build coco_like"
    ):
        TfdsSource(folder)


def test_of_two_formats_the_faster_is_read(coco, tmp_path):
    for file_format in FORMATS[::-1]:
        for path in glob.glob(f"{coco[file_format]}/coco_like/1.0.0/*"):
            shutil.copy(path, tmp_path)
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert info["fileFormat"] == "tfrecord"
    info["alternativeFileFormats"] = ["array_record"]
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    for path in tmp_path.glob("*tfrecord-*"):
        path.write_bytes(b"not read")
    source = TfdsSource(tmp_path, split="train[:70%]")
    assert len({record.image for record in source}) == 7


def test_an_own_builder_with_phrases_and_a_label(tmp_path):
    features = {
        "jpg": image(),
        "alt": tfds.features.Text(),
        "more": tfds.features.Sequence(tfds.features.Text()),
        "phrases": tfds.features.Sequence(tfds.features.Sequence(tfds.features.Text())),
        "kind": tfds.features.ClassLabel(names=["dog", "cat"]),
    }
    values = [
        ("a dog", ["the dog", "it"], [["a dog"], [], ["it"]], "dog"),
        ("a cat", [], [], "cat"),
    ]
    examples = [
        (
            i,
            {"jpg": np.zeros((4, 4, 3), np.uint8)}
            | dict(zip(list(features)[1:], row, strict=True)),
        )
        for i, row in enumerate(values)
    ]
    data_dir = prepare(tmp_path, "own", features, examples)
    source = open_source("tfds", name=data_dir, captions=("alt", "more"))
    records = {record.captions[0]: record for record in source}
    dog, cat = records["a dog"], records["a cat"]
    assert dog.captions == ("a dog", "the dog", "it")
    assert dog.phrases == (("a dog",), (), ("it",))
    assert (cat.captions, cat.phrases) == (("a cat",), ((),))
    assert source.class_names == ("dog", "cat")
    assert (dog.extra, cat.extra) == ({"label": 0}, {"label": 1})
    assert {record.key for record in source} == {"own/train/0", "own/train/1"}


def test_a_labelled_set_has_class_names_as_captions(tmp_path):
    features = {"image": image(), "label": tfds.features.ClassLabel(names=["sea_horse", "cat"])}
    pixels = np.zeros((4, 4, 3), np.uint8)
    examples = [(i, {"image": pixels, "label": i % 2}) for i in range(4)]
    source = TfdsSource(prepare(tmp_path, "labelled", features, examples))
    assert {(r.captions, r.extra["label"]) for r in source} == {(("sea horse",), 0), (("cat",), 1)}


def test_images_may_be_stored_as_bytes(tmp_path):
    features = {"image": tfds.features.Tensor(shape=(), dtype=np.object_), "text": np.str_}
    examples = [(0, {"image": picture(9), "text": "grey"}), (1, {"image": b"", "text": "none"})]
    source = TfdsSource(prepare(tmp_path, "raw", features, examples))
    good = next(i for i in range(2) if source._examples[i].count(b"grey"))
    assert source[good].image == picture(9)
    with pytest.raises(BadRecord, match="unreadable image .0 bytes"):
        source[1 - good]


def test_what_is_not_prepared_says_how_to(tmp_path, coco):
    with pytest.raises(
        ValueError, match="'coco_captions' is not prepared in .*tfds build coco_cap"
    ):
        TfdsSource("coco_captions", data_dir=tmp_path)
    with pytest.raises(ValueError, match="'no_such_set' is not prepared"):
        TfdsSource("no_such_set", data_dir=coco["tfrecord"])
    with pytest.raises(ValueError, match="has no dataset_info.json"):
        TfdsSource(tmp_path)
    with pytest.raises(ValueError, match="the folder .*absent does not exist"):
        TfdsSource(tmp_path / "absent")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": "test"}, r"no split 'test'; there are train \(10\)"),
        ({"split": "train[90%:10%]"}, "no split|has no records"),
        ({"image": "picture"}, "no feature 'picture'; there are .*image"),
        ({"captions": "texts"}, "no feature 'texts'"),
        ({"captions": "captions/id"}, "'captions/id' of coco_like/train holds no texts"),
        ({"captions": "image/id"}, "'image/id' of coco_like/train holds no texts"),
        ({"label": "image"}, "'image' of coco_like/train is no class label"),
    ],
)
def test_wrong_options_list_what_there_is(coco, options, message):
    with pytest.raises(ValueError, match=message):
        TfdsSource("coco_like", data_dir=coco["tfrecord"], **options)


def test_a_set_without_captions_or_images_lists_its_features(tmp_path):
    folder = prepare(
        tmp_path,
        "bare",
        {"image": image(), "n": np.int64},
        [(0, {"image": np.zeros((2, 2, 3), np.uint8), "n": 1})],
    )
    with pytest.raises(ValueError, match="bare/train has no captions: .*there are .*image"):
        TfdsSource(folder)
    folder = prepare(tmp_path, "texts", {"text": np.str_}, [(0, {"text": "a"})])
    with pytest.raises(ValueError, match="texts/train has no images: .*there are text"):
        TfdsSource(folder)


def shard_of(folder):
    (path,) = glob.glob(f"{folder}/coco_like/1.0.0/*tfrecord*")
    return pathlib.Path(path)


@pytest.fixture
def shard(tmp_path):
    tfds.disable_progress_bar()
    prepare(tmp_path, "coco_like", coco_like(), coco_examples())
    return shard_of(tmp_path)


def test_damaged_tfrecords_are_named(tmp_path, shard):
    whole = shard.read_bytes()
    lengths, _ = tfrecord.index_tfrecord(str(shard))
    third = int(lengths["offsets"][2]) - 12
    for data, message in [
        (whole[:-1], "is cut after 9 records"),
        (whole[: third + 5], "is cut after 2 records"),
        (whole[:third], "holds 2 records where its data set names 10: prepare it again"),
        (whole[:third] + b"\x07" + whole[third + 1 :], f"is damaged at byte {third}"),
        (b"<html>404 Not Found</html>", "is no TFRecord file"),
        (gzip.compress(whole), "is compressed"),
    ]:
        shard.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            TfdsSource("coco_like", data_dir=tmp_path)
    shard.unlink()
    with pytest.raises(ValueError, match="is missing: prepare"):
        TfdsSource("coco_like", data_dir=tmp_path)


def test_a_damaged_record_spares_the_others(tmp_path, shard):
    lengths, _ = tfrecord.index_tfrecord(str(shard))
    data = bytearray(shard.read_bytes())
    start, size = int(lengths["offsets"][4]), int(lengths["sizes"][4])
    data[start : start + size] = b"\xff" * size
    shard.write_bytes(data)
    source = TfdsSource("coco_like", data_dir=tmp_path)
    with pytest.raises(BadRecord, match="coco_like/train/4: unreadable record"):
        source[4]
    assert source[5].captions
    os.truncate(shard, start)
    with pytest.raises(BadRecord, match="unreadable shard"):
        source[9]


def test_damaged_array_records_are_bad_records(tmp_path):
    tfds.disable_progress_bar()
    prepare(tmp_path, "coco_like", coco_like(), coco_examples(), "array_record")
    (path,) = glob.glob(f"{tmp_path}/coco_like/1.0.0/*array_record*")
    whole = pathlib.Path(path).read_bytes()
    for data in (b"", b"<html></html>", whole[: len(whole) // 2]):
        pathlib.Path(path).write_bytes(data)
        source = TfdsSource("coco_like", data_dir=tmp_path)
        with pytest.raises(BadRecord, match="coco_like/train/9: unreadable record"):
            source[9]
    os.unlink(path)
    with pytest.raises(ValueError, match="is missing: prepare the set again"):
        TfdsSource("coco_like", data_dir=tmp_path)


def test_a_folder_of_the_same_name_does_not_hide_a_set(coco, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coco_like").mkdir()
    assert len(TfdsSource("coco_like", data_dir=coco["tfrecord"])) == COUNT


def test_several_sets_in_a_folder_are_listed(coco, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset_info.json").write_text("{}")
    with pytest.raises(ValueError, match="holds several sets, give one: .*one, .*two"):
        TfdsSource(tmp_path)


def test_the_checksum_is_that_of_tensorflow(tmp_path):
    tf = pytest.importorskip("tensorflow")
    records = [os.urandom(size) for size in (0, 1, 70_000)]
    with tf.io.TFRecordWriter(str(tmp_path / "x")) as writer:
        for record in records:
            writer.write(record)
    arrays, _ = tfrecord.index_tfrecord(str(tmp_path / "x"))
    part = tfrecord.Part(str(tmp_path / "x"), 1, 2, 3)
    assert list(tfrecord.TfRecords([part])) == records[1:]
    assert arrays["sizes"].tolist() == [0, 1, 70_000]

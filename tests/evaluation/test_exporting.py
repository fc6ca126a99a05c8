"""Embeddings as files: rows in order, what was skipped, interruption and other data."""

import json

import numpy as np
import pytest

from ccl_jax.evaluation.exporting import Job, write_embeddings


@pytest.fixture
def predictor(fake):
    class Counting(fake.Predictor):
        batch_size = 2
        seen = 0
        stop_at = 99

        def fingerprint(self):
            return "model"

        def images(self, images):
            if self.seen >= self.stop_at:
                raise KeyboardInterrupt
            self.seen += len(images)
            return super().images(images)

    return Counting()


@pytest.fixture
def source(fake):
    colours = ["red", "green", "blue", "red", "blue"]
    records = [
        fake.plain(i, colour, captions=(colour, f"so {colour}")) for i, colour in enumerate(colours)
    ]
    records[1] = None
    return fake.Source(records)


def write(predictor, source, folder, **options):
    return write_embeddings(predictor, source, folder, Job(**options), tell=lambda line: None)


def test_npy(predictor, source, tmp_path):
    done = write(predictor, source, tmp_path / "out", format="npy", shard_size=2)
    assert done["rows"] == {"image": 4, "text": 8} and done["shards"] == 3
    assert done["skipped"] == [["bad-1", "truncated"]]
    images = [np.load(tmp_path / f"out/image-0000{i}.npy") for i in range(3)]
    assert [len(rows) for rows in images] == [1, 2, 1]
    np.testing.assert_allclose(np.concatenate(images), np.eye(3)[[0, 2, 0, 2]])
    lines = [
        json.loads(line) for line in (tmp_path / "out/text-00001.jsonl").read_text().splitlines()
    ]
    assert lines[1] == {"index": 2, "key": "record-2", "caption": 1, "text": "so blue"}
    assert json.loads((tmp_path / "out/embeddings.json").read_text())["complete"]


def test_parquet(predictor, source, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write(predictor, source, tmp_path / "out", what=("image",), dtype="float16")
    table = parquet.read_table(tmp_path / "out/image-00000.parquet")
    assert table.column_names == ["index", "key", "embedding"]
    assert table["index"].to_pylist() == [0, 2, 3, 4]
    kind = table["embedding"].type
    assert (kind.list_size, str(kind.value_type)) == (3, "halffloat")
    rows = np.array(table["embedding"].to_pylist())
    np.testing.assert_allclose(rows, np.eye(3)[[0, 2, 0, 2]])
    assert not (tmp_path / "out/text-00000.parquet").exists()


def test_an_interrupted_job_goes_on(predictor, source, tmp_path):
    predictor.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        write(predictor, source, tmp_path, format="npy", shard_size=2)
    predictor.stop_at, before = 99, predictor.seen
    assert before == 3  # two whole shards: one record of the first cannot be read
    write(predictor, source, tmp_path, format="npy", shard_size=2)
    assert predictor.seen == 4
    write(predictor, source, tmp_path, format="npy", shard_size=2)  # nothing left to do
    assert predictor.seen == 4
    assert not list(tmp_path.glob("*.partial"))


def test_other_embeddings_are_not_mixed(predictor, source, tmp_path):
    write(predictor, source, tmp_path / "out", format="npy")
    with pytest.raises(ValueError, match="another format"):
        write(predictor, source, tmp_path / "out", format="parquet")
    predictor.fingerprint = lambda: "other"
    with pytest.raises(ValueError, match="another model"):
        write(predictor, source, tmp_path / "out", format="npy")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("x")
    with pytest.raises(ValueError, match="not empty"):
        write(predictor, source, tmp_path / "mine", format="npy")


def test_an_image_that_does_not_decode_keeps_its_texts(fake, predictor, tmp_path):
    import dataclasses

    broken = dataclasses.replace(fake.plain(0, "red", captions=("red",)), image=b"x")
    source = fake.Source([broken, fake.plain(1, "blue", captions=("blue",))])
    done = write(predictor, source, tmp_path, format="npy")
    assert done["rows"] == {"image": 1, "text": 2}
    assert done["skipped"] == [["record-0", "unreadable image"]]


def test_nothing_readable(fake, predictor, tmp_path):
    with pytest.raises(ValueError, match="not one of 2 records .* bad-0: truncated"):
        write(predictor, fake.Source([None, None]), tmp_path, format="npy")


@pytest.mark.parametrize(
    "options",
    [{"what": ("images",)}, {"what": ()}, {"format": "csv"}, {"dtype": "int8"}, {"shard_size": 0},
     {"limit": 0}],
)  # fmt: skip
def test_bad_options(options):
    with pytest.raises(ValueError):
        Job(**options)

"""Prepared data: records in sharded ArrayRecords or TFRecords, laid out as TFDS does.

A folder holds, for each split, NAME-SPLIT.FORMAT-00000-of-00010 and so on, a manifest with
counts and checksums, and dataset_info.json and features.json, from which
`tfds.builder_from_directory` opens it as well. A record is a tf.train.Example of

    key       the record's own name
    image     the encoded file: JPEG, PNG, WebP, ...
    captions  texts
    phrases   a list of texts for each caption; no list at all where they are to be extracted
    extra     JSON of what else the record has, as far as JSON can hold it
"""

import bisect
import itertools
import json
import operator
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ccl_jax.data import examples
from ccl_jax.data.records import BadRecord, Record
from ccl_jax.data.shards import READERS, DamagedRecord

FORMATS = tuple(READERS)
_PHRASES = "phrases/ragged_flat_values"
_PHRASE_COUNTS = "phrases/ragged_row_lengths_0"
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class PreparedSource:
    """A split of what `ccl_jax.tools.prepare` wrote, read by random access.

    Attributes:
      name: the set's name and split.
      counts: shards.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        split: str = "train",
        index_dir: str | os.PathLike | None = None,
    ):
        """Opens a split. TFDS and TensorFlow are not needed for that.

        Args:
          path: the folder, that of dataset_info.json.
          split: its name.
          index_dir: folder that keeps the offsets of large TFRecord files, see
            `WebDatasetSource`; ArrayRecords need none.

        Raises:
          ValueError: if the folder is no prepared set, its preparation is not complete, it
            has no such split, or shards are missing.
        """
        folder = Path(path).expanduser()
        info = _read_info(folder, split)
        splits = {found["name"]: found for found in info.get("splits", ())}
        if split not in splits:
            raise ValueError(f"{folder} has no split {split!r}; there are {', '.join(splits)}")
        file_format = info["fileFormat"]
        lengths = [int(length) for length in splits[split].get("shardLengths", ())]
        names = [
            shard_name(info["name"], split, file_format, number, len(lengths))
            for number in range(len(lengths))
        ]
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ValueError(
                f"{folder}: {len(missing)} of {len(names)} shards are missing, the first is "
                f"{missing[0]}: copy or prepare the set again"
            )
        self.name = f"{info['name']}/{split}"
        self.counts = {"shards": len(names)}
        self._ends = list(itertools.accumulate(lengths))
        paths = [folder / name for name in names]
        self._shards = READERS[file_format](paths, lengths, index_dir=index_dir)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Record:
        """Reads one record, its checksum verified; safe to call from several threads.

        Raises:
          IndexError: if `index` is not in [0, len).
          BadRecord: "damaged record", where the file is cut, changed or not there.
        """
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[shard - 1] if shard else 0)
        try:
            return decode_record(self._shards.read(shard, row), index)
        except (DamagedRecord, ValueError) as error:
            raise BadRecord(f"{self.name}/{index}", "damaged record", str(error)) from error


def encode_record(record: Record) -> bytes:
    """Serialises a record, without its `sample_id`: that is its place."""
    groups = record.phrases or ()
    return examples.encode(
        {
            "key": [record.key.encode(errors="backslashreplace")],
            "image": [record.image],
            "captions": [caption.encode() for caption in record.captions],
            _PHRASES: [phrase.encode() for group in groups for phrase in group],
            _PHRASE_COUNTS: np.array([len(group) for group in groups], np.int64),
            "extra": [json.dumps(_plain(record.extra)).encode()],
        }
    )


def decode_record(data: bytes, index: int) -> Record:
    """Parses a record.

    Args:
      data: what `encode_record` gave.
      index: becomes its `sample_id`.

    Raises:
      ValueError: if it is not one of these records.
    """
    features = examples.decode(data)
    try:
        captions = tuple(caption.decode() for caption in features["captions"])
        flat = iter([phrase.decode() for phrase in features[_PHRASES]])
        groups = tuple(tuple(itertools.islice(flat, count)) for count in features[_PHRASE_COUNTS])
        (key,), (image,), (extra,) = features["key"], features["image"], features["extra"]
        return Record(index, key.decode(), image, captions, groups or None, json.loads(extra))
    except KeyError as error:
        raise ValueError(f"the record has no feature {error}") from error
    except (UnicodeDecodeError, AttributeError, TypeError) as error:
        raise ValueError(f"the record is not a prepared one: {error}") from error


def shard_name(name: str, split: str, file_format: str, number: int, count: int) -> str:
    """One of the `count` files of a split, in TFDS's pattern."""
    return f"{name}-{split}.{file_format}-{number:05d}-of-{count:05d}"


def set_name(folder: str | os.PathLike) -> str:
    """A name for the set of a folder: its own, or that above a version as in "birds/1.0.0"."""
    folder = Path(folder).absolute()
    base = folder.parent.name if _VERSION.fullmatch(folder.name) else folder.name
    name = re.sub(r"\W+", "_", base, flags=re.ASCII).strip("_").lower()
    return name if name[:1].isalpha() else f"set_{name}".rstrip("_")


def manifest_path(folder: str | os.PathLike, split: str) -> Path:
    """Where the manifest of a split is: its settings, counts, and each shard's checksum."""
    return Path(folder) / f"manifest-{split}.json"


def read_manifest(folder: str | os.PathLike, split: str) -> dict[str, Any]:
    """The manifest of a split.

    Raises:
      ValueError: if there is none, or it cannot be read.
    """
    path = manifest_path(folder, split)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist: the split was not prepared to its end") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): copy or prepare the set again") from error


def write_tfds_metadata(folder: str | os.PathLike, manifests: Sequence[Mapping[str, Any]]) -> None:
    """Writes dataset_info.json and features.json for the splits of a folder.

    Args:
      folder: where their shards lie.
      manifests: one a split, of one name and format.
    """
    import tensorflow_datasets as tfds

    folder = Path(folder)
    texts = tfds.features.Sequence(tfds.features.Text())
    features = tfds.features.FeaturesDict(
        {
            "key": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3)),
            "captions": texts,
            "phrases": tfds.features.Sequence(texts),
            "extra": tfds.features.Text(),
        }
    )
    version = folder.name if _VERSION.fullmatch(folder.name) else "1.0.0"
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=manifests[0]["name"],
        version=tfds.core.Version(version),
        data_dir=os.fspath(folder),
        module_name="",
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=features,
        description="Images with captions and noun phrases, prepared by ccl_jax.tools.prepare.",
    )
    info.set_file_format(manifests[0]["format"])
    info.set_splits(tfds.core.splits.SplitDict([_split_info(folder, m) for m in manifests]))
    info.write_to_directory(folder)


def _split_info(folder, manifest):
    import tensorflow_datasets as tfds

    return tfds.core.SplitInfo(
        name=manifest["split"],
        shard_lengths=[shard["records"] for shard in manifest["shards"]],
        num_bytes=manifest["bytes"],
        filename_template=tfds.core.ShardedFileTemplate(
            data_dir=folder,
            dataset_name=manifest["name"],
            split=manifest["split"],
            filetype_suffix=manifest["format"],
        ),
    )


def _read_info(folder, split):
    path = folder / "dataset_info.json"
    if not path.is_file():
        if manifest_path(folder, split).exists() or list(folder.glob(".prepare-*")):
            what = "is not prepared to its end: run ccl_jax.tools.prepare again, it goes on"
            raise ValueError(f"{folder} {what}")
        raise ValueError(
            f"{folder} is no prepared set, it has no dataset_info.json: give the folder that "
            "ccl_jax.tools.prepare wrote"
        )
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        features = json.loads((folder / "features.json").read_text(encoding="utf-8"))
        names = features["featuresDict"]["features"]
        if not {"key", "image", "captions", "phrases", "extra"} <= names.keys():
            raise ValueError(
                f"{folder} was not written by ccl_jax.tools.prepare: open it as the source 'tfds'"
            )
        if info["fileFormat"] not in READERS:
            raise ValueError(f"{folder} is of the format {info['fileFormat']}, not {FORMATS}")
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"the metadata of {folder} is damaged: {error}") from error
    return info


def _plain(extra):
    """The part of `extra` that JSON can hold: no arrays."""
    plain = {}
    for name, value in extra.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            continue
        plain[name] = value
    return plain

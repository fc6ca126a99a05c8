"""Prepared TensorFlow Datasets (TFDS), by name or folder, read by random access."""

import glob
import operator
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ccl_jax.data.records import BadRecord, Record
from ccl_jax.data.sources import annotations
from ccl_jax.data.sources.tfrecord import Part, TfRecords

_CAPTIONS = ("captions", "caption", "texts", "text", "sentences", "alt_text", "title")
_CAPTION_PARTS = ("text", "caption", "raw", "sentence")  # of a list of dicts, as in coco_captions
_PHRASES = ("phrases", "nounphrases")
_KEYS = ("key", "image/filename", "filename", "file_name", "image/id", "image_id", "id")


class TfdsSource:
    """A split of a TFDS set that is on disk, as records; nothing is ever downloaded.

    Any set with an image and a text will do, of TFDS's catalogue or of an own builder, whose
    code is not needed: the folder describes itself. ArrayRecord files are read as they are.
    TFRecord files, TFDS's default, are read through an index of offsets made in one pass over
    their headers. A set without texts but with a class label, as those for zero-shot
    classification are, has the class's name as its caption.

    Of the features, only those used are decoded, and images not at all.

    Attributes:
      name: the set's name and split.
      class_names: of the label, or ().
      counts: files.
    """

    def __init__(
        self,
        name: str | os.PathLike,
        *,
        split: str = "train",
        data_dir: str | os.PathLike | None = None,
        image: str | None = None,
        captions: str | Sequence[str] = (),
        phrases: str | None = None,
        label: str | None = None,
        key: str | None = None,
        index_dir: str | os.PathLike | None = None,
    ):
        """Opens a split.

        Args:
          name: a name such as "coco_captions" or "my_set/my_config:1.0.0", or the folder of a
            prepared set (that of its dataset_info.json, or one above).
          split: a split, or a part of one in TFDS's notation: "train[:90%]".
          data_dir: where a name is looked for; None for $TFDS_DATA_DIR or
            ~/tensorflow_datasets.
          image: the image feature; None for the only one, or "image".
          captions: the features that hold captions, all of them used: a text, a list of texts,
            or a list of dicts as "captions/text". () for the first there is of captions,
            caption, texts, text, sentences, alt_text, title.
          phrases: the feature that holds noun phrases, a list for all captions or a list of
            lists, one a caption. None for phrases or nounphrases, where there is one.
          label: the class label, put in a record's `extra["label"]`. None for the only one
            there is.
          key: the feature that names a record. None for key, image/filename, filename,
            image/id or id, else the split and the record's number.
          index_dir: folder that keeps indexes of TFRecord files, see `WebDatasetSource`.

        Raises:
          ValueError: if the set is not prepared, has no such split or feature, or lies in
            files that cannot be read at random.
        """
        import tensorflow_datasets as tfds

        info = _find_builder(os.fspath(name), data_dir).info
        part = _find_split(info, split)
        self.name = f"{info.name}/{split}"
        features = info.features
        if not isinstance(features, tfds.features.FeaturesDict):
            raise ValueError(f"{self.name} is no table of features: {features}")
        self._image = _find_image(features, image, self.name)
        self._captions = _find_captions(features, captions, self.name)
        self._phrases = _find(features, phrases, _PHRASES, self.name)
        self._key = _find(features, key, _KEYS, self.name)
        self._label = _find_label(features, label, self.name)
        self.class_names: tuple[str, ...] = ()
        if self._label:
            self.class_names = tuple(features[self._label].names)
        if not self._captions and not self._label:
            raise ValueError(
                f"{self.name} has no captions: name the feature that holds them with captions=; "
                f"there are {', '.join(features)}"
            )
        used = {self._image, self._phrases, self._key, self._label}
        used |= {name for name, _ in self._captions}
        wanted = tfds.decode.PartialDecoding({name: True for name in used if name})
        self._features = wanted.extract_features(features)
        # A record holds the encoded bytes.
        self._decoders = {self._image: tfds.decode.SkipDecoding()}
        self._examples = _open_files(info, part, index_dir)
        self.counts = {"files": len(part.file_instructions)}

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Record:
        """Reads one record; safe to call from several threads.

        Raises:
          IndexError: if `index` is not in [0, len).
          BadRecord: "unreadable record", "unreadable shard", "unreadable image" (no bytes),
            "missing caption", "empty caption", "caption too long", "invalid phrases", "invalid
            UTF-8".
        """
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        key = f"{self.name}/{index}"
        try:
            data = self._examples[index]
            example = self._features.deserialize_example_np(data, decoders=self._decoders)
        except BadRecord:
            raise
        except Exception as error:  # damaged files raise whatever they lead to
            raise BadRecord(key, "unreadable record", f"{type(error).__name__}: {error}") from error
        if self._key:
            value = example[self._key]
            key = (
                value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
            )
        image = example[self._image]
        if not image:
            raise BadRecord(key, "unreadable image", "0 bytes")
        extra = {}
        if self._label:
            extra["label"] = int(example[self._label])
        captions, phrases = self._annotations(example, key)
        return Record(index, key, image, captions, phrases, extra)

    def _annotations(self, example, key):
        captions: list[str] = []
        for name, inner in self._captions:
            value = example[name][inner] if inner else example[name]
            captions += _texts(value, key)
        if not self._captions:
            label = int(example[self._label])
            if not 0 <= label < len(self.class_names):
                raise BadRecord(key, "missing caption", f"label {label}")
            captions = [self.class_names[label].replace("_", " ")]
        phrases = None
        if self._phrases:
            value = example[self._phrases]
            nested = len(value) and not isinstance(value[0], bytes | str)
            found = [_texts(group, key) for group in value] if nested else _texts(value, key)
            # No list at all says the same of every caption: there are none.
            phrases = annotations.as_phrases(found, self._phrases, len(captions), key)
        return annotations.clean_annotations(captions, phrases, key)


def _find_builder(name, data_dir):
    """A read-only builder of a set on disk: no code of it runs, nothing is downloaded."""
    import tensorflow_datasets as tfds

    data_dir = None if data_dir is None else os.path.expanduser(data_dir)
    folder = os.path.expanduser(name)
    if os.path.isdir(folder):
        found = [
            os.path.dirname(path)
            for depth in ("", "*", "*/*")
            for path in glob.glob(os.path.join(glob.escape(folder), depth, "dataset_info.json"))
        ]
        if len(found) == 1:
            return tfds.builder_from_directory(found[0])
        if not found and os.sep in name:
            raise ValueError(f"{folder} is no prepared TFDS set: it has no dataset_info.json")
        if found:
            raise ValueError(f"{folder} holds several sets, give one: {', '.join(sorted(found))}")
    elif os.sep in name and (os.path.isabs(folder) or name.startswith(".")):
        raise ValueError(f"the folder {folder} does not exist")
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        where = data_dir or tfds.core.constants.DATA_DIR
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"the TFDS set {name!r} is not prepared in {where} ({reason}); correct data_dir, or "
            f"prepare it: tfds build {name} --data_dir={where} --file_format=array_record"
        ) from error


def _find_split(info, split):
    if not info.splits:
        raise ValueError(f"{info.name} has no splits: prepare it again")
    try:
        part = info.splits[split]
        if sum(found.take for found in part.file_instructions) > 0:
            return part
    except (KeyError, ValueError, AssertionError) as error:
        known = ", ".join(f"{name} ({found.num_examples})" for name, found in info.splits.items())
        raise ValueError(f"{info.name} has no split {split!r}; there are {known}") from error
    raise ValueError(f"the split {split!r} of {info.name} has no records")


def _open_files(info, part, index_dir) -> Sequence[bytes]:
    import tensorflow_datasets as tfds

    formats = {found.value for found in info.available_file_formats()}
    instructions = part.file_instructions
    if "array_record" in formats:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        if info.file_format.value != "array_record":
            info.set_file_format("array_record", override=True, override_if_initialized=True)
            instructions = info.splits[part.name].file_instructions
        for instruction in instructions:
            if not os.path.isfile(instruction.filename):
                raise ValueError(f"{instruction.filename} is missing: prepare the set again")
        return ArrayRecordDataSource(instructions)
    if info.file_format is tfds.core.FileFormat.TFRECORD:
        parts = [
            Part(found.filename, found.skip, found.take, found.examples_in_shard)
            for found in instructions
        ]
        return TfRecords(parts, index_dir)
    raise ValueError(
        f"{info.name} lies in {' and '.join(sorted(formats))} files, which this source does not "
        f"read: prepare it again, tfds build {info.name} --file_format=array_record"
    )


def _find_image(features, name, source):
    import tensorflow_datasets as tfds

    if name:
        return _check(features, name, source)
    found = [k for k, feature in features.items() if isinstance(feature, tfds.features.Image)]
    if "image" in features and ("image" in found or _is_text(features["image"])):
        return "image"  # its own builder may keep the file's bytes as they are
    if len(found) != 1:
        raise ValueError(
            f"{source} has {len(found) or 'no'} images: name the feature with image=; there are "
            f"{', '.join(features)}"
        )
    return found[0]


def _find_captions(features, names, source) -> list[tuple[str, str | None]]:
    """(feature, part of it or None) of each."""
    names = (names,) if isinstance(names, str) else tuple(names)
    if not names:
        for name in _CAPTIONS:
            if name in features and (found := list(_text_parts(features[name]))):
                inner = next((part for part in _CAPTION_PARTS if part in found), found[0])
                return [(name, inner)]
        return []
    found = []
    for name in names:
        outer, inner = name, None
        if name not in features:
            outer, _, inner = name.rpartition("/")
        parts = list(_text_parts(features[_check(features, outer or name, source)]))
        if inner is None and parts and None not in parts:
            inner = next((part for part in _CAPTION_PARTS if part in parts), parts[0])
        if inner not in parts:
            raise ValueError(f"the feature {name!r} of {source} holds no texts: {features[outer]}")
        found.append((outer, inner))
    return found


def _text_parts(feature) -> Iterator[str | None]:
    """None for a text or a list of texts; the names of the texts in a (list of) dict."""
    feature = getattr(feature, "feature", feature)
    if _is_text(feature):
        yield None
    elif hasattr(feature, "items"):
        for name, part in feature.items():
            if _is_text(part):
                yield name


def _is_text(feature):
    import tensorflow_datasets as tfds

    if not isinstance(feature, tfds.features.Tensor):
        return False
    return feature.shape == () and feature.np_dtype in (np.object_, np.str_, np.bytes_)


def _find_label(features, name, source):
    import tensorflow_datasets as tfds

    labels = [k for k, value in features.items() if isinstance(value, tfds.features.ClassLabel)]
    if name:
        if _check(features, name, source) not in labels:
            raise ValueError(f"the feature {name!r} of {source} is no class label")
        return name
    return labels[0] if len(labels) == 1 else ("label" if "label" in labels else None)


def _find(features, name, candidates, source):
    if name:
        return _check(features, name, source)
    return next((candidate for candidate in candidates if candidate in features), None)


def _check(features, name, source):
    if name not in features:
        raise ValueError(f"{source} has no feature {name!r}; there are {', '.join(features)}")
    return name


def _texts(value: Any, key: str) -> list[str]:
    values = [value] if isinstance(value, bytes | str) else value
    return [_text(item, key) for item in values]


def _text(value, key):
    return annotations.decode_text(value, key) if isinstance(value, bytes) else str(value)

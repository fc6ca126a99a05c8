"""TFRecords that others wrote: one tf.train.Example an image, features by name."""

import bisect
import difflib
import itertools
import operator
import os
from collections.abc import Mapping, Sequence

from ccl_jax.data import examples
from ccl_jax.data.records import BadRecord, Record
from ccl_jax.data.shards import DamagedRecord, TFRecordShards
from ccl_jax.data.sources import annotations
from ccl_jax.data.sources.files import Paths, as_patterns, collection_name, find_files

_IMAGES = ("image/encoded", "image", "image_raw", "image_bytes", "jpeg", "jpg", "png", "encoded")
_CAPTIONS = (
    "captions", "caption", "image/captions", "image/caption", "caption/string", "texts", "text",
    "alt_text", "title",
)  # fmt: skip
_PHRASES = ("phrases", "nounphrases", "image/phrases")
_KEYS = ("key", "__key__", "image/key", "image/filename", "filename", "image/source_id", "id")
_ROW_LENGTHS = "/ragged_row_lengths_0"
_FLAT_VALUES = "/ragged_flat_values"
_LOOKED_AT = 20


class TFRecordSource:
    """Records of uncompressed TFRecord files, read by random access.

    One pass over the lengths makes an index; that of a large file is kept. A record's checksum
    is verified when it is read. A feature of bytes is an encoded image, a caption or a list of
    captions. Phrases are a list for every caption, or one list a caption as TFDS stores it
    (NAME/ragged_flat_values and NAME/ragged_row_lengths_0).

    Attributes:
      name: the last part of `path`.
      features: the names of the features of the first records.
      counts: files.
    """

    def __init__(
        self,
        path: Paths,
        *,
        image: str | None = None,
        captions: str | Sequence[str] = (),
        phrases: str | None = None,
        key: str | None = None,
        index_dir: str | os.PathLike | None = None,
    ):
        """Finds the files and indexes them.

        Args:
          path: a file, a glob, a brace range such as "x-{00000..00002}-of-00003", or a list of
            these.
          image: the feature of encoded images. None for the first there is of image/encoded,
            image, image_raw, image_bytes, jpeg, jpg, png, encoded.
          captions: the features that hold captions, all of them used. () for the first there
            is of captions, caption, image/captions, image/caption, caption/string, texts,
            text, alt_text, title.
          phrases: the feature of noun phrases; None for phrases, nounphrases or image/phrases,
            where there is one.
          key: the feature that names a record, bytes or a number; None for key, __key__,
            image/key, image/filename, filename, image/source_id or id, else the file and number.
          index_dir: folder that keeps indexes, see `WebDatasetSource`.

        Raises:
          ValueError: if nothing matches `path`, a file is compressed, cut or not a TFRecord,
            no record can be read, or there is no image or no caption among the features.
        """
        patterns = as_patterns(path)
        files = find_files(patterns, "TFRecord files", "*.tfrecord*")
        self.name = collection_name(patterns, (".tfrecord", ".tfrecords"))
        self.counts = {"files": len(files)}
        self._shards = TFRecordShards(files, index_dir=index_dir)
        self._ends = list(itertools.accumulate(map(self._shards.count, range(len(files)))))
        if not len(self):
            raise ValueError(f"{files[0]} holds no records")
        self.features = self._first_features()
        self._image = self._choose(image, _IMAGES, "image")
        names = (captions,) if isinstance(captions, str) else tuple(captions)
        self._captions = tuple(self._choose(name, (), "captions") for name in names) or (
            self._choose(None, _CAPTIONS, "captions"),
        )
        self._phrases = self._choose(phrases, _PHRASES, None)
        self._key = self._choose(key, _KEYS, None)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        """Reads one record; safe to call from several threads.

        Raises:
          IndexError: if `index` is not in [0, len).
          BadRecord: "damaged record" (checksum, or no tf.train.Example), "unreadable image" (no
            bytes), "missing caption", "empty caption", "caption too long", "invalid caption",
            "invalid phrases", "invalid UTF-8".
        """
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        features, key = self._read(index)
        named = features.get(self._key or "")
        if named:
            key = annotations.decode_text(named[0], key) if _is_bytes(named) else str(named[0])
        image = features.get(self._image)
        if not image or not _is_bytes(image) or not image[0]:
            raise BadRecord(key, "unreadable image", f"no bytes in {self._image!r}")
        captions: list[str] = []
        for name in self._captions:
            captions += _texts(features.get(name, ()), "invalid caption", name, key)
        if not captions:
            raise BadRecord(key, "missing caption", f"no {' / '.join(self._captions)}")
        phrases = self._read_phrases(features, len(captions), key)
        captions, phrases = annotations.clean_annotations(captions, phrases, key)
        return Record(index, key, image[0], captions, phrases)

    def _read(self, index) -> tuple[Mapping[str, examples.Values], str]:
        """The features of a record, and its file and number."""
        shard = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[shard - 1] if shard else 0)
        place = f"{os.path.basename(self._shards.paths[shard])}:{row}"
        try:
            return examples.decode(self._shards.read(shard, row)), place
        except (DamagedRecord, ValueError) as error:
            raise BadRecord(place, "damaged record", str(error)) from error

    def _read_phrases(self, features, captions, key):
        if not self._phrases:
            return None
        lengths = features.get(self._phrases + _ROW_LENGTHS)
        if lengths is None:
            if self._phrases not in features:
                return None
            found = _texts(features[self._phrases], "invalid phrases", self._phrases, key)
        else:
            name = self._phrases + _FLAT_VALUES
            texts = _texts(features.get(name, ()), "invalid phrases", name, key)
            if sum(lengths) != len(texts):
                raise BadRecord(key, "invalid phrases", f"{name} does not fit its row lengths")
            if not lengths:
                return None
            flat = iter(texts)
            found = [list(itertools.islice(flat, length)) for length in lengths]
        return annotations.as_phrases(found, self._phrases, captions, key)

    def _first_features(self):
        """Names of features, sorted; a ragged one by the name that its parts begin with."""
        names: dict[str, None] = {}
        error = None
        for index in range(min(len(self), _LOOKED_AT)):
            try:
                found = self._read(index)[0]
            except BadRecord as bad:
                error = bad
                continue
            names |= dict.fromkeys(name.removesuffix(_FLAT_VALUES) for name in found)
        if not names:
            raise ValueError(f"{self.name}: none of the first records can be read ({error})")
        return tuple(sorted(name for name in names if not name.endswith(_ROW_LENGTHS)))

    def _choose(self, name, candidates, option):
        """A feature by name, else the first candidate; None is fine where there is no option."""
        listed = ", ".join(self.features)
        if name:
            if name not in self.features:
                nearest = difflib.get_close_matches(name, self.features, n=1, cutoff=0)[0]
                raise ValueError(
                    f"{self.name} has no feature {name!r}: did you mean {nearest!r}? "
                    f"There are {listed}"
                )
            return name
        found = next((known for known in candidates if known in self.features), None)
        if found is None and option:
            raise ValueError(
                f"{self.name} has none of the features {', '.join(candidates)}: name one with "
                f"{option}=; there are {listed}"
            )
        return found


def _texts(values, reason, name, key):
    if not _is_bytes(values):
        raise BadRecord(key, reason, f"{name!r} holds numbers, not texts")
    return [annotations.decode_text(value, key) for value in values]


def _is_bytes(values):
    return all(isinstance(value, bytes) for value in values)

"""Where records come from: WebDataset tars read by random access, and the table of sources."""

import collections
import difflib
import glob
import inspect
import json
import operator
import os
import re
import tarfile
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging

from ccl_jax.data.records import BadRecord, Record, Source

_IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_PARTS = ("image", "json", "txt")
_PART_OF = {**dict.fromkeys(_IMAGE_EXTENSIONS, 0), "json": 1, "txt": 2}
_ABSENT = -1
# Well below the usual limit of 1,024 open files a process.
_MAX_OPEN_SHARDS = 256
_TAR_BLOCK = 512


class WebDatasetSource:
    """Records of local WebDataset tars: KEY.jpg with KEY.json and / or KEY.txt.

    One pass over the tar headers makes an index; after that any record is read by
    its offset, from any thread. Nothing is extracted, so member names cannot reach
    the file system. A key belongs to its shard: shards that each count from zero do
    not collide.

    Captions are the first of `caption_fields` that KEY.json has (a string or a list),
    else KEY.txt. Phrases are the first of `phrase_fields`: a list of strings goes to
    every caption, a list of lists is per caption. Empty captions and phrases are
    dropped.

    Attributes:
      name: the last part of `path`.
    """

    def __init__(
        self,
        path: str | os.PathLike | Sequence[str | os.PathLike],
        *,
        caption_fields: Sequence[str] = ("captions", "shortLLA_captions", "caption"),
        phrase_fields: Sequence[str] = ("phrases", "nounphrases"),
    ):
        """Finds the shards and indexes them.

        Args:
          path: a tar, a glob, a brace range such as "x-{00000..00002}.tar", or a list
            of these.
          caption_fields: the json fields that may hold captions, in order.
          phrase_fields: the json fields that may hold noun phrases, in order.

        Raises:
          ValueError: if nothing matches `path`, a file is not a plain tar, or a tar
            holds no image or no caption at all.
        """
        self._caption_fields, self._phrase_fields = (
            (names,) if isinstance(names, str) else tuple(names)
            for names in (caption_fields, phrase_fields)
        )
        patterns = [path] if isinstance(path, str | os.PathLike) else list(path)
        patterns = [os.fspath(pattern) for pattern in patterns]
        self._shards = _find_shards(patterns)
        self.name = os.path.basename(patterns[0]).removesuffix(".tar")
        if len(patterns) > 1:
            self.name += f"+{len(patterns) - 1}"

        indexes = [_index_shard(shard) for shard in self._shards]
        self._keys = [key for keys, _ in indexes for key in keys]
        # (records, parts, [offset, size]); an absent part has size _ABSENT.
        self._spans = np.concatenate([spans for _, spans in indexes])
        self._shard_of = np.repeat(
            np.arange(len(indexes), dtype=np.int32), [len(keys) for keys, _ in indexes]
        )
        if (self._spans[:, 1:, 1] == _ABSENT).all():
            raise ValueError(
                f"{self._shards[0]} holds images but no .json and no .txt members: add the "
                f"captions as KEY.txt, or in KEY.json as {' / '.join(self._caption_fields)}"
            )
        self._lock = threading.Lock()
        self._open: collections.OrderedDict[int, _Descriptor] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Record:
        """Reads one record; safe to call from several threads.

        Raises:
          IndexError: if `index` is not in [0, len).
          BadRecord: "unreadable image" (no bytes), "missing caption", "empty caption",
            "invalid caption", "invalid phrases", "invalid json", "invalid UTF-8", or
            "unreadable shard" if the tar changed after it was indexed.
        """
        index = operator.index(index)
        if not 0 <= index < len(self._keys):
            raise IndexError(f"record {index} of {len(self._keys)}")
        key = self._keys[index]
        image = self._read(index, "image")
        if not image:
            raise BadRecord(key, "unreadable image", "0 bytes")
        captions, phrases = self._annotations(index)
        return Record(index, key, image, captions, phrases)

    def _read(self, index, part):
        """The bytes of one member, or None if the record has no such member."""
        shard = int(self._shard_of[index])
        offset, size = self._spans[index, _PARTS.index(part)].tolist()
        if size == _ABSENT:
            return None
        with self._lock:
            # Dropping a descriptor only closes it once no other thread reads from it.
            if shard not in self._open:
                self._open[shard] = _Descriptor(self._shards[shard])
            self._open.move_to_end(shard)
            descriptor = self._open[shard]
            if len(self._open) > _MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
        data = os.pread(descriptor.number, size, offset)
        if len(data) != size:
            detail = f"{self._shards[shard]} got shorter after it was indexed"
            raise BadRecord(self._keys[index], "unreadable shard", detail)
        return data

    def _annotations(self, index):
        key = self._keys[index]
        fields = _parse_json(self._read(index, "json"), key)
        field = next((name for name in self._caption_fields if fields.get(name) is not None), None)
        if field is not None:
            captions = fields[field]
            captions = [captions] if isinstance(captions, str) else captions
            if not _is_list_of_str(captions):
                detail = f"field {field!r} is neither a string nor a list of strings"
                raise BadRecord(key, "invalid caption", detail)
        else:
            text = self._read(index, "txt")
            if text is None:
                detail = f"no .txt, and no field {' / '.join(self._caption_fields)}"
                raise BadRecord(key, "missing caption", detail)
            captions = [_decode(text, key)]

        field = next((name for name in self._phrase_fields if fields.get(name) is not None), None)
        phrases = None if field is None else fields[field]
        if phrases is not None:
            if _is_list_of_str(phrases):
                phrases = [phrases] * len(captions)
            if not (isinstance(phrases, list) and all(map(_is_list_of_str, phrases))):
                detail = f"field {field!r} is neither a list of strings nor one list a caption"
                raise BadRecord(key, "invalid phrases", detail)
            if len(phrases) != len(captions):
                detail = f"{len(phrases)} lists of phrases for {len(captions)} captions"
                raise BadRecord(key, "invalid phrases", detail)
            phrases = [tuple(_strip(group, key)) for group in phrases]

        kept = [i for i, caption in enumerate(captions) if caption.strip()]
        if not kept:
            raise BadRecord(key, "empty caption")
        captions = tuple(_strip([captions[i] for i in kept], key))
        return captions, None if phrases is None else tuple(phrases[i] for i in kept)


class _Descriptor:
    """An open file that closes with its last reference."""

    def __init__(self, path):
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self):
        if hasattr(self, "number"):
            os.close(self.number)


def _is_list_of_str(value):
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _strip(texts, key):
    texts = [text.strip() for text in texts]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:  # json can spell half of a surrogate pair
        raise BadRecord(key, "invalid UTF-8", str(error)) from error
    return [text for text in texts if text]


def _decode(data, key):
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRecord(key, "invalid UTF-8", str(error)) from error


def _parse_json(data, key):
    if data is None:
        return {}
    text = _decode(data, key)
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRecord(key, "invalid json", str(error)) from error
    if not isinstance(fields, dict):
        raise BadRecord(key, "invalid json", f"expected an object, got {type(fields).__name__}")
    return fields


def _find_shards(patterns):
    """Expands every pattern to existing files, in order and without repeats."""
    if not patterns:
        raise ValueError("the list of tars is empty: give at least one path")
    shards = []
    for pattern in patterns:
        if "://" in pattern:
            raise ValueError(f"{pattern} is not a local path: copy or mount the tars first")
        pattern = os.path.expanduser(pattern)
        if os.path.isdir(pattern):
            raise ValueError(f"{pattern} is a folder: give {os.path.join(pattern, '*.tar')}")
        names = [pattern] if os.path.exists(pattern) else _expand_braces(pattern)
        found = [_match(name) for name in names]
        missing = [name for name, files in zip(names, found, strict=True) if not files]
        if missing:
            raise ValueError(_missing_message(pattern, names, missing))
        shards.extend(file for files in found for file in files)
    unique: dict[str, str] = {}
    for shard in shards:
        unique.setdefault(os.path.realpath(shard), shard)
    if len(unique) < len(shards):
        logging.warning("%d tars are named twice and read once", len(shards) - len(unique))
    return list(unique.values())


def _match(name):
    # Only now as a glob: a brace range may stand in a name with [ or * of its own.
    found = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
    return [file for file in found if os.path.isfile(file)]


def _missing_message(pattern, names, missing):
    folder = os.path.dirname(missing[0])
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    if folder and not os.path.isdir(folder):
        return f"nothing matches {pattern}: the folder {folder} does not exist"
    if len(names) == 1:
        return f"nothing matches {pattern}: the folder {folder or '.'} has no such file"
    return (
        f"{len(missing)} of the {len(names)} tars of {pattern} are missing, the first is "
        f"{missing[0]}: correct the range or add the files"
    )


def _expand_braces(pattern):
    """Expands every {first..last} (zero padding kept) and {a,b} of a pattern."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    body = match[1]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", body)
    if numbers:
        first, last = (int(number) for number in numbers.groups())
        if first > last:
            raise ValueError(f"the range {{{body}}} is empty: write the smaller number first")
        choices = [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]
    else:
        choices = body.split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [head + choice + rest for choice in choices for rest in _expand_braces(tail)]


def _index_shard(path):
    """Reads the headers of one tar.

    Returns:
      The keys that have an image, and int64 (keys, parts, 2): offset and size of each part.
    """
    parts: dict[str, list] = {}
    others: collections.Counter[str] = collections.Counter()
    repeated = 0
    members, damage = _read_headers(path)
    for name, offset, size in members:
        folder, _, base = name.removeprefix("./").rpartition("/")
        stem, _, extension = base.partition(".")
        part = _PART_OF.get(extension.lower()) if stem else None
        if part is None:
            others[f".{extension}" if extension else "(no extension)"] += 1
            continue
        if part:
            others[f".{extension}"] += 1
        spans = parts.setdefault(f"{folder}/{stem}" if folder else stem, [(0, _ABSENT)] * 3)
        if spans[part][1] == _ABSENT:
            spans[part] = (offset, size)
        else:
            repeated += 1

    keys = [key for key, spans in parts.items() if spans[0][1] != _ABSENT]
    if not keys:
        found = ", ".join(f"{name} x {count}" for name, count in others.most_common(5))
        raise ValueError(
            f"{path} holds no .jpg/.jpeg/.png/.webp members; found: {found or 'nothing'}"
            + (f". It {damage}: download or write it again" if damage else "")
        )
    if damage:
        logging.warning("%s %s; its first %d images are used", path, damage, len(keys))
    if repeated:
        logging.warning("%s repeats %d members; the first of each is used", path, repeated)
    if len(keys) < len(parts):
        logging.warning("%s: skipped %d keys without an image", path, len(parts) - len(keys))
    return keys, np.array([parts[key] for key in keys], np.int64).reshape(-1, len(_PARTS), 2)


def _read_headers(path):
    """Lists the complete regular members of a tar.

    Returns:
      [(name, offset of the data, size)], and what is wrong with the file or None.
    """
    members = []
    damage = None
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        magic = file.read(4)
        file.seek(0)
        if magic.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd")):
            raise ValueError(f"{path} is compressed, which rules out random access: decompress it")
        try:
            tar = tarfile.open(fileobj=file, mode="r:")
        except tarfile.TarError as error:
            raise ValueError(f"{path} is not a tar ({error}): check the download") from error
        try:
            while (member := tar.next()) is not None:
                tar.members.clear()  # tarfile would keep every header
                if not 0 <= member.size <= length - member.offset_data:
                    damage = f"is cut inside {member.name}"
                    break
                if member.isreg() and not member.issparse():
                    members.append((member.name, member.offset_data, member.size))
        except (tarfile.TarError, OSError) as error:
            damage = f"is damaged after {len(members)} members ({error})"
        if damage is None:
            damage = _check_end(file, tar.offset, length)
    return members, damage


def _check_end(file, offset, length):
    """Says what is wrong with the bytes that follow the last member, or None."""
    file.seek(offset)
    block, rest = file.read(_TAR_BLOCK), file.read(1 << 16)
    if not block:
        return "ends without an end mark and may be cut"
    if block.strip(b"\0"):
        return f"is damaged at byte {offset} of {length}"
    if rest.strip(b"\0"):
        return f"has data after its end mark at byte {offset} (are these joined tars?)"
    return None


def _scenes(split: str, *, data_dir: str | None = None, **options: Any) -> Source:
    """Imported on use: TFDS is slow to import and not needed for tars."""
    from ccl_jax.data import scenes

    return scenes.ScenesSource(split, data_dir=data_dir, **options)


SOURCES: dict[str, Callable[..., Source]] = {
    "webdataset": WebDatasetSource,
    "scenes": _scenes,
}


def open_source(kind: str, **options: Any) -> Source:
    """Opens a source by its name in `SOURCES`.

    Args:
      kind: "webdataset" (see `WebDatasetSource`) or "scenes".
      **options: the arguments of that source.

    Raises:
      ValueError: for an unknown `kind`, for options that the source does not take,
        and whatever the source raises for their values.
    """
    if kind not in SOURCES:
        nearest = difflib.get_close_matches(kind, SOURCES, n=1, cutoff=0)[0]
        known = ", ".join(SOURCES)
        raise ValueError(f"unknown source {kind!r}: did you mean {nearest!r}? Known: {known}")
    signature = inspect.signature(SOURCES[kind])
    try:
        signature.bind(**options)
    except TypeError as error:
        takes = ", ".join(signature.parameters)
        raise ValueError(f"source {kind!r}: {error}; it takes {takes}") from error
    return SOURCES[kind](**options)

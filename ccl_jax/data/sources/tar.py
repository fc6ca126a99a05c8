"""The index of a WebDataset tar: where the parts of each record lie."""

import collections
import os
import tarfile

import numpy as np
from absl import logging

from ccl_jax.data.sources.cache import Arrays, Notes, compression

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
PARTS = ("image", "json", "txt")
ABSENT = -1
_PART_OF = {**dict.fromkeys(IMAGE_EXTENSIONS, 0), "json": 1, "txt": 2}
# Python's own serialised objects, under the names that WebDataset gives them too.
_PICKLES = ("pkl", "pickle", "pyd", "pt", "pth")
_TAR_BLOCK = 512
# What tarfile raises over headers that make no sense: names of many gigabytes, sizes of "x".
_HEADER_ERRORS = (
    *(tarfile.TarError, OSError, ValueError, IndexError),
    *(RecursionError, OverflowError, MemoryError),
)
_REGULAR = tarfile.REGTYPE[0]
_MAX_MEMBER = (1 << 31) - 1


def index_tar(path: str, label: str) -> tuple[Arrays, Notes]:
    """Reads the headers of one tar. Nothing is extracted or unpickled.

    Args:
      path: a plain tar.
      label: what to call it in messages.

    Returns:
      Arrays over the n keys that have an image, in the order of their first member: `offsets`
      int64 (n, parts) and `sizes` int32 (n, parts), `ABSENT` where a record has no such part;
      `keys` uint8, the keys' UTF-8 end to end, and `key_ends` int64 (n,), where each ends.
      And notes: "damage" (what is wrong with the file, or None), the counts "repeated members",
      "keys without an image" and "pickles", and "pickle", the name of the first.

    Raises:
      ValueError: if it is not a plain tar, or holds no image.
    """
    spans: dict[str, list] = {}
    others: collections.Counter[str] = collections.Counter()
    repeated = pickles = 0
    pickle = None
    members, damage = _read_headers(path, label)
    for name, offset, size in members:
        folder, _, base = name.removeprefix("./").rpartition("/")
        stem, _, extension = base.partition(".")
        extension = extension.lower()
        part = _PART_OF.get(extension) if stem and size <= _MAX_MEMBER else None
        if part is None:
            others[f".{extension}" if extension else "(no extension)"] += 1
            if extension.rpartition(".")[2] in _PICKLES:
                pickles += 1
                pickle = pickle or name
            continue
        if part:
            others[f".{extension}"] += 1
        found = spans.setdefault(f"{folder}/{stem}" if folder else stem, [(0, ABSENT)] * 3)
        if found[part][1] == ABSENT:
            found[part] = (offset, size)
        else:
            repeated += 1

    keys = [key for key, found in spans.items() if found[0][1] != ABSENT]
    if not keys:
        kinds = ", ".join(f"{name} x {count}" for name, count in others.most_common(5))
        raise ValueError(
            f"{label} holds no .jpg/.jpeg/.png/.webp members; found: {kinds or 'nothing'}"
            + (f". It {damage}: download or write it again" if damage else "")
        )
    table = np.array([spans[key] for key in keys], np.int64).reshape(-1, len(PARTS), 2)
    encoded = [key.encode() for key in keys]
    arrays = {
        "offsets": np.ascontiguousarray(table[..., 0]),
        "sizes": table[..., 1].astype(np.int32),
        "keys": np.frombuffer(b"".join(encoded), np.uint8),
        "key_ends": np.cumsum([len(key) for key in encoded], dtype=np.int64),
    }
    notes = {
        "damage": damage,
        "repeated members": repeated,
        "keys without an image": len(spans) - len(keys),
        "pickles": pickles,
        "pickle": pickle,
    }
    return arrays, notes


def warn_of(path: str, records: int, notes: Notes) -> None:
    """Logs what is wrong with a tar, or was left out of it."""
    if notes["damage"]:
        logging.warning("%s %s; its first %d images are used", path, notes["damage"], records)
    if notes["repeated members"]:
        logging.warning(
            "%s repeats %d members; the first of each is used", path, notes["repeated members"]
        )
    if notes["keys without an image"]:
        logging.warning(
            "%s: skipped %d keys without an image", path, notes["keys without an image"]
        )
    if notes["pickles"]:
        logging.warning(
            "%s: left out %d pickles, the first is %s. A pickle can run any program, so none is "
            "loaded: where you trust its origin, write its contents as KEY.json",
            path, notes["pickles"], notes["pickle"],
        )  # fmt: skip


def _read_headers(path, label):
    """Lists the complete regular members of a tar.

    Returns:
      [(name, offset of the data, size)], and what is wrong with the file or None.
    """
    members = []
    damage = None
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        if compression(path):
            raise ValueError(f"{label} is compressed, which rules out random access: decompress it")
        try:
            tar = tarfile.open(fileobj=file, mode="r:", tarinfo=_Member)
        except _HEADER_ERRORS as error:
            raise ValueError(f"{label} is not a tar ({error}): check the download") from error
        try:
            while (member := tar.next()) is not None:
                tar.members.clear()  # tarfile would keep every header
                # Bytes that are no UTF-8 stand in the name as lone surrogates.
                raw = member.name.encode(errors="surrogateescape")
                name = raw.decode(errors="backslashreplace")
                if not 0 <= member.size <= length - member.offset_data:
                    damage = f"is cut inside {name}"
                    break
                if member.isreg() and not member.issparse():
                    members.append((name, member.offset_data, member.size))
        except _HEADER_ERRORS as error:
            damage = f"is damaged after {len(members)} members ({error})"
        if damage is None:
            damage = _check_end(file, tar.offset, length)
    return members, damage


class _Member(tarfile.TarInfo):
    """Reads only the name and size of a plain member, the rest as tarfile does: twice as fast."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        # Of POSIX's ustar header: the type is a regular file, the prefix of the name is empty,
        # and the size is not in base 256.
        if len(buf) == _TAR_BLOCK and buf[156] == _REGULAR and not buf[345] and buf[124] < 128:
            try:
                fields = (buf[148:156], buf[124:136])
                stored, size = (int(field.partition(b"\0")[0], 8) for field in fields)
            except ValueError:
                return super().frombuf(buf, encoding, errors)
            # The checksum counts its own 8 bytes as spaces.
            if stored == sum(buf) - sum(buf[148:156]) + 8 * 32:
                member = cls(buf[:100].partition(b"\0")[0].decode(encoding, errors))
                member.size = size
                return member
        return super().frombuf(buf, encoding, errors)


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

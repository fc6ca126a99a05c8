"""What is worked out once and kept: indexes of large files, and decompressed copies.

Entries are keyed by path, size and time of change, so a file that was replaced is indexed
anew. They are written aside and renamed, so that no reader sees half of one; several
processes may share a folder.
"""

import contextlib
import errno
import hashlib
import importlib
import json
import lzma
import os
import shutil
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import logging

# Smaller files are indexed in less than a second: an entry would only clutter the folder.
_WORTH_KEEPING = 64 << 20
_KEEP_FREE = 1 << 30
_CHUNK = 4 << 20
_CHECK_EVERY = 64 << 20
_ZSTD = b"\x28\xb5\x2f\xfd"
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zX": "lzma", _ZSTD: "zstd"}

Arrays = dict[str, np.ndarray]
Notes = dict[str, Any]


def say(text: str) -> None:
    """Tells of long work; not through the log, which programs keep to warnings."""
    print(text, file=sys.stderr, flush=True)


def cache_dir(index_dir: str | os.PathLike | None) -> str:
    """`index_dir`; for None $CCL_JAX_CACHE, else $XDG_CACHE_HOME/ccl_jax or ~/.cache/ccl_jax."""
    if index_dir is not None:
        return os.path.expanduser(index_dir)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return os.path.expanduser(os.environ.get("CCL_JAX_CACHE") or os.path.join(home, "ccl_jax"))


def is_kept(path: str, index_dir: str | os.PathLike | None) -> bool:
    """Whether the index of a file is kept: always in an `index_dir` given, else if it is large."""
    return index_dir is not None or os.path.getsize(path) >= _WORTH_KEEPING


def load_index(path: str, kind: str, index_dir: str | os.PathLike | None) -> tuple | None:
    """The kept (arrays, notes) of a file, or None where there are none that fit it."""
    try:
        with (
            open(_entry(path, kind, index_dir, ".npz"), "rb") as file,
            np.load(file, allow_pickle=False) as entry,
        ):
            notes = json.loads(str(entry["notes"]))
            arrays = {name: entry[name] for name in entry.files if name != "notes"}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if notes.pop("identity") != _identity(path, kind):
        return None
    return arrays, notes


def save_index(
    path: str, kind: str, index_dir: str | os.PathLike | None, arrays: Arrays, notes: Notes
) -> None:
    """Keeps (arrays, notes) of a file; a folder that cannot be written to is only warned of."""
    notes = json.dumps(notes | {"identity": _identity(path, kind)})
    try:
        with _replacing(_entry(path, kind, index_dir, ".npz")) as temporary:
            with open(temporary, "wb") as file:
                np.savez(file, notes=np.array(notes), **arrays)
    except OSError as error:
        logging.log_first_n(logging.WARNING, "The index of %s cannot be kept: %s", 1, path, error)


def indexed(
    path: str,
    kind: str,
    index_dir: str | os.PathLike | None,
    build: Callable[[str], tuple[Arrays, Notes]],
) -> tuple[Arrays, Notes]:
    """`build(path)`, or what it gave the last time the file was opened."""
    if not is_kept(path, index_dir):
        return build(path)
    found = load_index(path, kind, index_dir)
    if found is None:
        found = build(path)
        save_index(path, kind, index_dir, *found)
    return found


def compression(path: str) -> str | None:
    """Name of the module that reads a compressed file, "zstd", or None for a plain file."""
    with open(path, "rb") as file:
        magic = file.read(6)
    return next((name for start, name in _COMPRESSED.items() if magic.startswith(start)), None)


def decompressed(path: str, index_dir: str | os.PathLike | None) -> str:
    """The path of a plain copy of a compressed file, made once; of a plain file, its own.

    A copy rather than an index into the compressed stream: images do not compress, so the
    copy is hardly larger than the file, while reading at random from a compressed stream
    decompresses half a megabyte or more for every image of 50 kB.

    Raises:
      ValueError: for zstd, and if the folder has no room or cannot be written to.
    """
    form = compression(path)
    if form is None:
        return path
    if form == "zstd":
        raise ValueError(f"{path} is compressed by zstd: decompress it with zstd -d")
    return derived(path, "plain", index_dir, lambda target: _decompress(path, form, target))


def derived(
    path: str, kind: str, index_dir: str | os.PathLike | None, write: Callable[[str], None]
) -> str:
    """The path of a file made from another, once: `write` is given where to write it.

    Raises:
      ValueError: if the folder has no room or cannot be written to.
    """
    copy, marker = (_entry(path, kind, index_dir, end) for end in (".data", ".json"))

    def is_there():
        return _read_marker(marker) == _identity(path, kind) and os.path.exists(copy)

    if is_there():
        return copy
    try:
        with _locked(copy + ".lock"):
            if not is_there():
                with _replacing(copy) as temporary:
                    write(temporary)
                with _replacing(marker) as temporary, open(temporary, "w") as file:
                    json.dump(_identity(path, kind), file)
    except OSError as error:
        raise ValueError(
            f"what is made of {path} cannot be written to {copy} ({error.strerror or error}): "
            "give index_dir, a folder with room for a copy of the file"
        ) from error
    return copy


def _decompress(path, form, target):
    say(f"Decompressing {path} into {os.path.dirname(target)}, once")
    size, start, unchecked = os.path.getsize(path), time.monotonic(), _CHECK_EVERY
    opened = importlib.import_module(form)
    with open(path, "rb") as raw, opened.open(raw) as source, open(target, "wb") as file:
        while True:
            try:
                chunk = source.read1(_CHUNK)  # what there is, also before a cut
            except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
                # What was read is kept: it is used as a cut file would be.
                logging.warning("%s is cut or damaged (%s)", path, error)
                break
            if not chunk:
                break
            file.write(chunk)
            unchecked += len(chunk)
            if unchecked >= _CHECK_EVERY:
                unchecked = 0
                if shutil.disk_usage(os.path.dirname(target)).free < _KEEP_FREE:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if time.monotonic() - start > 10:
                say(f"Decompressing {path}: {100 * raw.tell() // size} %")
                start = time.monotonic()


def _identity(path, kind):
    found = os.stat(path)
    return [1, kind, os.path.realpath(path), found.st_size, found.st_mtime_ns]


def _entry(path, kind, index_dir, end):
    name = f"{kind}\0{os.path.realpath(path)}".encode(errors="surrogateescape")
    return os.path.join(cache_dir(index_dir), hashlib.sha256(name).hexdigest()[:40] + end)


def _read_marker(path):
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[str]:
    """A temporary path that takes the place of `path` once it is written."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}.{time.monotonic_ns()}"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Holds a lock between the processes of a machine; it ends with its holder."""
    import fcntl

    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield

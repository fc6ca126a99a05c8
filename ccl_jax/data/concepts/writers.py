"""Files of records with their phrases: tars that can be trained from, and tables beside them."""

import contextlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence

from ccl_jax.data import parallel
from ccl_jax.data.records import BadRecord, Record

_EXTENSIONS = ((b"\xff\xd8", "jpg"), (b"\x89PNG", "png"), (b"RIFF", "webp"))

# Called with each record of a shard, usable or not, and the phrases of each caption.
Write = Callable[[Record | BadRecord, Sequence[Sequence[str]]], None]


def image_extension(record: Record) -> str:
    """The extension that fits the bytes of an image.

    Raises:
      BadRecord: "unreadable image".
    """
    for magic, extension in _EXTENSIONS:
        if record.image.startswith(magic):
            return extension
    raise BadRecord(record.key, "unreadable image", "neither JPEG, PNG nor WebP")


@contextlib.contextmanager
def _tar_writer(path: str | os.PathLike[str]) -> Iterator[Write]:
    """Records as members KEY.jpg (.png, .webp) and KEY.json of a WebDataset tar."""
    keys = set()
    with parallel.complete_file(path, "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:

        def add(name, data):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

        def write(record, phrases):
            if isinstance(record, BadRecord):
                return
            # A dot would end the key, and names must not lead out of a folder.
            parts = re.split(r"[/\\]+", record.key.replace(".", "_"))
            key = "/".join(part for part in parts if part) or "record"
            if key in keys:  # from shards that each count from zero
                key = f"{key}_{record.sample_id}"
            keys.add(key)
            add(f"{key}.{image_extension(record)}", record.image)
            fields = {**_plain_fields(record), "captions": record.captions, "phrases": phrases}
            add(f"{key}.json", json.dumps(fields, ensure_ascii=False).encode())

        yield write


def _plain_fields(record):
    """What else the record has and JSON can hold."""
    fields = {}
    for name, value in record.extra.items():
        with contextlib.suppress(TypeError, ValueError):
            fields[name] = json.loads(json.dumps(value))
    return fields


@contextlib.contextmanager
def _table_writer(path: str | os.PathLike[str]) -> Iterator[Write]:
    """A line for every record of the source, unusable ones too, so that line i is record i."""
    with parallel.complete_file(path) as file:

        def write(record, phrases):
            if isinstance(record, BadRecord):
                line = {"key": record.key, "skipped": record.reason}
            else:
                line = {"key": record.key, "captions": record.captions, "phrases": phrases}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

        yield write


# Context managers: the file is there once they are left without an error.
WRITERS: dict[str, Callable] = {"tar": _tar_writer, "jsonl": _table_writer}

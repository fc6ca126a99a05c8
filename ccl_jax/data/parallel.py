"""What a resumable run over the shards of a collection needs, whatever engine runs it.

A shard's file is written under another name and renamed when it is complete, so it is there or
not, whatever was killed in between.
"""

import contextlib
import json
import os
import pathlib
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any, TextIO

# Every record of a shard is done again when the run is killed in it.
_SHARD_RECORDS = 10_000
_FEW_SHARDS = 64


def shard_count(records: int) -> int:
    """How many shards to cut records into: enough to keep 64 cores busy, 10,000 in each."""
    return max(-(-records // _SHARD_RECORDS), min(_FEW_SHARDS, -(-records // 500)), 1)


def shard_range(shard: int, shards: int, records: int) -> range:
    """The records of a shard: consecutive, and as many in each shard but for one."""
    return range(shard * records // shards, (shard + 1) * records // shards)


def shard_name(stem: str, shard: int, shards: int, extension: str) -> str:
    """A name such as "phrases-00003-of-00010.jsonl"."""
    return f"{stem}-{shard:05d}-of-{shards:05d}.{extension}"


@contextlib.contextmanager
def complete_file(path: str | os.PathLike[str], mode: str = "w") -> Iterator[Any]:
    """Opens a file that gets its name only when it is complete and on the disk."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def keep_settings(folder: str | os.PathLike[str], name: str, settings: dict[str, Any]) -> None:
    """Writes down what a folder's shards were made from, or compares it with what is there.

    Raises:
      ValueError: if the folder holds shards of other settings.
    """
    path = pathlib.Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(settings))
    if path.exists():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not readable: delete the folder to start anew") from error
        changed = [key for key in settings if old.get(key) != settings[key]]
        if changed:
            was = ", ".join(f"{key} = {old.get(key)!r}" for key in changed)
            raise ValueError(
                f"{folder} holds the output of another run ({was}): choose another folder, "
                "or run with those settings to resume it"
            )
        return
    with complete_file(path) as file:
        json.dump(settings, file, indent=2)


class Progress:
    """A line on a terminal, or now and then a line in a log, that says how far the work is."""

    def __init__(self, total: int, unit: str, *, found: int = 0, stream: TextIO | None = None):
        """`found` of the `total` units were done before, and count for no speed."""
        self._total = total
        self._found = found
        self._unit = unit
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._interval = 0.2 if self._live else 10.0
        self._start = self._told = time.monotonic()

    def show(self, done: int) -> None:
        """Says that `done` of the units are done, unless it said so just now."""
        now = time.monotonic()
        if now - self._told < self._interval and done < self._total:
            return
        self._told = now
        rate = (done - self._found) / max(now - self._start, 1e-9)
        line = f"{done:,} of {self._total:,} {self._unit}, {rate:,.0f}/s"
        if rate and done < self._total:
            left = round((self._total - done) / rate)
            line += f", {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"
        end = "\n" if not self._live or done >= self._total else ""
        self._stream.write(("\r\x1b[K" if self._live else "") + line + end)
        self._stream.flush()

"""One shard of prepared data: records of a source checked, shrunk, counted and written."""

import collections
import dataclasses
import functools
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ccl_jax.data import parallel, prepared, verifying
from ccl_jax.data.records import BadRecord, Record, Source
from ccl_jax.data.shards import WRITERS
from ccl_jax.data.shrinking import check_image, shrink_image
from ccl_jax.data.sources import open_source

_CONTENT_RECORDS = 16
COUNTS = ("records", "captions", "phrases", "bytes", "resized")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a split's shards are made from, and how.

    Attributes:
      source: the arguments of `open_source`, JSON-like; or those of `downloading.UrlTable`
        with kind "download".
      output: the folder of the set.
      split: name of the split.
      format: "array_record" (read at random as it is) or "tfrecord".
      shards: how many; 0 chooses by the number of records.
      resize: largest short side of an image in pixels, None to keep all images as they are.
      quality: of the JPEGs that `resize` writes.
      check_images: decode every image, and leave out those that cannot be.
      max_bad_share: share of the records that may be left out before the run stops.
      network: further arguments of `downloading.UrlTable`, on how images are fetched.
    """

    source: dict[str, Any]
    output: str
    split: str = "train"
    format: str = "array_record"
    shards: int = 0
    resize: int | None = None
    quality: int = 92
    check_images: bool = True
    max_bad_share: float = 0.05
    network: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.format not in prepared.FORMATS:
            known = " or ".join(prepared.FORMATS)
            raise ValueError(f"unknown format {self.format!r}: choose {known}")
        if "://" in self.output:
            raise ValueError(f"{self.output} is not a local path: give a folder, or mount it")
        if not self.split.isidentifier():
            raise ValueError(f"the split {self.split!r} must be a word such as train")
        if self.shards < 0:
            raise ValueError(f"shards must be positive, or 0 to choose; got {self.shards}")
        if self.resize is not None and self.resize < 1:
            raise ValueError(f"resize must be a short side in pixels, got {self.resize}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must lie in 1 to 100, got {self.quality}")
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"max_bad_share must lie in 0 to 1, got {self.max_bad_share}")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings, with what follows from them and the source.

    Attributes:
      settings: as given.
      name: of the set.
      records: of the source.
      content: see `content_of`.
      shards: how many.
    """

    settings: Settings
    name: str
    records: int
    content: str
    shards: int

    @property
    def folder(self) -> Path:
        """Where the set lies."""
        return Path(self.settings.output)

    @property
    def state(self) -> Path:
        """A hidden folder in it, of what a run needs to be resumed."""
        return self.folder / f".prepare-{self.settings.split}"

    def shard(self, number: int) -> Path:
        """The file of a shard."""
        name = prepared.shard_name(
            self.name, self.settings.split, self.settings.format, number, self.shards
        )
        return self.folder / name

    def report(self, number: int) -> Path:
        """The file of the report on it, there once the shard is."""
        return self.state / parallel.shard_name("shard", number, self.shards, "json")

    def key(self) -> dict[str, Any]:
        """What has to be the same for a run to be resumed."""
        settings = dataclasses.asdict(self.settings)
        for name in ("output", "max_bad_share", "shards", "network"):
            del settings[name]
        of_source = {"records": self.records, "content": self.content}
        return settings | of_source | {"shards": self.shards}


def convert_shard(plan: Plan, number: int) -> None:
    """Writes one shard and the report on it, unless both are there."""
    if read_report(plan, number):
        return
    settings = plan.settings
    source = open_input(settings)
    if len(source) != plan.records:
        raise ValueError(
            f"{source.name} has {len(source)} records here, and had {plan.records} when the run "
            "began: all workers need the same files, and they must not change"
        )
    target = plan.shard(number)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    tally = _Tally(plan)
    indices = parallel.shard_range(number, plan.shards, plan.records)
    try:
        WRITERS[settings.format](temporary, tally.convert(_read(source, indices)))
        _sync(temporary)
        report = tally.report() | {
            "size": temporary.stat().st_size,
            "sha256": verifying.digest(temporary),
        }
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    with parallel.complete_file(plan.report(number)) as file:
        json.dump(report, file)


def content_of(source: Source) -> str:
    """A short text that changes with what a source holds, from a few of its records."""
    hashed = hashlib.sha256()
    for place in range(_CONTENT_RECORDS):
        index = place * len(source) // _CONTENT_RECORDS
        try:
            if hasattr(source, "describe"):
                found = source.describe(index)
            else:
                record = source[index]
                found = [record.key, len(record.image), record.captions, record.phrases]
        except BadRecord as error:
            found = describe_bad(index, error)
        hashed.update(json.dumps(found).encode())
    return hashed.hexdigest()[:16]


def open_input(settings: Settings) -> Source:
    """Opens the source of some settings, once a process."""
    return _open(json.dumps(settings.source | settings.network))


def close_input(source: Source) -> None:
    """Ends what an open source keeps running, which is nothing but for one of URLs."""
    if hasattr(source, "close"):
        source.close()
        _open.cache_clear()


@functools.lru_cache(maxsize=1)
def _open(text):
    options = json.loads(text)
    kind = options.pop("kind")
    if kind == "download":
        try:
            from ccl_jax.data.downloading import UrlTable
        except ImportError as error:
            raise ValueError('a download needs aiohttp: pip install "ccl_jax[download]"') from error
        return UrlTable(**options)
    return open_source(kind, **options)


class _Tally:
    """Turns records into the bytes of a shard, and counts."""

    def __init__(self, plan: Plan):
        self._settings = plan.settings
        self._records = plan.records
        self._limit = bad_limit(plan)
        self._counts = dict.fromkeys(COUNTS, 0)
        self._bad: list[dict[str, Any]] = []
        self._skips = Skips()

    def convert(self, found: Iterator[tuple[int, Record | BadRecord]]) -> Iterator[bytes]:
        for index, record in found:
            try:
                if isinstance(record, BadRecord):
                    raise record
                image = self._image(record)
            except BadRecord as error:
                self._bad.append(describe_bad(index, error))
                self._skips.add(self._bad[-1:])
                # Of the whole source: what other shards left out is not known here.
                self._skips.check(self._limit, self._records, self._settings)
                continue
            data = prepared.encode_record(dataclasses.replace(record, image=image))
            self._counts["records"] += 1
            self._counts["captions"] += len(record.captions)
            self._counts["phrases"] += sum(map(len, record.phrases or ()))
            self._counts["bytes"] += len(data)
            self._counts["resized"] += image is not record.image
            yield data

    def _image(self, record):
        if self._settings.resize:
            return shrink_image(
                record.image, record.key, self._settings.resize, self._settings.quality
            )
        if self._settings.check_images:
            check_image(record.image, record.key)
        return record.image

    def report(self) -> dict[str, Any]:
        return self._counts | {"bad": self._bad}


def _read(source, indices):
    """(index, record or `BadRecord`) of some records; a source may fetch several at a time."""
    if hasattr(source, "read_many"):
        yield from source.read_many(indices)
        return
    for index in indices:
        try:
            yield index, source[index]
        except BadRecord as error:
            yield index, error


def read_report(plan: Plan, number: int) -> dict[str, Any] | None:
    """The report on a complete shard: `COUNTS`, "size", "sha256" and "bad"; None without one."""
    try:
        report = json.loads(plan.report(number).read_text("utf-8"))
        return report if plan.shard(number).stat().st_size == report["size"] else None
    except (FileNotFoundError, ValueError):
        return None


def bad_limit(plan: Plan) -> float:
    """How many records may be left out; one always, for small sets."""
    return max(plan.settings.max_bad_share * plan.records, 1)


def describe_bad(index: int, error: BadRecord) -> dict[str, Any]:
    """A line on a record that was left out, of text that any file can hold."""
    line = {"key": error.key, "reason": error.reason, "detail": error.detail}
    line = {name: text.encode(errors="backslashreplace").decode() for name, text in line.items()}
    return {"index": index} | line


class Skips:
    """What was left out: how many by reason, and the first."""

    def __init__(self):
        self.reasons: collections.Counter[str] = collections.Counter()
        self._first = ""

    def add(self, lines: Iterable[dict[str, Any]]) -> None:
        """Counts lines of `describe_bad`."""
        for line in lines:
            self._first = self._first or line["key"]
            self.reasons[line["reason"]] += 1

    def check(self, limit: float, of: int, settings: Settings) -> None:
        """Raises ValueError if more than `limit` of `of` records were left out."""
        count = self.reasons.total()
        if count > limit:
            listed = ", ".join(f"{reason} x {n}" for reason, n in self.reasons.most_common(3))
            raise ValueError(
                f"{count} of {of} records are unusable ({listed}; the first is {self._first}): "
                f"mend the data, or raise max_bad_share above {settings.max_bad_share}"
            )


def _sync(path):
    with open(path, "rb") as file:
        os.fsync(file.fileno())

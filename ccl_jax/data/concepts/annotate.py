"""Noun phrases for a whole source, as files that can be trained from.

`annotate_shard` is the whole transformation: a function of a job and a shard's number, both
plain values, that writes one file. `engines.run` calls it for every shard that is missing.
"""

import collections
import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from ccl_jax.data import engines, parallel
from ccl_jax.data.concepts.extractors import Extractor, installed_extractor, open_extractor
from ccl_jax.data.concepts.statistics import Statistics, in_sample
from ccl_jax.data.concepts.writers import WRITERS, image_extension
from ccl_jax.data.records import BadRecord, Record, Source
from ccl_jax.data.sources import open_source

_STEM = "phrases"
_SETTINGS = "job.json"
# Captions that a language model gets at once; it batches them by itself.
_RECORDS_AT_ONCE = 64
_PROBED = 64


@dataclasses.dataclass(frozen=True)
class Job:
    """What is made, and from what; all that the output depends on.

    Attributes:
      source: arguments of `open_source`.
      extractor: arguments of `open_extractor`.
      output: folder of the files.
      format: "tar" (images, captions and phrases) or "jsonl" (a table for `PhraseTable`).
      records: number of records of the source.
      shards: number of files.
      max_bad_share: share of the records that may be unusable before the run stops.
    """

    source: dict[str, Any]
    extractor: dict[str, Any]
    output: str
    format: str
    records: int
    shards: int
    max_bad_share: float = 0.05

    def __post_init__(self):
        if self.format not in WRITERS:
            raise ValueError(f"unknown format {self.format!r}; known: {', '.join(WRITERS)}")
        if self.shards < 1:
            raise ValueError(f"shards must be at least 1, got {self.shards}")

    def path(self, shard: int) -> pathlib.Path:
        """The file of a shard."""
        name = parallel.shard_name(_STEM, shard, self.shards, self.format)
        return pathlib.Path(self.output) / name

    def statistics_path(self, shard: int) -> pathlib.Path:
        """The counts of a shard; written when its file is there."""
        name = parallel.shard_name(_STEM, shard, self.shards, "json")
        return pathlib.Path(self.output) / "statistics" / name

    def missing(self) -> list[int]:
        """The shards that are still to be done."""
        return [shard for shard in range(self.shards) if not self._is_done(shard)]

    def _is_done(self, shard):
        if not self.statistics_path(shard).exists():
            return False
        # A tar without records would be refused by those who read it, so there is none.
        return self.path(shard).exists() or not self.statistics(shard).records

    def statistics(self, shard: int) -> Statistics:
        """The counts of a shard that is done."""
        text = self.statistics_path(shard).read_text(encoding="utf-8")
        return Statistics.from_json(json.loads(text))


def plan(
    source: dict[str, Any],
    output: str,
    *,
    extractor: str = "auto",
    options: dict[str, Any] | None = None,
    format: str = "tar",
    shards: int = 0,
    max_bad_share: float = 0.05,
) -> Job:
    """A job for a source, once both source and extractor can be opened.

    Args:
      source: arguments of `open_source`.
      output: folder of the files.
      extractor: a name in `EXTRACTORS`, or "auto".
      options: of the extractor.
      format: see `Job`.
      shards: number of files; 0 to choose by the number of records.
      max_bad_share: see `Job`.

    Raises:
      ValueError: for a bad value, or if the source has no records.
    """
    opened = _source(json.dumps(source, sort_keys=True))
    if not len(opened):
        raise ValueError(f"{opened.name} has no records; check its path and split")
    if not 0 <= max_bad_share <= 1:
        raise ValueError(f"max_bad_share must lie in 0 to 1, got {max_bad_share}")
    kind = installed_extractor() if extractor == "auto" else extractor
    arguments = {"kind": kind, **(options or {})}
    if kind != "llm":  # the model is loaded where it is used
        _extractor(json.dumps(arguments, sort_keys=True))
    return Job(
        source=source,
        extractor=arguments,
        output=os.path.abspath(os.path.expanduser(output)),
        format=format,
        records=len(opened),
        shards=min(shards or parallel.shard_count(len(opened)), len(opened)),
        max_bad_share=max_bad_share,
    )


def annotate(
    job: Job,
    *,
    runner: str = engines.LOCAL,
    workers: int | None = None,
    options: Sequence[str] = (),
) -> Statistics:
    """Makes every file of a job that is not there yet, and says how far it is.

    Unusable records are named in skipped.tsv.

    Args:
      job: what to make.
      runner, workers, options: see `engines.run`.

    Returns:
      The counts over all shards, those of earlier runs too.

    Raises:
      ValueError: if the output holds another job's files, or too many records are unusable.
    """
    settings = dataclasses.asdict(job)
    del settings["output"], settings["max_bad_share"]
    parallel.keep_settings(job.output, _SETTINGS, settings)
    os.makedirs(job.statistics_path(0).parent, exist_ok=True)
    missing = job.missing()
    found = job.shards - len(missing)
    line = parallel.Progress(job.records, "images", found=job.records * found // job.shards)
    if missing:
        _probe(job)
        engines.run(
            functools.partial(annotate_shard, job),
            missing,
            runner=runner,
            workers=workers,
            options=options,
            progress=lambda done, _: line.show(job.records * (found + done) // job.shards),
        )
    if job.missing():
        raise ValueError(
            f"{len(job.missing())} of {job.shards} shards were not written: do all workers see "
            f"{job.output} under this name?"
        )
    for stale in pathlib.Path(job.output).glob(f".{_STEM}-*.tmp"):  # of a run that was killed
        stale.unlink(missing_ok=True)
    total = Statistics()
    for shard in range(job.shards):
        total.merge(job.statistics(shard))
    _check(total.skipped, job.records, job)
    with parallel.complete_file(pathlib.Path(job.output) / "skipped.tsv") as file:
        for row in total.skipped:
            file.write("\t".join(" ".join(field.split()) for field in row) + "\n")
    return total


def annotate_shard(job: Job, shard: int) -> None:
    """Writes the file of one shard, and its counts.

    Raises:
      ValueError: if too many records of the shard are unusable.
    """
    source = _source(json.dumps(job.source, sort_keys=True))
    extractor = _extractor(json.dumps(job.extractor, sort_keys=True))
    if len(source) != job.records:
        raise ValueError(
            f"{source.name} has {len(source)} records here, and had {job.records} when the job "
            "began: choose another output folder"
        )
    indices = parallel.shard_range(shard, job.shards, job.records)
    statistics = Statistics()
    with WRITERS[job.format](job.path(shard)) as write:
        for start in range(indices.start, indices.stop, _RECORDS_AT_ONCE):
            batch = range(start, min(start + _RECORDS_AT_ONCE, indices.stop))
            for index, record, found in _extract(source, extractor, batch):
                if isinstance(record, BadRecord):
                    statistics.skipped.append([record.key, record.reason, record.detail])
                else:
                    drawn = index % len(record.captions)
                    drawn = drawn if in_sample(index, job.records) else None
                    statistics.add(record.captions, found, drawn)
                write(record, [extraction.kept for extraction in found])
            _check(statistics.skipped, job.records, job)
    if job.format == "tar" and not statistics.records:
        job.path(shard).unlink()
    with parallel.complete_file(job.statistics_path(shard)) as file:
        json.dump(statistics.to_json(), file, ensure_ascii=False)


# A worker does many shards of one job; opening a source reads every header of its tars.
@functools.lru_cache(maxsize=1)
def _source(text: str) -> Source:
    return open_source(**json.loads(text))


@functools.lru_cache(maxsize=1)
def _extractor(text: str) -> Extractor:
    return open_extractor(**json.loads(text))


def _extract(source, extractor, indices) -> Iterator[tuple]:
    """(index, record or what is wrong with it, phrases of each caption)."""
    records = [_read(source, index) for index in indices]
    usable = [record for record in records if isinstance(record, Record)]
    found = iter(extractor([caption for record in usable for caption in record.captions]))
    for index, record in zip(indices, records, strict=True):
        count = len(record.captions) if isinstance(record, Record) else 0
        yield index, record, [next(found) for _ in range(count)]


def _read(source, index) -> Record | BadRecord:
    try:
        record = source[index]
        image_extension(record)
    except BadRecord as error:
        return error
    return record


def _probe(job):
    """Reads records from all over the source: what cannot work should not take hours."""
    source = _source(json.dumps(job.source, sort_keys=True))
    places = sorted({place * job.records // _PROBED for place in range(_PROBED)})
    bad = [record for record in (_read(source, i) for i in places) if isinstance(record, BadRecord)]
    # Four standard deviations over what is allowed.
    expected = job.max_bad_share * len(places)
    if len(bad) == len(places) or len(bad) > expected + 4 * math.sqrt(expected):
        _refuse([[error.key, error.reason, error.detail] for error in bad], len(places), job)


def _check(bad, records, job):
    if len(bad) == records or len(bad) > max(job.max_bad_share * records, 1):
        _refuse(bad, records, job)


def _refuse(bad, records, job):
    reasons = collections.Counter(reason for _, reason, _ in bad).most_common(3)
    raise ValueError(
        f"{len(bad)} of {records} records are unusable "
        f"({', '.join(f'{reason} x {count}' for reason, count in reasons)}; the first is "
        f"{bad[0][0]}): mend the data, or raise --max_bad_share above {job.max_bad_share}"
    )

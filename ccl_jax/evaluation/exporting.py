"""Embeddings of any source as files for others: Parquet, or NPY with JSON lines beside it."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ccl_jax.data.records import BadRecord, Record, Source
from ccl_jax.evaluation.models import decoded
from ccl_jax.evaluation.reading import embed_texts
from ccl_jax.evaluation.results import Image

if TYPE_CHECKING:
    from ccl_jax.evaluation.embeddings import Predictor

FORMATS = ("parquet", "npy")
WHAT = ("image", "text")
_JOB = "embeddings.json"


@dataclasses.dataclass(frozen=True)
class Job:
    """What to write.

    Attributes:
      what: of `WHAT`: images, texts or both.
      format: in `FORMATS`.
      shard_size: records in a shard.
      dtype: of the rows, "float32" or "float16".
      limit: only the first so many records; None for all.
    """

    what: tuple[str, ...] = WHAT
    format: str = "parquet"
    shard_size: int = 10_000
    dtype: str = "float32"
    limit: int | None = None

    def __post_init__(self):
        """Checks the options."""
        if not self.what or set(self.what) - set(WHAT):
            raise ValueError(f"what to embed is image, text or both; got {','.join(self.what)!r}")
        if self.format not in FORMATS:
            raise ValueError(f"the format is one of {', '.join(FORMATS)}; got {self.format!r}")
        if self.dtype not in ("float32", "float16"):
            raise ValueError(f"the rows are float32 or float16; got {self.dtype!r}")
        if self.shard_size < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError("shard size and limit must be at least 1")


def write_embeddings(
    predictor: Predictor,
    source: Source,
    folder: str | os.PathLike,
    job: Job = Job(),  # noqa: B008 (frozen)
    *,
    described: dict[str, Any] | None = None,
    tell: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> dict[str, Any]:
    """Embeds every record of a source, shard by shard; the same call again continues.

    For images a shard is `image-SHARD.parquet` with columns index (int64, of the record), key and
    embedding (a list of fixed size), for texts `text-SHARD.parquet` with index, key, caption
    (int64, its number within the record), text and embedding. As NPY it is `image-SHARD.npy` (n,
    d) and `image-SHARD.jsonl` with the other columns, row by row. Rows are L2-normalised.
    `SHARD.json` comes last and says that a shard is whole; `embeddings.json` describes the whole.

    Args:
      predictor: the model.
      source: the records.
      folder: made if missing.
      job: what to write.
      described: put into `embeddings.json`, such as the names of model and source.
      tell: is given a line of progress after each shard.

    Returns:
      The content of `embeddings.json`.

    Raises:
      ValueError: if the folder holds embeddings of something else, not one record is readable,
        or pyarrow is missing for Parquet.
    """
    if job.format == "parquet":
        _arrow()
    path = Path(folder)
    total = len(source) if job.limit is None else min(job.limit, len(source))
    identity = {
        "model": predictor.fingerprint(),
        "records": total,
        **dataclasses.asdict(job),
        "what": list(job.what),
        **(described or {}),
    }
    _claim(path, identity)
    counts: collections.Counter[str] = collections.Counter()
    skipped: list[list[str]] = []
    shards = -(-total // job.shard_size)
    for shard in range(shards):
        done = path / f"{shard:05}.json"
        if not done.exists():
            start = time.time()
            records = range(shard * job.shard_size, min(total, (shard + 1) * job.shard_size))
            found = _write_shard(predictor, source, records, path, f"{shard:05}", job)
            _write_json(done, found)
            seconds = time.time() - start
            tell(f"shard {shard + 1} of {shards}: {len(records):,} records, {seconds:.0f} s")
        found = json.loads(done.read_text(encoding="utf-8"))
        counts.update(found["rows"])
        skipped += found["skipped"]
    if not counts.total():
        why = f"the first: {': '.join(skipped[0])}" if skipped else "the source is empty"
        raise ValueError(f"not one of {total} records of {source.name} could be embedded; {why}")
    whole = identity | {"rows": dict(counts), "shards": shards, "skipped": skipped}
    _write_json(path / _JOB, whole | {"complete": True})
    return whole


def _claim(path: Path, identity: dict[str, Any]) -> None:
    """Marks a new folder; refuses one that holds something else."""
    file = path / _JOB
    if file.exists():
        old = json.loads(file.read_text(encoding="utf-8"))
        different = [name for name, value in identity.items() if old.get(name) != value]
        if different:
            name = different[0]
            raise ValueError(
                f"{path} holds embeddings with another {name} ({old.get(name)!r}, not "
                f"{identity[name]!r}); give another --output"
            )
        return
    if path.exists() and any(path.iterdir()):
        raise ValueError(f"{path} is not empty and holds no embeddings; give another --output")
    path.mkdir(parents=True, exist_ok=True)
    _write_json(file, identity)


def _write_shard(
    predictor, source: Source, indices: range, path: Path, name: str, job: Job
) -> dict[str, Any]:
    records, skipped = [], []
    for index in indices:
        try:
            records.append((index, source[index]))
        except BadRecord as error:
            skipped.append([error.key, error.reason])
    rows = {}
    if "image" in job.what:
        columns, emb, bad = _images(predictor, records)
        skipped += [[key, reason] for key, reason in bad.items()]
        rows["image"] = _write(path / f"image-{name}", columns, emb, job)
    if "text" in job.what:
        columns, emb = _texts(predictor, records)
        rows["text"] = _write(path / f"text-{name}", columns, emb, job)
    return {"rows": rows, "skipped": skipped}


def _images(predictor, records: Sequence[tuple[int, Record]]):
    def image(record: Record) -> Image:
        return Image(record.key, record.key, lambda: record.image)

    bad: dict[str, str] = {}
    columns: dict[str, list] = {"index": [], "key": []}
    parts = []
    images = [image(record) for _, record in records]
    size = getattr(predictor, "batch_size", 256)
    for pixels, found in decoded(images, predictor.image_options, size, bad):
        parts.append(predictor.images(pixels))
        columns["index"] += [records[i][0] for i in found]
        columns["key"] += [records[i][1].key for i in found]
    return columns, np.concatenate(parts) if parts else None, bad


def _texts(predictor, records: Sequence[tuple[int, Record]]):
    columns: dict[str, list] = {"index": [], "key": [], "caption": [], "text": []}
    for index, record in records:
        for number, text in enumerate(record.captions):
            for column, value in zip(columns, (index, record.key, number, text), strict=True):
                columns[column].append(value)
    return columns, embed_texts(predictor, columns["text"]) if columns["text"] else None


def _write(stem: Path, columns: dict[str, list], emb: np.ndarray | None, job: Job) -> int:
    if emb is None:
        return 0
    emb = emb.astype(job.dtype)
    if job.format == "npy":
        _replace(stem.with_suffix(".npy"), lambda file: np.save(file, emb))
        lines = (
            json.dumps(dict(zip(columns, values, strict=True)), ensure_ascii=False)
            for values in zip(*columns.values(), strict=True)
        )
        text = "".join(f"{line}\n" for line in lines).encode()
        _replace(stem.with_suffix(".jsonl"), lambda file: file.write(text))
        return len(emb)
    arrow, parquet = _arrow()
    values = arrow.FixedSizeListArray.from_arrays(arrow.array(emb.ravel()), emb.shape[1])
    table = arrow.table({**columns, "embedding": values})
    _replace(stem.with_suffix(".parquet"), lambda file: parquet.write_table(table, file))
    return len(emb)


def _arrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("Parquet needs pyarrow: pip install pyarrow, or --format npy") from error
    return pyarrow, pyarrow.parquet


def _replace(path: Path, write: Callable[[Any], Any]) -> None:
    """Writes a file that is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            write(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ValueError(f"cannot write {path} ({error.strerror}); make room") from error
    partial.replace(path)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    _replace(path, lambda file: file.write(text.encode()))

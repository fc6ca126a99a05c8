"""From the records of a source to what an evaluator feeds a predictor."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from absl import logging

from ccl_jax.data.images import transform_image
from ccl_jax.data.records import BadRecord, Record, Source

if TYPE_CHECKING:
    from ccl_jax.evaluation.embeddings import Predictor

T = TypeVar("T")
R = TypeVar("R")


def in_threads(function: Callable[[T], R], things: Iterable[T], ahead: int) -> Iterator[R]:
    """`function` of each thing, in order, computed in threads before it is asked for.

    Args:
      function: safe to call from several threads; what it raises ends the iteration.
      things: any number of them.
      ahead: results that may wait, which bounds memory.

    Yields:
      The results.
    """
    pool = concurrent.futures.ThreadPoolExecutor(min(32, os.cpu_count() or 1))
    todo = iter(things)
    queue: collections.deque = collections.deque()
    try:
        while True:
            # So that they go on while the caller works on what it has been given.
            some = itertools.islice(todo, ahead - len(queue))
            queue.extend(pool.submit(function, thing) for thing in some)
            if not queue:
                return
            yield queue.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def iterate_images(
    source: Source,
    predictor: Predictor,
    *,
    limit: int | None = None,
    chunk_size: int = 256,
    wanted: Callable[[Record], bool] | None = None,
    skipped: collections.Counter | None = None,
) -> Iterator[tuple[np.ndarray, list[Record]]]:
    """Decodes a source chunk by chunk, a chunk ahead, so that memory holds two of images.

    A record that raises `BadRecord` is named in the log, counted and left out.

    Args:
      source: the records.
      predictor: says the size and the transform its images need.
      limit: look at no more than the first `limit` records; None for all.
      chunk_size: images per chunk; the last chunk may be smaller.
      wanted: records for which it is false are passed over without decoding.
      skipped: a counter (reason -> records) to which the bad records are added.

    Yields:
      (images, records): uint8 (n, h, w, 3) and their n records, n >= 1.

    Raises:
      ValueError: a limit below 1, or a source without a single readable record.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, or None for every record; got {limit}")
    skipped = collections.Counter() if skipped is None else skipped
    total = len(source) if limit is None else min(limit, len(source))
    images: list[np.ndarray] = []
    records: list[Record] = []
    read = passed_over = 0

    def load(index: int) -> tuple[np.ndarray, Record] | BadRecord | None:
        try:
            record = source[index]
            if wanted is not None and not wanted(record):
                return None
            return transform_image(record.image, record.key, **predictor.image_options), record
        except BadRecord as error:
            return error

    for found in in_threads(load, range(total), chunk_size):
        if found is None:
            passed_over += 1
            continue
        if isinstance(found, BadRecord):
            logging.warning("Skipped a record of %s: %s", source.name, found)
            skipped[found.reason] += 1
            continue
        images.append(found[0])
        records.append(found[1])
        read += 1
        if len(images) == chunk_size:
            yield np.stack(images), records
            images, records = [], []
    if images:
        yield np.stack(images), records
    if skipped:
        logging.warning(
            "%s: skipped %d of %d records: %s",
            source.name, skipped.total(), total, dict(skipped.most_common()),
        )  # fmt: skip
    if not read:
        raise ValueError(
            f"source {source.name!r} gave no image to evaluate: of {total} records, "
            f"{skipped.total()} could not be read {dict(skipped)} and {passed_over} lack what "
            "this evaluator needs; check the source's path and split, and the evaluator chosen"
        )


def read_images(
    source: Source, predictor: Predictor, limit: int | None = None
) -> tuple[np.ndarray, list[Record], int]:
    """Decodes a whole (small) source at once; `iterate_images` is for the others.

    Args:
      source: the records.
      predictor: says the size and the transform its images need.
      limit: look at no more than the first `limit` records; None for all.

    Returns:
      (images, records, skipped): uint8 (n, h, w, 3), the n records, and the number of
      records left out because they could not be read.

    Raises:
      ValueError: a limit below 1, or a source without a single readable record.
    """
    skipped: collections.Counter = collections.Counter()
    chunks = list(iterate_images(source, predictor, limit=limit, skipped=skipped))
    images = np.concatenate([images for images, _ in chunks])
    return images, [record for _, records in chunks for record in records], skipped.total()


def embed_texts(predictor: Predictor, texts: Sequence[str]) -> np.ndarray:
    """Embeds texts, each distinct one once: (n,) strings -> f32 (n, d), L2-normalised.

    Raises:
      ValueError: no texts.
    """
    if not texts:
        raise ValueError("there is no text to embed; check that the source has captions")
    rows: dict[str, int] = {}
    for text in texts:
        rows.setdefault(text, len(rows))
    embedded = np.asarray(predictor.texts(list(rows)), np.float32)
    return embedded[[rows[text] for text in texts]]


def required_extra(record: Record, name: str, source: Source, hint: str):
    """`record.extra[name]`, or a ValueError that names the record and what to do (`hint`)."""
    if name not in record.extra:
        raise ValueError(
            f"record {record.key!r} of source {source.name!r} has no extra[{name!r}]; {hint}"
        )
    return record.extra[name]


def class_names_of(source: Source) -> tuple[str, ...]:
    """The `class_names` of a source.

    Raises:
      ValueError: the source has none.
    """
    names = tuple(getattr(source, "class_names", None) or ())
    if not names:
        raise ValueError(
            f"source {source.name!r} has no class_names; this evaluator needs a labelled source"
        )
    return names

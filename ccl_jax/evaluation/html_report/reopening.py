"""Finds the images of failures again, where only their names were written down."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ccl_jax.evaluation.benchmarks import BENCHMARKS, Benchmark, MissingData
from ccl_jax.evaluation.benchmarks.class_sets import ClassSet
from ccl_jax.evaluation.benchmarks.karpathy import Split
from ccl_jax.evaluation.benchmarks.matching import Item
from ccl_jax.evaluation.html_report.failures import Failure
from ccl_jax.evaluation.results import Image


def with_images(
    failures: Sequence[Failure],
    data_dir: Path,
    benchmarks: Mapping[str, Benchmark] = BENCHMARKS,
) -> list[Failure]:
    """Failures with their images, as far as their benchmarks are in the folder.

    Args:
      failures: as `failures.read_failures` gives them.
      data_dir: folder with the benchmarks.
      benchmarks: the table.
    """
    found: dict[tuple[str, str], tuple[Image, ...]] = {}
    for name in dict.fromkeys(failure.benchmark for failure in failures):
        wanted = {failure.key for failure in failures if failure.benchmark == name}
        if name not in benchmarks:
            continue
        try:
            data = benchmarks[name].open(data_dir)
        except (MissingData, ValueError):
            continue  # the report says that there are no images
        found |= {(name, key): images for key, images in _images(data) if key in wanted}
    return [
        dataclasses.replace(
            failure, images=images, image_names=tuple(image.name for image in images)
        )
        if (images := found.get((failure.benchmark, failure.key)))
        else failure
        for failure in failures
    ]


def _images(data: Any) -> Iterable[tuple[str, tuple[Image, ...]]]:
    """(key of an item, its images) of what `Benchmark.open` gave."""
    if isinstance(data, Split):
        yield from ((one.name, (one.image,)) for one in data.images if one.image is not None)
        return
    for one in data if isinstance(data, list) else ():
        if isinstance(one, Item) and all(image is not None for image in one.images):
            yield one.key, one.images
        elif isinstance(one, ClassSet):
            yield from ((f"{one.name}/{image.name}", (image,)) for image, _ in one.test)

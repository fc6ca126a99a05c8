"""What a benchmark leaves: metrics that can be resampled, and every item with its outcome.

A `SuiteResult` holds one `BenchmarkResult` for each benchmark and model. Its metrics are ratios of
sums over clusters (items that share an image), which is all that intervals and paired tests
(`statistics`) need; its items are what a report shows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Image:
    """An image of a benchmark, not read yet.

    Attributes:
      name: as the annotations have it, for people.
      identity: tells it from every other image as it is on disk (path, size, time of change,
        crop); embeddings are cached under it.
      read: gives the encoded bytes; may raise `BadRecord`.
    """

    name: str
    identity: str
    read: Callable[[], bytes] = dataclasses.field(compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A percentage: the (weighted) mean over parts of sum / count.

    One part is a mean over items; several parts are a macro average (over relations, subsets) or
    a mean IoU (over classes: intersection / union). A part without a count is left out.

    Attributes:
      sums: (clusters, parts) float64, what each cluster adds to the numerator of each part.
      counts: (clusters, parts) float64, what it adds to the denominator.
      items: items behind the number.
      total: items that the benchmark has, those included that could not be evaluated.
      weights: (parts,) of the mean over parts; equal if None.
      chance: percentage of a scorer that draws at random, where there is a simple one.
    """

    sums: np.ndarray
    counts: np.ndarray
    items: int
    total: int
    weights: np.ndarray | None = None
    chance: float | None = None

    @property
    def value(self) -> float:
        """The percentage, in [0, 100]; NaN if no item counts."""
        return float(combine(self.sums.sum(axis=0), self.counts.sum(axis=0), self.weights))

    @property
    def coverage(self) -> float:
        """Share of the benchmark's items that the number is about, in [0, 1]."""
        return self.items / self.total if self.total else 0.0


def combine(sums: np.ndarray, counts: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """(..., parts) sums and counts to percentages (...); NaN where nothing counts."""
    present = counts > 0
    share = np.where(present, sums / np.where(present, counts, 1), 0)
    weight = present * (1.0 if weights is None else weights)
    total = weight.sum(axis=-1)
    mean = (share * weight).sum(axis=-1) / np.where(total > 0, total, 1)
    return np.where(total > 0, 100 * mean, np.nan)


def ratio_metric(
    values: np.ndarray,
    clusters: np.ndarray,
    *,
    total: int,
    parts: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    chance: float | None = None,
) -> Metric:
    """The mean of per-item values, over all items or over the means of their parts.

    Args:
      values: (n,) in [0, 1], such as right or wrong; NaN for an item that does not count.
      clusters: int (n,), from 0; items of one cluster are resampled together.
      total: items that the benchmark has for this metric.
      parts: a name for each item; the metric is then the mean over parts. None: one part.
      weights: of the parts by name; equal if None.
      chance: as in `Metric`.
    """
    values = np.asarray(values, np.float64)
    clusters = np.asarray(clusters, np.int64)
    names, part = [""], np.zeros(len(values), np.int64)
    if parts is not None and len(parts):
        names, part = np.unique(np.asarray(parts), return_inverse=True)
    counted = ~np.isnan(values)
    size = (int(clusters.max(initial=-1)) + 1, len(names))
    cells = (clusters * size[1] + part)[counted]
    sums = np.bincount(cells, values[counted], minlength=size[0] * size[1]).reshape(size)
    counts = np.bincount(cells, minlength=size[0] * size[1]).reshape(size)
    given = None if weights is None else np.array([weights[str(name)] for name in names])
    return Metric(sums, counts.astype(np.float64), int(counted.sum()), total, given, chance)


@dataclasses.dataclass(frozen=True)
class Items:
    """The items that one model was evaluated on, row by row.

    Attributes:
      keys: (n,) of the item within the benchmark.
      groups: (n,) subset that it belongs to.
      images: (n,) the images of each item.
      texts: (n,) its texts, the right one first where there is one.
      clusters: int (n,); items that share an image have one number.
      outcomes: name -> (n,) float: 1 right, 0 wrong, NaN where an item does not count.
      scores: (n,) arrays; of caption matching (images, texts) cosines, else what the benchmark
        says.
      margin: (n,) float: right score minus the best wrong one; the lower, the worse the failure.
    """

    keys: tuple[str, ...]
    groups: tuple[str, ...]
    images: tuple[tuple[Image, ...], ...]
    texts: tuple[tuple[str, ...], ...]
    clusters: np.ndarray
    outcomes: Mapping[str, np.ndarray]
    scores: Sequence[np.ndarray]
    margin: np.ndarray


@dataclasses.dataclass(frozen=True)
class BenchmarkResult:
    """One benchmark, one model.

    Attributes:
      benchmark: name in `benchmarks.BENCHMARKS`.
      metrics: name -> metric, the most telling ones first.
      items: of caption matching, retrieval and classification; None where items have no meaning.
      left_out: reason -> names of items that could not be evaluated.
      settings: what a reader needs to repeat the number, such as the split and the prompts.
      headline: the metric that stands for the benchmark.
      arrays: what else a report may draw, such as the ranks behind retrieval curves.
    """

    benchmark: str
    metrics: Mapping[str, Metric]
    items: Items | None
    left_out: Mapping[str, tuple[str, ...]]
    settings: Mapping[str, str]
    headline: str
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SuiteResult:
    """Several benchmarks, one or more models.

    Attributes:
      models: names, in the order given; differences are later minus first.
      results: benchmark -> model -> result.
      skipped: benchmark -> why it was not run (for a model: "benchmark (model)").
      settings: of the whole, such as date and hardware.
    """

    models: tuple[str, ...]
    results: Mapping[str, Mapping[str, BenchmarkResult]]
    skipped: Mapping[str, str]
    settings: Mapping[str, str]

    def rows(self) -> dict[str, dict[str, float]]:
        """{model: {"benchmark/metric": percent}}, as `report.format_table` takes it."""
        return {
            model: {
                f"{benchmark}/{name}": metric.value
                for benchmark, by_model in self.results.items()
                if model in by_model
                for name, metric in by_model[model].metrics.items()
            }
            for model in self.models
        }


def told_once(by_model: Mapping[str, Sequence[T]]) -> list[tuple[T, str]]:
    """What several models have to say, each thing once.

    Args:
      by_model: model -> hashable things.

    Returns:
      (thing, "") of all models, (thing, " (MODEL, ...)") of some.
    """
    found: dict[T, list[str]] = {}
    for model, things in by_model.items():
        for thing in things:
            found.setdefault(thing, []).append(model)
    return [
        (thing, "" if len(whose) == len(by_model) else f" ({', '.join(whose)})")
        for thing, whose in found.items()
    ]

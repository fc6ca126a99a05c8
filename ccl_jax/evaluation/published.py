"""Published benchmarks as an evaluator: on a part of their items, again and again in training."""

from __future__ import annotations

import functools
import math
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import logging

from ccl_jax.evaluation.benchmarks import BENCHMARKS
from ccl_jax.evaluation.models import EvaluatedModel
from ccl_jax.evaluation.pixel_cache import PixelCache
from ccl_jax.evaluation.suite import chosen_benchmarks

if TYPE_CHECKING:
    from ccl_jax.evaluation.embeddings import Predictor

ITEMS = 1000
# Of decoded images, for each model.
_PIXEL_BYTES = 1 << 29
_PIXELS: weakref.WeakKeyDictionary[Predictor, PixelCache] = weakref.WeakKeyDictionary()


def run(
    predictor: Predictor, *, data_dir: str, names: Sequence[str], items: int = ITEMS
) -> dict[str, float]:
    """Metrics of published benchmarks on a part of their items, in percent.

    A part has other numbers than the whole that papers report: candidates of retrieval are fewer,
    and averages over groups rest on a few items each. It is for following a run. What
    `benchmarks.Benchmark.bounded` chooses is the same at each call. Embeddings are kept during a
    call, decoded images for as long as the predictor lives, up to 512 MB.

    Args:
      predictor: the model.
      data_dir: folder with the benchmarks (docs/benchmarks.md).
      names: benchmarks or suites, all of which must be there.
      items: about so many of each benchmark.

    Returns:
      {"metric": percent} of a single benchmark, {"benchmark/metric": percent} of several; without
      metrics that no item of the part counts for.

    Raises:
      ValueError: as `check`, or if no image can be read.
    """
    pixels = _PIXELS.setdefault(predictor, PixelCache(_PIXEL_BYTES))
    # No cache on disk: the next call has other weights.
    model = EvaluatedModel("model", predictor, pixels=pixels)
    chosen = _chosen(data_dir, names, items)
    results = {}
    for name, data in chosen.items():
        found = BENCHMARKS[name].run(model, data)
        headline = found.metrics[found.headline]
        logging.info(
            "%s, %s: %.1f on %d items; left out %s", name, found.headline, headline.value,
            headline.items, {reason: len(names) for reason, names in found.left_out.items()},
        )  # fmt: skip
        prefix = f"{name}/" if len(chosen) > 1 else ""
        results |= {
            f"{prefix}{metric}": values.value
            for metric, values in found.metrics.items()
            if not math.isnan(values.value)
        }
    return results


def check(*, data_dir: str, names: Sequence[str], items: int = ITEMS) -> None:
    """Opens the benchmarks, so that what is missing is known before a run begins.

    Raises:
      ValueError: saying what to do, for a folder or benchmark that is not there or damaged, a name
        that there is not, no name, or `items` below 1.
    """
    _chosen(data_dir, names, items)


def _chosen(data_dir: str, names: Sequence[str], items: int) -> dict[str, Any]:
    """Benchmark -> the items to evaluate."""
    if items < 1:
        raise ValueError(f"a benchmark needs items; got items={items}")
    folder = os.path.expanduser(data_dir)
    if not os.path.isdir(folder):
        raise ValueError(f"there is no folder {folder}; give data_dir that holds benchmarks")
    words = [names] if isinstance(names, str) else list(names)
    return {name: _opened(name, folder, items) for name in chosen_benchmarks(words)}


@functools.lru_cache(maxsize=64)
def _opened(name: str, folder: str, items: int) -> Any:
    """A part of a benchmark, read once for all evaluations of a run."""
    benchmark = BENCHMARKS[name]
    try:
        return benchmark.bounded(benchmark.open(Path(folder)), items)
    except ValueError as error:
        raise ValueError(f"the benchmark {name} cannot be evaluated: {error}") from error

"""Published benchmarks by name; a new one is a module of this package and a line here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from ccl_jax.evaluation.benchmarks import (
    aro,
    cola,
    pairs,
    retrieval,
    segmentation,
    sugarcrepe,
    valse,
    vl_checklist,
    whatsup,
    zero_shot,
)
from ccl_jax.evaluation.benchmarks.files import MissingData as MissingData  # part of the API
from ccl_jax.evaluation.models import EvaluatedModel
from ccl_jax.evaluation.results import BenchmarkResult


class Benchmark(Protocol):
    """What a benchmark is."""

    name: str

    def open(self, data_dir: Path) -> Any:
        """Reads the annotations, once for all models.

        Raises:
          MissingData: if the benchmark's files are not there.
          ValueError: if they are damaged, or of another shape than published.
        """

    def bounded(self, data: Any, items: int) -> Any:
        """About `items` of what `open` gave that have their images, the same at every call.

        Raises:
          ValueError: if the benchmark is too slow for evaluations during training.
        """

    def run(self, model: EvaluatedModel, data: Any) -> BenchmarkResult:
        """Evaluates one model on what `open` or `bounded` gave."""


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        sugarcrepe.BENCHMARK,
        sugarcrepe.PLUS,
        aro.RELATION,
        aro.ATTRIBUTION,
        aro.COCO_ORDER,
        aro.FLICKR30K_ORDER,
        pairs.WINOGROUND,
        pairs.BIVLC,
        pairs.COLORSWAP,
        pairs.MMVP_VLM,
        cola.MULTI,
        cola.SINGLE,
        whatsup.BENCHMARK,
        valse.BENCHMARK,
        vl_checklist.BENCHMARK,
        retrieval.COCO,
        retrieval.FLICKR30K,
        retrieval.FLICKR8K,
        zero_shot.ZERO_SHOT,
        zero_shot.LINEAR_PROBE,
        segmentation.PLAIN,
        segmentation.STRIDE,
    )
}

_RETRIEVAL = tuple(name for name in BENCHMARKS if name.endswith("_retrieval"))
_OTHERS = ("zero_shot", "linear_probe", "segmentation", "segmentation_stride")
SUITES: dict[str, tuple[str, ...]] = {
    # The finer grid costs as much as all others together.
    "standard": tuple(name for name in BENCHMARKS if name != "segmentation_stride"),
    "compositionality": tuple(n for n in BENCHMARKS if n not in (*_RETRIEVAL, *_OTHERS)),
    "retrieval": _RETRIEVAL,
    "classification": ("zero_shot", "linear_probe"),
    "dense": ("segmentation", "segmentation_stride"),
}

"""Runs a suite of benchmarks on one or more models."""

from __future__ import annotations

import difflib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

import ccl_jax
from ccl_jax.evaluation.benchmarks import BENCHMARKS, SUITES, Benchmark, MissingData
from ccl_jax.evaluation.models import EvaluatedModel
from ccl_jax.evaluation.results import BenchmarkResult, SuiteResult


def chosen_benchmarks(words: Sequence[str]) -> list[str]:
    """Names of benchmarks from names of benchmarks and suites, in order, each once.

    Raises:
      ValueError: for a name that is neither.
    """
    names: list[str] = []
    for word in words:
        if word not in SUITES and word not in BENCHMARKS:
            known = [*SUITES, *BENCHMARKS]
            near = difflib.get_close_matches(word, known, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"there is no suite or benchmark {word!r}; did you mean {near!r}? Suites: "
                f"{', '.join(SUITES)}. Benchmarks: {', '.join(BENCHMARKS)}"
            )
        names += SUITES.get(word, (word,))
    if not names:
        raise ValueError(f"no benchmark chosen; name a suite ({', '.join(SUITES)}) or benchmarks")
    return list(dict.fromkeys(names))


def run_suite(
    models: Sequence[EvaluatedModel],
    names: Sequence[str],
    data_dir: str | os.PathLike,
    *,
    benchmarks: Mapping[str, Benchmark] = BENCHMARKS,
    tell: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> SuiteResult:
    """Runs every benchmark whose files are there.

    A benchmark that is missing, or whose files are damaged, is named and skipped; the others run.

    Args:
      models: with names of their own.
      names: in `benchmarks`.
      data_dir: folder with the benchmarks in their published layouts (docs/benchmarks.md).
      benchmarks: the table.
      tell: is given a line of progress after each benchmark and model.

    Raises:
      ValueError: if there is no such folder, two models share a name, or not one benchmark of
        `names` could be run.
    """
    folder = Path(data_dir)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give --data_dir that holds benchmarks")
    labels = [model.name for model in models]
    if not models or len(set(labels)) < len(labels):
        raise ValueError(f"models need names of their own; got {', '.join(labels) or 'none'}")
    results: dict[str, dict[str, BenchmarkResult]] = {}
    skipped: dict[str, str] = {}
    start = time.time()
    for name in names:
        benchmark = benchmarks[name]
        try:
            data = benchmark.open(folder)
        except (MissingData, ValueError) as error:
            skipped[name] = _line(error)
            tell(f"{name}: skipped, {skipped[name]}")
            continue
        for model in models:
            begun = time.time()
            try:
                found = benchmark.run(model, data)
            except ValueError as error:
                skipped[f"{name} ({model.name})"] = _line(error)
                tell(f"{name}, {model.name}: skipped, {_line(error)}")
                continue
            results.setdefault(name, {})[model.name] = found
            tell(_progress(name, model, found, time.time() - begun))
    if not results:
        raise ValueError(
            f"no benchmark could be run in {folder}: "
            + "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        )
    return SuiteResult(tuple(labels), results, skipped, _settings(folder, time.time() - start))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _progress(name: str, model: EvaluatedModel, found: BenchmarkResult, seconds: float) -> str:
    metric = found.metrics[found.headline]
    covered = "" if metric.items == metric.total else f" ({metric.items:,} of {metric.total:,})"
    value = f"{found.headline} {metric.value:.1f}"
    return f"{name}, {model.name}: {value}{covered}, {seconds:.0f} s"


def _settings(folder: Path, seconds: float) -> dict[str, str]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "data": str(folder),
        "hardware": f"{jax.device_count()} x {jax.devices()[0].device_kind}, "
        f"{os.cpu_count()} CPU cores",
        "jax": jax.__version__,
        "ccl_jax": ccl_jax.__version__,
        "seconds": f"{seconds:.0f}",
    }

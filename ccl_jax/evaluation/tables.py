"""A suite's results as tables: intervals and paired differences, in JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ccl_jax.evaluation import statistics
from ccl_jax.evaluation.report import markdown_row
from ccl_jax.evaluation.results import BenchmarkResult, Items, SuiteResult, told_once


@dataclasses.dataclass(frozen=True)
class Cell:
    """One metric of one model.

    Attributes:
      interval: the percentage with its bootstrap interval.
      items: items behind it.
      total: items that the benchmark has.
      comparison: against the first model; None for the first, or where the two were not
        evaluated on the same items.
      p_holm: the p-value adjusted for the number of metrics compared (Holm); NaN without one.
    """

    interval: statistics.Interval
    items: int
    total: int
    comparison: statistics.Comparison | None = None
    p_holm: float = math.nan


@dataclasses.dataclass(frozen=True)
class Row:
    """One metric.

    Attributes:
      benchmark: its benchmark.
      metric: its name.
      headline: whether it stands for the benchmark.
      chance: percentage of a random scorer, None if there is no simple one.
      cells: model -> numbers.
    """

    benchmark: str
    metric: str
    headline: bool
    chance: float | None
    cells: dict[str, Cell]


def rows_of(
    result: SuiteResult, *, resamples: int = 2000, permutations: int = 5000, seed: int = 0
) -> list[Row]:
    """Every metric with intervals and with differences from the first model.

    Args:
      result: of `run_suite`.
      resamples: bootstrap samples behind an interval.
      permutations: random swaps behind a p-value.
      seed: of both.
    """
    options = {"permutations": permutations, "seed": seed}
    rows = []
    for benchmark, by_model in result.results.items():
        # All at once, so that the draws are made once and are paired.
        metrics = [(m, name) for m, found in by_model.items() for name in found.metrics]
        values = [by_model[model].metrics[name] for model, name in metrics]
        made = statistics.bootstrap(values, resamples=resamples, seed=seed)
        draws = dict(zip(metrics, made, strict=True))
        headline = _headline(by_model)
        for name in dict.fromkeys(name for _, name in metrics):
            cells = {
                model: _cell(by_model, result.models[0], model, name, draws, options)
                for model, found in by_model.items()
                if name in found.metrics
            }
            chance = next(f.metrics[name].chance for f in by_model.values() if name in f.metrics)
            rows.append(Row(benchmark, name, name == headline, chance, cells))
    return _adjusted(rows)


def _headline(by_model: Mapping[str, BenchmarkResult]) -> str:
    """The metric that stands for a benchmark: a headline that all models have, if there is one."""
    headlines = [found.headline for found in by_model.values()]
    shared = (h for h in headlines if all(h in found.metrics for found in by_model.values()))
    return next(shared, headlines[0])


def _cell(by_model, first: str, model: str, name: str, draws, options) -> Cell:
    metric = by_model[model].metrics[name]
    interval = statistics.interval(metric.value, draws[model, name])
    comparison = None
    if model != first and (first, name) in draws and _same_items(by_model[first], by_model[model]):
        base = by_model[first].metrics[name]
        if base.sums.shape == metric.sums.shape:
            pair = draws[first, name], draws[model, name]
            comparison = statistics.compare(base, metric, draws=pair, **options)
    return Cell(interval, metric.items, metric.total, comparison)


def _same_items(first: BenchmarkResult, second: BenchmarkResult) -> bool:
    if first.items is None or second.items is None:
        return first.left_out == second.left_out
    return first.items.keys == second.items.keys


def _adjusted(rows: list[Row]) -> list[Row]:
    """The rows with Holm's p-values, over all metrics of a model."""
    models = dict.fromkeys(model for row in rows for model in row.cells)
    cells = [dict(row.cells) for row in rows]
    for model in models:
        there = [i for i, row in enumerate(cells) if model in row and row[model].comparison]
        adjusted = statistics.holm([cells[i][model].comparison.p_value for i in there])
        for i, p in zip(there, adjusted, strict=True):
            cells[i][model] = dataclasses.replace(cells[i][model], p_holm=float(p))
    return [
        dataclasses.replace(row, cells=changed) for row, changed in zip(rows, cells, strict=True)
    ]


def write_tables(result: SuiteResult, rows: list[Row], folder: str | os.PathLike) -> None:
    """Writes `results.json`, `results.csv`, `results.md` and `items/BENCHMARK.csv`.

    Args:
      result: of `run_suite`.
      rows: of `rows_of`.
      folder: made if missing.

    Raises:
      ValueError: if the folder cannot be written to.
    """
    path = Path(folder)
    try:
        (path / "items").mkdir(parents=True, exist_ok=True)
        text = json.dumps(to_json(result, rows), indent=2, ensure_ascii=False)
        (path / "results.json").write_text(text + "\n", encoding="utf-8")
        (path / "results.md").write_text(to_markdown(result, rows), encoding="utf-8")
        _write_csv(path / "results.csv", _csv_rows(rows))
        for benchmark, by_model in result.results.items():
            if all(found.items is not None for found in by_model.values()):
                _write_csv(path / "items" / f"{benchmark}.csv", _item_rows(by_model))
    except OSError as error:
        raise ValueError(
            f"cannot write results to {folder} ({error}); give another --output"
        ) from (error)


def to_json(result: SuiteResult, rows: list[Row]) -> dict[str, Any]:
    """Everything but the items, as JSON values; NaN becomes null."""
    benchmarks: dict[str, Any] = {}
    for name, by_model in result.results.items():
        benchmarks[name] = {
            "headline": _headline(by_model),
            "settings": {model: dict(found.settings) for model, found in by_model.items()},
            "left_out": {
                model: {reason: list(names) for reason, names in found.left_out.items()}
                for model, found in by_model.items()
            },
            "metrics": {
                row.metric: {
                    "chance": row.chance,
                    "models": {model: _cell_json(cell) for model, cell in row.cells.items()},
                }
                for row in rows
                if row.benchmark == name
            },
        }
    return {
        "settings": dict(result.settings),
        "models": list(result.models),
        "benchmarks": benchmarks,
        "skipped": dict(result.skipped),
    }


def _cell_json(cell: Cell) -> dict[str, Any]:
    values = {
        **dataclasses.asdict(cell.interval),
        "items": cell.items,
        "total": cell.total,
        "coverage": cell.items / cell.total if cell.total else 0.0,
    }
    if cell.comparison is not None:
        values |= dataclasses.asdict(cell.comparison) | {
            "difference_low": cell.comparison.low,
            "difference_high": cell.comparison.high,
            "p_holm": cell.p_holm,
            **dataclasses.asdict(cell.interval),
        }
    return {name: _finite(value) for name, value in values.items()}


def _finite(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value


_CSV_HEADER = (
    "benchmark", "metric", "model", "value", "low", "high", "items", "total", "coverage", "chance",
    "difference", "difference_low", "difference_high", "p_value", "p_holm",
)  # fmt: skip


def _csv_rows(rows: list[Row]) -> Iterable[list[Any]]:
    yield list(_CSV_HEADER)
    for row in rows:
        for model, cell in row.cells.items():
            values = {
                "benchmark": row.benchmark,
                "metric": row.metric,
                "model": model,
                "chance": row.chance,
                **_cell_json(cell),
            }
            yield ["" if values.get(name) is None else values[name] for name in _CSV_HEADER]


def _item_rows(by_model: dict[str, BenchmarkResult]) -> Iterable[list[Any]]:
    """One row an item that every model has: what it is, then each model's outcomes and scores."""
    tables: dict[str, Items] = {model: found.items for model, found in by_model.items()}
    place = {model: {k: i for i, k in enumerate(t.keys)} for model, t in tables.items()}
    first = next(iter(tables.values()))
    texts = max((len(row) for row in first.texts), default=0)
    outcomes = list(first.outcomes)
    yield [
        "key", "group", "images", *(f"text_{i}" for i in range(texts)),
        *(f"{model}: {name}" for model in tables for name in (*outcomes, "margin", "scores")),
    ]  # fmt: skip
    for i, key in enumerate(first.keys):
        if not all(key in places for places in place.values()):
            continue
        line = [key, first.groups[i], " ".join(image.name for image in first.images[i])]
        line += [*first.texts[i], *[""] * (texts - len(first.texts[i]))]
        for model, table in tables.items():
            j = place[model][key]
            line += [f"{float(table.outcomes[name][j]):g}" for name in outcomes]
            line.append(f"{float(table.margin[j]):.6g}")
            line.append(scores_to_text(table.scores[j]))
        yield line


def scores_to_text(scores: np.ndarray) -> str:
    """Scores of an item as text, images by semicolon: (2, 2) is "0.1 0.2; 0.3 0.4"."""
    return "; ".join(" ".join(f"{x:.5g}" for x in row) for row in np.atleast_2d(scores))


def scores_from_text(text: str) -> np.ndarray:
    """What `scores_to_text` wrote, f32 (images, texts).

    Raises:
      ValueError: for another text.
    """
    return np.array([row.split() for row in text.split(";")], np.float32)


def _write_csv(path: Path, rows: Iterable[list[Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def to_markdown(result: SuiteResult, rows: list[Row]) -> str:
    """The whole as Markdown: a table, what was skipped or left out, and the settings."""
    models = [model for model in result.models if any(model in row.cells for row in rows)]
    header = ["percent [95 % interval]", "items", "chance", *models]
    header += [f"{model} - {models[0]}" for model in models[1:]]
    lines = [
        "# Evaluation",
        "",
        markdown_row(header),
        "|---|---:|---:|" + "---:|" * len(header[3:]),
    ]
    for benchmark in result.results:
        lines.append(markdown_row([f"**{benchmark}**", *[""] * (len(header) - 1)]))
        lines += [_markdown(row, models) for row in rows if row.benchmark == benchmark]
    lines += [
        "",
        "Intervals: cluster bootstrap over images, 2.5 and 97.5 percentiles. Differences: the "
        "same for the difference, and the p-value of a paired randomisation test; * marks p < 0.05 "
        "after Holm's adjustment for the number of metrics. `items`: evaluated / published.",
    ]
    settings = {
        benchmark: {model: found.settings for model, found in by_model.items()}
        for benchmark, by_model in result.results.items()
    }
    if ties := ties_in(settings):
        lines += ["", ties]
    if result.skipped:
        lines += ["", "## Skipped", ""]
        lines += [f"- {name}: {reason}" for name, reason in result.skipped.items()]
    left = _left_out(result)
    if left:
        lines += ["", "## Left out", "", *left]
    lines += ["", "## Settings", "", "| setting | value |", "|---|---|"]
    lines += [markdown_row([name, value]) for name, value in result.settings.items()]
    for benchmark, by_model in result.results.items():
        said = {model: list(found.settings.items()) for model, found in by_model.items()}
        for (name, value), whose in told_once(said):
            lines.append(markdown_row([f"{benchmark}: {name}{whose}", str(value)]))
    return "\n".join(lines) + "\n"


def ties_in(settings: Mapping[str, Mapping[str, Mapping[str, str]]]) -> str:
    """A sentence on the ties behind scores, which may lie below chance by them; "" without any.

    Args:
      settings: benchmark -> model -> name -> value, as in `BenchmarkResult.settings`.
    """
    found = [
        f"{benchmark} {value}{whose}"
        for benchmark, by_model in settings.items()
        for value, whose in told_once(
            {
                model: [values["ties"]] if "ties" in values else []
                for model, values in by_model.items()
            }
        )
        if not value.startswith("0 ")
    ]
    if not found:
        return ""
    return (
        "Ties count as wrong, and chance is that of a scorer without them. Texts that differ only "
        f"beyond a model's length tie: {'; '.join(found)}."
    )


def _markdown(row: Row, models: list[str]) -> str:
    some = next(iter(row.cells.values()))
    share = f"{some.items:,} / {some.total:,}" if some.items != some.total else f"{some.items:,}"
    cells = [row.metric, share, "" if row.chance is None else f"{row.chance:.1f}"]
    for model in models:
        cell = row.cells.get(model)
        cells.append(
            "-" if cell is None else _with_ends(cell.interval, "{:.1f}", cell.interval.value)
        )
    for model in models[1:]:
        cell = row.cells.get(model)
        if cell is None or cell.comparison is None:
            cells.append("-")
            continue
        text = _with_ends(cell.comparison, "{:+.1f}", cell.comparison.difference)
        star = "*" if cell.p_holm < 0.05 else ""
        cells.append(f"{text}{star}, p = {cell.comparison.p_value:.2g}")
    return markdown_row(cells)


def _with_ends(ends, form: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    value, low, high = (form.format(round(x, 1) + 0.0) for x in (value, ends.low, ends.high))
    return f"{value} [{low}, {high}]"


def _left_out(result: SuiteResult) -> list[str]:
    lines = []
    for benchmark, by_model in result.results.items():
        reasons = {model: list(found.left_out.items()) for model, found in by_model.items()}
        for (reason, names), whose in told_once(reasons):
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            lines.append(f"- {benchmark}: {len(names):,} x {reason}: {some}{whose}")
    return lines

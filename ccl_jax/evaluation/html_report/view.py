"""From numbers to the strings and plots that the page's template places."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ccl_jax.evaluation.html_report.failures import MAX_IMAGES, Failure, Pictures, margin_words
from ccl_jax.evaluation.plots import (
    Bar,
    BarGroup,
    Series,
    bar_chart,
    line_chart,
    radar_chart,
)
from ccl_jax.evaluation.results import told_once
from ccl_jax.evaluation.tables import ties_in

Ranks = Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]

_KS = (1, 2, 3, 5, 10, 20, 50, 100)
_RECALL = re.compile(r"(.+)_recall@(\d+)$")
_GROUPS_PER_PLOT = 8
_MAX_ROWS = 2000
_MAX_SPOKES = 12
_NAMES_SHOWN = 5
_TEXT_LENGTH = 400
_TEXTS_SHOWN = 12
_MANY_ROWS = 25


def checked_results(values: Any, source: object) -> dict[str, Any]:
    """Results of `tables.to_json`, or rows {model: {metric: percent}} brought to that form.

    Args:
      values: as read from JSON.
      source: for the error.

    Raises:
      ValueError: anything else.
    """
    if isinstance(values, Mapping) and isinstance(values.get("benchmarks"), Mapping):
        if isinstance(values.get("models"), list) and values["models"]:
            return {"settings": {}, "skipped": {}, **values}
    elif isinstance(values, Mapping) and values and all(map(_is_row, values.values())):
        return results_of_runs(values)
    raise ValueError(f"{source} does not hold results of tools.evaluate; run it with --output")


def _is_row(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(x, (int, float)) for x in value.values())


def results_of_runs(rows: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Metrics of runs' own evaluators in the form of `tables.to_json`, without intervals.

    Args:
      rows: {run: {"evaluator/metric": percent}}.
    """
    benchmarks: dict[str, Any] = {}
    for run, metrics in rows.items():
        for name, value in metrics.items():
            group, _, metric = name.rpartition("/")
            found = benchmarks.setdefault(group or name, {"metrics": {}, "headline": metric})
            if metric == "mean":
                found["headline"] = metric
            cell = found["metrics"].setdefault(metric, {"chance": None, "models": {}})
            cell["models"][run] = {"value": value}
    return {"settings": {}, "models": list(rows), "benchmarks": benchmarks, "skipped": {}}


def context(results: Mapping[str, Any], ranks: Ranks) -> dict[str, Any]:
    """What the template shows of results: table, plots, notes, settings."""
    models = list(results["models"])
    rows = [
        _row(name, metric, values, benchmark["headline"], models)
        for name, benchmark in results["benchmarks"].items()
        for metric, values in benchmark["metrics"].items()
    ]
    compared = [
        model
        for number, model in enumerate(models)
        if number and any(row["differences"][number - 1]["value"] for row in rows)
    ]
    for row in rows:
        row["differences"] = [
            cell
            for model, cell in zip(models[1:], row["differences"], strict=True)
            if model in compared
        ]
    notes = []
    if len(rows) > _MAX_ROWS:
        notes.append(f"{len(rows) - _MAX_ROWS:,} metrics are in results.csv alone.")
    bars, radar = _overview(results, models)
    return {
        "models": models,
        "rows": rows[:_MAX_ROWS],
        "many": len(rows) > _MANY_ROWS,
        "differences": compared,
        "intervals": any(cell["range"] for row in rows for cell in row["cells"]),
        "ties": ties_in(
            {name: one.get("settings", {}) for name, one in results["benchmarks"].items()}
        ),
        "bars": bars,
        "radar": radar,
        "recall": _recall(results, ranks, models),
        "skipped": results.get("skipped", {}),
        "left_out": _left_out(results),
        "settings": results.get("settings", {}),
        "setting_rows": _settings(results),
        "notes": notes,
    }


def _row(benchmark, metric, values, headline, models) -> dict[str, Any]:
    cells = [values["models"].get(model) for model in models]
    differences = [_difference(cell) for cell in cells[1:]]
    some = next((cell for cell in cells if cell), {})
    items, total = some.get("items"), some.get("total")
    chance = values.get("chance")
    return {
        "benchmark": benchmark,
        "metric": metric,
        "text": f"{benchmark} {metric}".lower(),
        "headline": metric == headline,
        "significant": any(cell["verdict"] for cell in differences),
        "cells": [_value(cell) for cell in cells],
        "differences": differences,
        "chance": "" if chance is None else f"{chance:.1f}",
        "chance_sort": "" if chance is None else chance,
        "coverage": "" if not total else f"{_floor_percent(items, total)} %",
        "coverage_sort": "" if not total else items / total,
        "evaluated": "" if not total else f"{items:,} / {total:,}",
        "partial": f"{items:,} of {total:,} items" if total and items < total else "",
    }


def _floor_percent(items: int, total: int) -> int:
    """Not 100 before every item is there."""
    return 100 * items // total


def _value(cell: Mapping[str, Any] | None) -> dict[str, Any]:
    if not cell or cell.get("value") is None:
        return {"value": "–", "range": "", "sort": ""}
    ends = (cell.get("low"), cell.get("high"))
    text = "" if None in ends else "[{:.1f}, {:.1f}]".format(*ends)
    return {"value": f"{cell['value']:.1f}", "range": text, "sort": cell["value"]}


def _difference(cell: Mapping[str, Any] | None) -> dict[str, Any]:
    empty = {"value": "", "range": "", "sort": "", "verdict": "", "p": "", "p_sort": ""}
    if not cell or cell.get("difference") is None:
        return empty
    value, p = cell["difference"], cell.get("p_holm")
    verdict = "" if p is None or p >= 0.05 else "better" if value > 0 else "worse"
    mark = {"better": " ▲", "worse": " ▼", "": ""}[verdict]
    ends = (cell.get("difference_low"), cell.get("difference_high"))
    return {
        "value": f"{round(value, 1) + 0.0:+.1f}{mark}",
        "range": ""
        if None in ends
        else "[{:+.1f}, {:+.1f}]".format(*(round(x, 1) + 0.0 for x in ends)),
        "sort": value,
        "verdict": verdict,
        "p": "" if p is None else f"{p:.2g}" if p >= 0.001 else "< 0.001",
        "p_sort": "" if p is None else p,
    }


def _overview(results: Mapping[str, Any], models: list[str]) -> tuple[list[str], str]:
    """Bars of the headline metrics, and a radar of them where there are three or more."""
    groups, spokes = [], []
    for name, benchmark in results["benchmarks"].items():
        values = benchmark["metrics"].get(benchmark["headline"])
        if values is None:
            continue
        bars = []
        for style, model in enumerate(models):
            cell = values["models"].get(model) or {}
            numbers = [_number(cell.get(key)) for key in ("value", "low", "high")]
            bars.append(Bar(model, *numbers, style=style))
        groups.append(BarGroup(f"{name}: {benchmark['headline']}", bars, values.get("chance")))
        spokes.append(name)
    # Plots beside each other, none longer than a page.
    plots = [
        bar_chart(groups[i : i + _GROUPS_PER_PLOT], title="headline metrics in percent")
        for i in range(0, len(groups), _GROUPS_PER_PLOT)
    ]
    if not 3 <= len(spokes) <= _MAX_SPOKES:
        return plots, ""
    outlines = [
        Series(model, range(len(spokes)), [group.bars[style].value for group in groups], style)
        for style, model in enumerate(models)
    ]
    return plots, radar_chart(spokes, outlines, title="headline metrics in percent")


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _recall(results: Mapping[str, Any], ranks: Ranks, models: list[str]) -> list[str]:
    """A chart of recall over k for each benchmark and direction."""
    plots = []
    for name, benchmark in results["benchmarks"].items():
        curves: dict[str, list[Series]] = {}
        for style, model in enumerate(models):
            found = _rank_curves(ranks.get(name, {}).get(model, {}))
            for direction, points in (found or _metric_curves(benchmark, model)).items():
                series = Series(model, list(points), list(points.values()), style)
                curves.setdefault(direction, []).append(series)
        plots += [
            line_chart(
                series,
                title=f"{name}, {direction.replace('_', ' ')}",
                x_label="candidates (log scale)",
                log_x=True,
                markers=True,
            )
            for direction, series in curves.items()
        ]
    return plots


def _rank_curves(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[int, float]]:
    return {
        name.removesuffix("_rank"): {k: 100 * float(np.mean(rank < k)) for k in _KS}
        for name, rank in arrays.items()
        if name.endswith("_rank") and len(rank)
    }


def _metric_curves(benchmark: Mapping[str, Any], model: str) -> dict[str, dict[int, float]]:
    curves: dict[str, dict[int, float]] = {}
    for metric, values in benchmark["metrics"].items():
        match = _RECALL.match(metric)
        value = (values["models"].get(model) or {}).get("value")
        if match and value is not None:
            curves.setdefault(match[1], {})[int(match[2])] = value
    return {name: points for name, points in curves.items() if len(points) > 1}


def _left_out(results: Mapping[str, Any]) -> list[str]:
    lines = {model: [] for model in results["models"]}
    for benchmark, values in results["benchmarks"].items():
        for model, reasons in values.get("left_out", {}).items():
            for reason, names in reasons.items():
                some = ", ".join(names[:_NAMES_SHOWN])
                more = ", ... (results.json has all)" if len(names) > _NAMES_SHOWN else ""
                lines[model].append(f"{benchmark}: {len(names):,} x {reason}: {some}{more}")
    return [f"{line}{whose}" for line, whose in told_once(lines)]


def _settings(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(name, str(value)) for name, value in results.get("settings", {}).items()]
    for benchmark, values in results["benchmarks"].items():
        settings = {
            model: [(name, str(value)) for name, value in found.items()]
            for model, found in values.get("settings", {}).items()
        }
        rows += [
            (f"{benchmark}: {name}{whose}", value) for (name, value), whose in told_once(settings)
        ]
    return rows


def failure_cards(failures: Sequence[Failure], pictures: Pictures) -> list[dict[str, Any]]:
    """What the template shows of each failure."""
    return [_card(failure, number, pictures) for number, failure in enumerate(failures)]


def _card(failure: Failure, number: int, pictures: Pictures) -> dict[str, Any]:
    texts = [_cut(text) for text in failure.texts[:_TEXTS_SHOWN]]
    columns, scores = _scores(failure)
    return {
        "benchmark": failure.benchmark,
        "key": failure.key,
        "heading": _heading(failure, bool(columns)),
        "text": " ".join([failure.key, *texts]).lower(),
        "wrong": [v.model for v in failure.verdicts if not v.right],
        "right": [v.model for v in failure.verdicts if v.right],
        "pictures": [
            {"name": name, "source": pictures.thumbs.get((number, position), "")}
            for position, name in enumerate(failure.image_names[:MAX_IMAGES])
        ],
        "columns": columns,
        "lines": [
            {"text": text, "scores": [column[row] for column in scores]}
            for row, text in enumerate(texts)
        ],
        "more_texts": len(failure.texts) - len(texts),
        "verdicts": [
            {
                "model": v.model,
                "kind": "better" if v.right else "worse",
                "word": "right" if v.right else "wrong",
                "detail": margin_words(failure, v),
            }
            for v in failure.verdicts
        ],
        "maps": [{"name": name, "source": at} for name, at in pictures.maps.get(number, [])],
    }


def _heading(failure: Failure, scored: bool) -> str:
    if len(failure.image_names) > 1:  # each has a right text
        return "text" if scored else "texts"
    return "text, the right one first" if scored else "texts, the right one first"


def _scores(failure: Failure) -> tuple[list[str], list[list[str]]]:
    """(headings, columns): a score for each text, of each model and image."""
    headings, columns = [], []
    texts = len(failure.texts)
    for verdict in failure.verdicts:
        scores = None if verdict.scores is None else np.atleast_2d(verdict.scores)
        if scores is None or scores.ndim != 2 or scores.shape[1] != texts:
            return [], []
        # A rank is told in words, and is no score of a text.
        if failure.benchmark.endswith("_retrieval"):
            return [], []
        for image, row in enumerate(scores):
            of = f", image {image + 1}" if len(scores) > 1 else ""
            headings.append(f"{verdict.model}{of}")
            columns.append([f"{score:.3f}" for score in row])
    return headings, columns


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_LENGTH else text[: _TEXT_LENGTH - 1] + "…"

"""`report.html`: one file that needs no network, no server and no other file.

Table with intervals and differences, plots, retrieval and training curves, and the hardest failures
with their images and heat maps. All text goes through the template's escaping, and the page's own
policy allows no script and no address but those it was written with.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from ccl_jax.evaluation import tables
from ccl_jax.evaluation.html_report import failures as failing
from ccl_jax.evaluation.html_report import reopening, training, view
from ccl_jax.evaluation.html_report.failures import Failure, Pictures
from ccl_jax.evaluation.models import EvaluatedModel
from ccl_jax.evaluation.plots import series_class
from ccl_jax.evaluation.results import SuiteResult

MAX_BYTES = 8_000_000
_PER_BENCHMARK = 8
_FAILURES = 160
_MAPPED = 24
_TRAINING_CHARTS = 18
# Anchor in the page, what it needs to be there, and label.
_SECTIONS = (
    ("results", "rows", "Results"),
    ("overview", "bars", "Overview"),
    ("retrieval", "recall", "Retrieval"),
    ("training", "training", "Training"),
    ("failures", "failures", "Failures"),
    ("notes", "title", "Settings"),
)
# Of a report whose tables and plots fill it, so that some pictures are there.
_LEAST_PICTURES = 500_000


def write_suite_report(
    path: str | os.PathLike,
    result: SuiteResult,
    rows: Sequence[tables.Row],
    *,
    models: Sequence[EvaluatedModel] = (),
    workdirs: Sequence[str | os.PathLike] = (),
    title: str = "Evaluation",
    max_bytes: int = MAX_BYTES,
) -> None:
    """Writes the report of an evaluation that has just been run.

    Args:
      path: the HTML file; its folder is created.
      result: of `suite.run_suite`.
      rows: of `tables.rows_of`.
      models: those evaluated, for heat maps of failures; none for no heat maps.
      workdirs: of runs whose training curves are shown; what has none is passed over, so that
        the names of any models will do.
      title: the heading.
      max_bytes: about the largest file; pictures beyond it are left out, and counted.

    Raises:
      ValueError: a file that cannot be written, or damaged metrics of a run.
    """
    found = failing.hardest(result, _PER_BENCHMARK)
    values = tables.to_json(result, list(rows))
    ranks = {
        benchmark: {model: one.arrays for model, one in by_model.items() if one.arrays}
        for benchmark, by_model in result.results.items()
    }
    write_report(
        path,
        values,
        failures=found,
        models=models,
        ranks=ranks,
        workdirs=[workdir for workdir in workdirs if training.has_curves(workdir)],
        title=title,
        max_bytes=max_bytes,
    )


def write_report_from_files(
    path: str | os.PathLike,
    results: str | os.PathLike | None,
    *,
    workdirs: Sequence[str | os.PathLike] = (),
    data_dir: str | os.PathLike | None = None,
    title: str = "Evaluation",
    max_bytes: int = MAX_BYTES,
) -> None:
    """Writes the report of what lies on disk.

    Args:
      path: the HTML file; its folder is created.
      results: folder or `results.json` that `tools.evaluate` wrote; failures are read from its
        `items`. None for what the runs' own evaluators found.
      workdirs: of runs whose training curves are shown.
      data_dir: folder with the benchmarks, for the images of failures; None for no images.
      title: the heading.
      max_bytes: as in `write_suite_report`.

    Raises:
      ValueError: nothing to report, or files of another form.
    """
    found: list[Failure] = []
    if results is None:
        runs = training.find_runs(workdirs)
        if not runs:
            raise ValueError("there is nothing to report; give --results, --workdir or both")
        values = view.results_of_runs({name: _run_metrics(at) for name, at in runs.items()})
    else:
        file = Path(results)
        file = file / "results.json" if file.is_dir() else file
        values = view.checked_results(_read_json(file), file)
        headlines = {name: one["headline"] for name, one in values["benchmarks"].items()}
        found = failing.read_failures(file.parent, headlines, _PER_BENCHMARK)
        if data_dir is not None:
            found = reopening.with_images(found, Path(data_dir))
    write_report(path, values, failures=found, workdirs=workdirs, title=title, max_bytes=max_bytes)


def write_report(
    path: str | os.PathLike,
    results: Mapping[str, Any],
    *,
    failures: Sequence[Failure] = (),
    models: Sequence[EvaluatedModel] = (),
    ranks: view.Ranks | None = None,
    workdirs: Sequence[str | os.PathLike] = (),
    title: str = "Evaluation",
    max_bytes: int = MAX_BYTES,
) -> None:
    """Writes a report.

    Args:
      path: the HTML file; its folder is created.
      results: as `tables.to_json` gives them.
      failures: items to show, the hardest of each benchmark first.
      models: for heat maps of failures.
      ranks: benchmark -> model -> {"DIRECTION_rank": int (queries,)}, for retrieval curves;
        without them the curves have the points that the metrics give.
      workdirs: of runs whose training curves are shown.
      title: the heading.
      max_bytes: about the largest file.

    Raises:
      ValueError: a workdir without metrics, or a file that cannot be written.
    """
    runs = {name: training.read_curves(at) for name, at in training.find_runs(workdirs).items()}
    curves, curves_omitted = training.charts(runs, limit=_TRAINING_CHARTS)
    kept = [failures[n] for n in sorted(failing.spread(failures, _FAILURES))]
    context = view.context(results, ranks or {}) | {
        "title": title,
        "training": curves,
        "runs": list(runs),
        "failures": view.failure_cards(kept, Pictures()),
        "failed_benchmarks": list(dict.fromkeys(one.benchmark for one in kept)),
    }
    context["sections"] = [(name, label) for name, key, label in _SECTIONS if context[key]]
    context["notes"] += _curve_notes(curves_omitted)
    if len(kept) < len(failures):
        context["notes"].append(f"{len(failures) - len(kept):,} further failures are not shown.")
    room = max(max_bytes - len(_page(context).encode()), _LEAST_PICTURES)
    pictures = failing.draw(kept, models, max_bytes=room, max_mapped=_MAPPED)
    context["failures"] = view.failure_cards(kept, pictures)
    context["notes"] += _picture_notes(kept, pictures, bool(models), max_bytes)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(_page(context), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error}); give another file") from error


def _curve_notes(omitted: Sequence[str]) -> list[str]:
    if not omitted:
        return []
    names = ", ".join(omitted[:8]) + (", …" if len(omitted) > 8 else "")
    return [f"{len(omitted):,} training curves are not drawn (metrics.jsonl has them): {names}"]


def _picture_notes(kept, pictures: Pictures, has_models: bool, max_bytes: int) -> list[str]:
    notes = []
    if kept and not any(one.images for one in kept):
        notes.append("The images of failures are not at hand (tools.report --data_dir).")
    if pictures.omitted:
        size = f"{max_bytes / 1e6:.0f} MB"
        notes.append(f"{pictures.omitted:,} images are left out, so that the file is under {size}.")
    if pictures.unreadable:
        notes.append(f"{pictures.unreadable:,} images of failures could not be decoded.")
    if has_models and pictures.unmapped:
        notes.append(
            f"Heat maps are drawn for {len(pictures.maps):,} failures; "
            f"{pictures.unmapped:,} with images have none."
        )
    return notes


def _page(context: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ccl_jax.evaluation.html_report", ""),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    folder = Path(__file__).parent
    css = (folder / "page.css").read_text(encoding="utf-8")
    js = (folder / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        context, css=css, js=js, css_hash=_hash(css), js_hash=_hash(js), style=series_class
    )


def _breakable(name: str) -> Markup:
    """Lets a long name break after the marks that join its words."""
    return Markup(re.sub(r"([_/@])(?=\w)", r"\1<wbr>", str(escape(name))))


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); run tools.evaluate") from error


def _run_metrics(folder: Path) -> dict[str, float]:
    """What a run's own evaluators found; empty before its end."""
    path = folder / "results.json"
    found = _read_json(path).get("metrics", {}) if path.exists() else {}
    return {name: value for name, value in found.items() if isinstance(value, (int, float))}

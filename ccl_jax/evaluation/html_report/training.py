"""Training curves from the `metrics.jsonl` of runs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ccl_jax.evaluation.plots import Series, line_chart

FILE = "metrics.jsonl"
_MAX_POINTS = 200
# What one looks at first; other names follow as they come.
_FIRST = ("loss", "validation", "retrieval", "compositionality", "zero_shot", "segmentation")
_NEXT = ("learning_rate", "gradient_norm", "scale", "bias", "images_per_second")

Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]


def has_curves(workdir: str | os.PathLike) -> bool:
    """Whether a folder is a workdir with training metrics, of one run or several."""
    path = Path(workdir)
    return (path / FILE).is_file() or any(path.glob(f"*/{FILE}"))


def find_runs(workdirs: Sequence[str | os.PathLike]) -> dict[str, Path]:
    """Folders of single runs by name: workdirs, or what lies in a workdir of several runs.

    Raises:
      ValueError: a workdir without training metrics.
    """
    found: dict[str, Path] = {}
    for workdir in map(Path, workdirs):
        inside = [workdir] if (workdir / FILE).is_file() else []
        inside = inside or sorted(path.parent for path in workdir.glob(f"*/{FILE}"))
        if not inside:
            raise ValueError(f"there is no {FILE} in {workdir}; give the workdir of a run")
        for folder in inside:
            parts = folder.absolute().parts
            count = 1
            while "/".join(parts[-count:]) in found and count < len(parts):
                count += 1
            found["/".join(parts[-count:])] = folder
    return found


def read_curves(folder: Path) -> Curves:
    """{metric: (steps, values)} of one run, each thinned to at most 200 points.

    Raises:
      ValueError: a file of another form.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    path = folder / FILE
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):  # of a run that is writing it, or was cut off
                break
            try:
                values = json.loads(line)
                step = float(values.pop("step"))
                for name, value in values.items():
                    points.setdefault(name, []).append((step, float(value)))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(f"line {number} of {path} is not a step's metrics") from error
    curves = {}
    for name, pairs in points.items():
        chosen = np.unique(np.linspace(0, len(pairs) - 1, _MAX_POINTS).round().astype(int))
        steps, values = np.array(pairs)[chosen].T
        curves[name] = (steps, values)
    return curves


def charts(runs: Mapping[str, Curves], *, limit: int) -> tuple[list[str], list[str]]:
    """A chart for each metric, all runs in it.

    Args:
      runs: curves by name of the run.
      limit: charts at most; losses and evaluations come first.

    Returns:
      (SVG texts, names of metrics left out).
    """
    names = list(dict.fromkeys(name for curves in runs.values() for name in curves))
    drawable = [
        name
        for name in names
        if any(
            len(curves[name][0]) > 1 and np.isfinite(curves[name][1]).any()
            for curves in runs.values()
            if name in curves
        )
    ]
    ordered = sorted(drawable, key=lambda name: (_rank(name), names.index(name)))
    drawn = []
    for name in ordered[:limit]:
        series = [
            Series(run, *(values.tolist() for values in curves[name]), style=number)
            for number, (run, curves) in enumerate(runs.items())
            if name in curves
        ]
        steps = max(len(one.x) for one in series)
        drawn.append(line_chart(series, title=name, x_label="step", markers=steps <= 20))
    return drawn, ordered[limit:]


def _rank(name: str) -> float:
    head = name.split("/", 1)[0].split("_unseen", 1)[0]
    if head in _FIRST:
        return _FIRST.index(head)
    if name in _NEXT:
        return len(_FIRST) + _NEXT.index(name)
    return math.inf

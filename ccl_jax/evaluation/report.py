"""A report people read: results, settings and figures in one Markdown file."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path


def _metric_groups(rows: Mapping[str, Mapping[str, float]]) -> dict[str, list[str]]:
    """{group: metric names}, in order of first appearance over the models."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for metrics in rows.values() for name in metrics):
        group = name.split("/", 1)[0] if "/" in name else ""
        groups.setdefault(group, []).append(name)
    if not groups:
        raise ValueError("there are no results to report; rows must hold a metric of some model")
    return groups


def _header(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    models = list(rows)
    return ["percent", *models, *([f"{models[1]} - {models[0]}"] if len(models) == 2 else [])]


def _cells(rows: Mapping[str, Mapping[str, float]], name: str) -> list[str]:
    """The values of one metric over the models, then the difference if there are two."""
    values = [metrics.get(name) for metrics in rows.values()]
    cells = ["-" if value is None else f"{value:.1f}" for value in values]
    if len(values) == 2:
        # +0.0 turns the -0.0 of a tiny loss into a plain zero.
        cells.append("-" if None in values else f"{round(values[1] - values[0], 1) + 0.0:+.1f}")
    return cells


def format_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A plain-text results table for a terminal.

    Args:
      rows: {model: {metric: percent}}; metrics named `group/metric` are listed by group.

    Returns:
      Lines without a trailing newline: metrics down, models across, one decimal, and the
      second model minus the first where there are exactly two.

    Raises:
      ValueError: no metric at all.
    """
    header = _header(rows)
    lines: list[list[str]] = [header]
    for group, names in _metric_groups(rows).items():
        if group:
            lines.append([group])
        for name in names:
            label = "  " + name.split("/", 1)[1] if group else name
            lines.append([label, *_cells(rows, name)])
    first = max(len(line[0]) for line in lines)
    widths = [max(len(line[i]) for line in lines if len(line) > i) for i in range(1, len(header))]
    text = [
        "  ".join(
            [line[0].ljust(first), *(c.rjust(w) for c, w in zip(line[1:], widths, strict=False))]
        ).rstrip()
        for line in lines
    ]
    text.insert(1, "-" * len(text[0]))
    return "\n".join(text)


def markdown_row(cells: Sequence[str]) -> str:
    """A row of a Markdown table; bars and line ends in the cells do not break it."""
    safe = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return "| " + " | ".join(safe) + " |"


def markdown_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """The results as a Markdown table: arguments, content and errors of `format_table`."""
    header = _header(rows)
    lines = [markdown_row(header), "|---|" + "---:|" * (len(header) - 1)]
    for group, names in _metric_groups(rows).items():
        if group:
            lines.append(markdown_row([f"**{group}**", *[""] * (len(header) - 1)]))
        for name in names:
            label = name.split("/", 1)[1] if group else name
            lines.append(markdown_row([label, *_cells(rows, name)]))
    return "\n".join(lines)


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    rows: Mapping[str, Mapping[str, float]],
    settings: Mapping[str, str],
    figures: Sequence[str | os.PathLike[str]] = (),
    notes: Sequence[str] = (),
) -> None:
    """Writes a Markdown report.

    Args:
      path: the file, e.g. `report.md`; its folder is created.
      title: the heading.
      rows: {model: {metric: percent}}; metrics named `group/metric` are listed by group,
        models are columns, with a difference column where there are exactly two.
      settings: what a reader needs to judge or repeat the numbers, name to value.
      figures: image files, embedded through links relative to the report.
      notes: remarks, one bullet each.

    Raises:
      ValueError: no metric at all.
    """
    path = Path(path)
    parts = [f"# {title}", "## Results", markdown_table(rows)]
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    if settings:
        table = ["| setting | value |", "|---|---|"]
        table += [markdown_row([name, str(value)]) for name, value in settings.items()]
        parts += ["## Settings", "\n".join(table)]
    if figures:
        parts.append("## Figures")
        for figure in map(Path, figures):
            link = Path(os.path.relpath(figure, path.parent)).as_posix()
            # Angle brackets keep a file name with spaces one link.
            parts.append(f"![{figure.stem}](<{link}>)")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")

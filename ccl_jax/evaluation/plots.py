"""Plots as SVG text: small, sharp at any size, drawn in the colours of the page around them.

Marks of series i have the class `s{i}`, text and axes `axis`; the page's style sheet colours both
(`html_report/page.css`). Every plot is narrow, so that its letters can be read on a phone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from html import escape

from matplotlib.ticker import MaxNLocator

WIDTH = 360
# Width of a wide letter of a label.
_LETTER = 6.5
COLOURS = 8
"""Series classes that a style sheet has to know; further series begin anew."""


@dataclasses.dataclass(frozen=True)
class Series:
    """A curve.

    Attributes:
      name: for the pointer and for readers of the page's text.
      x: positions; those that are not finite are left out, with their values.
      y: values.
      style: number of its colour.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int = 0


@dataclasses.dataclass(frozen=True)
class Bar:
    """A value with its interval, in percent; NaN ends for no interval.

    Attributes:
      name: for the pointer.
      value: length of the bar, in [0, 100].
      low: lower end of the whisker.
      high: upper end.
      style: number of its colour.
    """

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    style: int = 0


@dataclasses.dataclass(frozen=True)
class BarGroup:
    """Bars under one label.

    Attributes:
      label: of the group.
      bars: one for each model.
      chance: percentage of a random scorer, drawn across the bars; None for none.
    """

    label: str
    bars: Sequence[Bar]
    chance: float | None = None


def series_class(index: int) -> str:
    """The class of series `index`."""
    return f"s{index % COLOURS}"


def bar_chart(groups: Sequence[BarGroup], *, title: str) -> str:
    """Horizontal bars with whiskers, one block of bars for each group, on a scale of 0 to 100.

    Args:
      groups: from top to bottom.
      title: what a screen reader says.

    Raises:
      ValueError: no group.
    """
    if not groups:
        raise ValueError("a bar chart needs at least one group")
    left, right, thick = 2.0, WIDTH - 44.0, 11

    def at(percent: float) -> float:
        return left + (right - left) * min(max(percent, 0.0), 100.0) / 100

    parts, y = [], 4.0
    for group in groups:
        top = y + 15
        parts.append(_text(left, y + 11, _short(group.label, 52)))
        y = top
        for bar in group.bars:
            if math.isfinite(bar.value):
                parts.append(_bar(bar, at, y, thick, right))
            y += thick + 3
        if group.chance is not None:
            x = at(group.chance)
            parts.append(
                f'<line class="chance" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 2:.1f}" '
                f'y2="{y:.1f}"><title>chance {group.chance:.1f}</title></line>'
            )
        y += 8
    grid = [
        f'<line class="grid" x1="{at(p):.1f}" x2="{at(p):.1f}" y1="4" y2="{y:.1f}"/>'
        + _text(at(p), y + 12, str(p), "middle" if p else "start")
        for p in (0, 25, 50, 75, 100)
    ]
    return _svg(title, WIDTH, y + 18, [*grid, *parts])


def _bar(bar: Bar, at, y: float, thick: int, right: float) -> str:
    name = f"{bar.name}: {bar.value:.1f}"
    parts = [
        f'<rect class="{series_class(bar.style)} fill" x="{at(0):.1f}" y="{y:.1f}" '
        f'width="{at(bar.value) - at(0):.1f}" height="{thick}"/>'
    ]
    if math.isfinite(bar.low) and math.isfinite(bar.high):
        name += f" [{bar.low:.1f}, {bar.high:.1f}]"
        middle = y + thick / 2
        parts.append(
            f'<path class="whisker" d="M{at(bar.low):.1f} {middle:.1f}H{at(bar.high):.1f}'
            f"M{at(bar.low):.1f} {y + 2:.1f}v{thick - 4}M{at(bar.high):.1f} {y + 2:.1f}"
            f'v{thick - 4}"/>'
        )
    parts.append(_text(right + 6, y + thick - 1, f"{bar.value:.1f}"))
    return f"<g><title>{escape(name)}</title>{''.join(parts)}</g>"


def radar_chart(axes: Sequence[str], series: Sequence[Series], *, title: str) -> str:
    """One spoke for each axis, from 0 in the centre to 100, and one outline for each series.

    Args:
      axes: labels of the spokes, at least three.
      series: `y` holds one percentage for each axis, `x` is not read; one that is not finite
        leaves a gap in the outline.
      title: what a screen reader says.

    Raises:
      ValueError: fewer than three axes, or values of another number.
    """
    if len(axes) < 3 or any(len(one.y) != len(axes) for one in series):
        raise ValueError("a radar chart needs three axes or more, and a value for each of them")
    centre, radius = (WIDTH / 2, 150.0), 100.0

    def at(k: int, percent: float) -> tuple[float, float]:
        angle = 2 * math.pi * k / len(axes) - math.pi / 2
        share = radius * min(max(percent, 0.0), 100.0) / 100
        return centre[0] + share * math.cos(angle), centre[1] + share * math.sin(angle)

    parts = []
    for percent in (25, 50, 75, 100):
        ring = " ".join("{:.1f},{:.1f}".format(*at(k, percent)) for k in range(len(axes)))
        parts.append(f'<polygon class="grid" points="{ring}"/>')
        parts.append(_text(centre[0] + 3, centre[1] - radius * percent / 100 + 9, str(percent)))
    for k, label in enumerate(axes):
        x, y = at(k, 100)
        parts.append(
            f'<line class="grid" x1="{centre[0]}" y1="{centre[1]}" x2="{x:.1f}" y2="{y:.1f}"/>'
        )
        side = (x > centre[0] + 1) - (x < centre[0] - 1)
        anchor = ("end", "middle", "start")[side + 1]
        lift = 10 if y > centre[1] + 50 else -4 if y < centre[1] - 50 else 3
        room = centre[0] - abs(x - centre[0]) - 4 if side else WIDTH / 3
        short = _short(label, int(room / _LETTER))
        parts.append(_text(x + 4 * side, y + lift, short, anchor))
    for one in series:
        parts.append(_outline(one, axes, at))
    return _svg(title, WIDTH, 300, parts)


def _outline(one: Series, axes: Sequence[str], at) -> str:
    colour = series_class(one.style)
    points = [at(k, v) if math.isfinite(v) else None for k, v in enumerate(one.y)]
    lines = [
        "M{:.1f} {:.1f}L{:.1f} {:.1f}".format(*a, *b)
        for a, b in zip(points, [*points[1:], points[0]], strict=True)
        if a and b
    ]
    dots = [
        f'<circle class="{colour} fill" cx="{p[0]:.1f}" cy="{p[1]:.1f}" r="3">'
        f"<title>{escape(f'{one.name}, {label}: {value:.1f}')}</title></circle>"
        for p, label, value in zip(points, axes, one.y, strict=True)
        if p
    ]
    return f'<path class="{colour} line" d="{"".join(lines)}"/>{"".join(dots)}'


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    log_x: bool = False,
    markers: bool = False,
) -> str:
    """Curves over one axis.

    Args:
      series: their points in order; what is not finite leaves a gap.
      title: drawn above, and what a screen reader says.
      x_label: below the axis.
      log_x: whether x is drawn on a logarithmic scale; it is then positive.
      markers: whether each point is drawn.

    Raises:
      ValueError: not one finite point.
    """
    points = [
        (x, y)
        for one in series
        for x, y in zip(one.x, one.y, strict=True)
        if math.isfinite(x) and math.isfinite(y)
    ]
    if not points:
        raise ValueError(f"there is no finite value to draw of {title!r}")
    scale = math.log10 if log_x else float
    x_low, x_high = (scale(f(x for x, _ in points)) for f in (min, max))
    y_ticks = _ticks(min(y for _, y in points), max(y for _, y in points), 5)
    left, right, top, bottom = 46.0, WIDTH - 14.0, 24.0, 184.0

    def at(x: float, y: float) -> tuple[float, float]:
        across = (scale(x) - x_low) / ((x_high - x_low) or 1.0)
        up = (y - y_ticks[0]) / ((y_ticks[-1] - y_ticks[0]) or 1.0)
        return left + (right - left) * across, bottom - (bottom - top) * up

    parts = [_text(2, 13, _short(title, 58), weight="bold")]
    for tick in y_ticks:
        y = at(points[0][0], tick)[1]
        parts.append(
            f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            + _text(left - 4, y + 3.5, f"{tick:.4g}", "end")
        )
    wanted = sorted({x for x, _ in points}) if log_x else _ticks(x_low, x_high, 5)
    last = -math.inf
    for tick in wanted:
        x = at(tick, y_ticks[0])[0]
        if left - 1 <= x <= right + 1 and x - last >= 22:  # room for its number
            parts.append(_text(x, bottom + 13, _count(tick), "middle"))
            last = x
    parts.append(_text((left + right) / 2, bottom + 27, x_label, "middle"))
    parts += [_curve(one, at, markers) for one in series]
    return _svg(title, WIDTH, bottom + 32, parts)


def _curve(one: Series, at, markers: bool) -> str:
    path, pen, dots = [], "M", []
    for x, y in zip(one.x, one.y, strict=True):
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        place = at(x, y)
        path.append("{}{:.1f} {:.1f}".format(pen, *place))
        pen = "L"
        if markers:
            dots.append(
                f'<circle class="{series_class(one.style)} fill" cx="{place[0]:.1f}" '
                f'cy="{place[1]:.1f}" r="2.5">'
                f"<title>{escape(f'{one.name}, {_count(x)}: {y:.4g}')}</title></circle>"
            )
    name = f"<title>{escape(one.name)}</title>"
    colour = series_class(one.style)
    return f'<path class="{colour} line" d="{"".join(path)}">{name}</path>{"".join(dots)}'


def _ticks(low: float, high: float, count: int) -> list[float]:
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    return [float(tick) for tick in MaxNLocator(count).tick_values(low, high)]


def _count(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / min(size, 1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{value:.4g}"


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text class="axis" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )


def _svg(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )

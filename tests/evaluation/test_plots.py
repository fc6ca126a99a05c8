"""Plots as SVG: well-formed, marks where the numbers are, names escaped."""

import math
import re
from xml.etree import ElementTree

import pytest

from ccl_jax.evaluation.plots import (
    COLOURS,
    WIDTH,
    Bar,
    BarGroup,
    Series,
    bar_chart,
    line_chart,
    radar_chart,
    series_class,
)

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert(\"1\")</script> & 'x'"


def points(path):
    return [tuple(map(float, p)) for p in re.findall(r"[ML](\S+) ([^ML]+)", path.get("d"))]


def test_bars_are_as_long_as_their_values():
    groups = [
        BarGroup(HOSTILE, [Bar("a", 40.0, 30.0, 50.0), Bar("b", 80.0, style=1)], chance=50.0),
        BarGroup("two", [Bar("a", math.nan), Bar("b", 140.0, style=1)]),
    ]
    root = ElementTree.fromstring(bar_chart(groups, title=HOSTILE))
    assert root.get("aria-label") == HOSTILE
    first, second, above = (float(bar.get("width")) for bar in root.iter(f"{SVG}rect"))
    assert second == pytest.approx(2 * first, abs=0.2)
    assert above == pytest.approx(2.5 * first, abs=0.2)  # cut off at 100
    (whisker,) = (p for p in root.iter(f"{SVG}path") if p.get("class") == "whisker")
    low, high = map(float, re.match(r"M(\S+) \S+?H([\d.]+)", whisker.get("d")).groups())
    left = float(next(root.iter(f"{SVG}rect")).get("x"))
    assert (low - left, high - left) == pytest.approx((0.75 * first, 1.25 * first), abs=0.3)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert HOSTILE in texts and "80.0" in texts and "nan" not in texts
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert "a: 40.0 [30.0, 50.0]" in titles and "b: 80.0" in titles and "chance 50.0" in titles


def test_radar_points_lie_on_their_spokes():
    series = [Series("m", range(4), [100, 50, 0, 25])]
    root = ElementTree.fromstring(radar_chart(["a", "b", "c", "d"], series, title="t"))
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter(f"{SVG}circle")]
    (x, y), radius = dots[2], dots[2][1] - dots[0][1]  # at the centre, and the top
    assert dots[0] == pytest.approx((x, y - radius))
    assert dots[1] == pytest.approx((x + radius / 2, y))
    assert dots[3] == pytest.approx((x - radius / 4, y))
    gap = radar_chart(["a", "b", "c"], [Series("m", range(3), [1, math.nan, 3])], title="t")
    (outline,) = ElementTree.fromstring(gap).iter(f"{SVG}path")
    assert outline.get("d").count("M") == 1
    for count in (3, 4, 7, 12):  # long labels are cut where the picture ends, 6 pixels a letter
        names = ["segmentation_stride"] * count
        chart = ElementTree.fromstring(radar_chart(names, [], title="t"))
        for text in chart.iter(f"{SVG}text"):
            x, width = float(text.get("x")), 6 * len(text.text)
            anchor = text.get("text-anchor", "start")
            left = x - {"start": 0, "middle": width / 2, "end": width}[anchor]
            assert left >= 0 and left + width <= WIDTH
    with pytest.raises(ValueError, match="three axes"):
        radar_chart(["a", "b"], [], title="t")


def test_lines_go_through_their_points():
    series = [Series(HOSTILE, [0, 10, 20], [0.0, 5.0, 10.0]), Series("n", [0, 20], [10, 0], 1)]
    root = ElementTree.fromstring(line_chart(series, title="t", x_label="step", markers=True))
    up, down = (points(path) for path in root.iter(f"{SVG}path"))
    assert up[1] == pytest.approx(((up[0][0] + up[2][0]) / 2, (up[0][1] + up[2][1]) / 2))
    assert up[2][1] < up[0][1] and down[0] == pytest.approx((up[0][0], up[2][1]))
    assert len(list(root.iter(f"{SVG}circle"))) == 5


def test_a_logarithmic_axis_has_equal_steps_for_equal_ratios():
    svg = line_chart([Series("m", [1, 10, 100], [1, 2, 3])], title="t", x_label="k", log_x=True)
    (path,) = ElementTree.fromstring(svg).iter(f"{SVG}path")
    a, b, c = points(path)
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.2)


@pytest.mark.parametrize("y", [[3.0, 3.0, 3.0], [0.0, 0.0, 0.0], [-1e30, 0, 1e30], [1e-9, 2e-9, 0]])
def test_constant_and_extreme_values_stay_in_the_frame(y):
    root = ElementTree.fromstring(line_chart([Series("m", [1, 2, 3], y)], title="t", x_label="x"))
    _, _, width, height = map(float, root.get("viewBox").split())
    (path,) = root.iter(f"{SVG}path")
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points(path))


def test_what_is_not_finite_leaves_a_gap():
    series = [Series("m", [1, 2, 3, 4, 5], [1, 2, math.nan, math.inf, 3])]
    (path,) = ElementTree.fromstring(line_chart(series, title="t", x_label="x")).iter(f"{SVG}path")
    assert path.get("d").count("M") == 2 and len(points(path)) == 3
    with pytest.raises(ValueError, match="no finite value"):
        line_chart([Series("m", [1], [math.nan])], title="t", x_label="x")
    with pytest.raises(ValueError, match="at least one group"):
        bar_chart([], title="t")


def test_classes_begin_anew():
    assert series_class(COLOURS) == series_class(0) != series_class(1)

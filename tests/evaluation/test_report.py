"""Report and terminal table, compared with what a reader should see."""

import pytest

from ccl_jax.evaluation import report

ROWS = {
    "base": {"retrieval/recall@1": 31.24, "scenes/mean": 50.0, "loss": 1.0},
    "ccl": {"retrieval/recall@1": 35.0, "scenes/mean": 49.96, "scenes/new": 7.0},
}


def test_terminal_table():
    assert report.format_table(ROWS) == "\n".join(
        [
            "percent     base   ccl  ccl - base",
            "----------------------------------",
            "retrieval",
            "  recall@1  31.2  35.0        +3.8",
            "scenes",
            "  mean      50.0  50.0        +0.0",
            "  new          -   7.0           -",
            "loss         1.0     -           -",
        ]
    )


@pytest.mark.parametrize("models", [1, 3])
def test_difference_needs_exactly_two_models(models):
    rows = {f"m{i}": {"a/b": 1.0} for i in range(models)}
    assert report.format_table(rows).splitlines()[0].split() == ["percent", *rows]


def test_report_file(tmp_path):
    figure = tmp_path / "out" / "figures" / "heat maps.png"
    path = tmp_path / "out" / "report.md"
    report.write_report(
        path,
        title="Two models",
        rows=ROWS,
        settings={"data": "scenes | validation", "steps": "100"},
        figures=[figure],
        notes=["Trained on one device."],
    )
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Two models\n\n## Results\n\n| percent | base | ccl | ccl - base |\n")
    assert "|---|---:|---:|---:|\n| **retrieval** |  |  |  |\n" in text
    assert "| recall@1 | 31.2 | 35.0 | +3.8 |" in text
    assert "| data | scenes \\| validation |" in text
    assert "- Trained on one device." in text
    assert "![heat maps](<figures/heat maps.png>)" in text
    assert str(tmp_path) not in text


def test_report_leaves_empty_sections_out(tmp_path):
    report.write_report(tmp_path / "r.md", title="T", rows=ROWS, settings={})
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert not any(name in text for name in ("## Settings", "## Figures", "## Notes"))


@pytest.mark.parametrize("rows", [{}, {"model": {}}])
def test_no_results_raises(tmp_path, rows):
    with pytest.raises(ValueError, match="no results"):
        report.write_report(tmp_path / "r.md", title="T", rows=rows, settings={})
    assert not (tmp_path / "r.md").exists()
    with pytest.raises(ValueError, match="no results"):
        report.format_table(rows)

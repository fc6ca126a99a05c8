"""A run that is killed ends as one that is not; benchmarks/kills.py kills more often."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))

import kills  # noqa: E402


@pytest.mark.slow
def test_killed_it_ends_with_the_same_bits(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", "")  # one device
    options = ["--kills", "1", "--steps", "40", "--every", "2", "--longest", "1"]
    rows = kills.main([*options, "--output", str(tmp_path)])
    assert not any(row["ended"] for row in rows)
    assert all(not row["unreadable"] for row in rows)
    assert "1 kills" in capsys.readouterr().out
    # The comparison sees a difference: another step is another state.
    folder = tmp_path / "killed" / "checkpoints"
    (folder / "38").rename(folder / "39")
    (folder / "40").rename(folder / "38")
    (folder / "39").rename(folder / "40")
    wrong, arrays = kills.differing(tmp_path / "undisturbed", tmp_path / "killed", 40)
    assert arrays > 100 and len(wrong) > arrays / 2

"""The progress line and the metric files."""

import json

import pytest

from ccl_jax.training import metrics


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    return now


def test_the_line_shows_step_loss_rate_and_time_left(clock, capsys):
    progress = metrics.Progress("ccl", steps=1_000, start_step=0, batch_size=10)
    clock[0] += 12
    progress.show(1, 3.5)
    clock[0] += 20
    # 100 steps of 10 images in 20 s: 50 images/s, and 899 more steps take 180 s.
    assert progress.show(101, 2.25) == pytest.approx(50)
    first, second = capsys.readouterr().err.splitlines()
    assert first.split("  ")[:4] == ["ccl", "step 1/1,000", "loss 3.5000", "compiled in 12 s"]
    assert second.rstrip() == "ccl  step 101/1,000  loss 2.2500  50 images/s  3:00 left"


def test_other_work_between_two_lines_is_not_counted(clock, capsys):
    progress = metrics.Progress("", steps=100, start_step=40, batch_size=8)
    progress.show(41, 1.0)
    clock[0] += 500  # a checkpoint at step 45, say
    progress.resume(45)
    clock[0] += 10
    assert progress.show(50, 1.0) == pytest.approx(5 * 8 / 10)


def test_lines_after_the_resumed_step_are_dropped(tmp_path):
    writer = metrics.MetricsWriter(str(tmp_path))
    for step in (1, 2, 3):
        writer.write(step, {"loss": step})
    writer.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "lo')  # cut off while writing
    writer = metrics.MetricsWriter(str(tmp_path), start_step=2)
    writer.write(3, {"loss": 30.0})
    writer.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 30.0},
    ]
    assert list((tmp_path / "tensorboard").iterdir())

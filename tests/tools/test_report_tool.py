"""The command that writes report.html from files, and errors in one line."""

import json
import os
import subprocess
import sys


def call(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "ccl_jax.tools.report", *arguments],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )


def test_a_run_without_an_evaluation(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    output = tmp_path / "out" / "r.html"
    found = call("--workdir", str(run), "--output", str(output), "--title", "One < two")
    assert found.returncode == 0, found.stderr
    assert str(output) in found.stdout
    text = output.read_text(encoding="utf-8")
    assert "<h1>One &lt; two</h1>" in text and 'aria-label="loss"' in text


def test_nothing_to_report_is_one_line(tmp_path):
    found = call("--output", str(tmp_path / "r.html"))
    assert found.returncode == 1 and "Traceback" not in found.stderr
    assert found.stderr.splitlines()[-1].startswith("ccl_jax: there is nothing to report")

"""The command line: what a user's mistake is answered with."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def run_main(*arguments):
    environment = dict(os.environ, XLA_FLAGS="")
    return subprocess.run(
        [sys.executable, "-m", "ccl_jax.main", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "override", "message"),
    [
        ("configs/quickstart.py:sigclip", [], "no variant 'sigclip'; use siglip, ccl, pacl"),
        ("configs/quickstart.py", ["--config.train.stepz=3"], "stepz"),
        ("configs/nowhere.py", [], "configs/nowhere.py"),
        ("configs/quickstart.py:ccl", ["--config.data.batch_size=20"], "batch_size = 20"),
    ],
)
def test_a_mistake_gets_one_line(tmp_path, config, override, message):
    done = run_main("--config", config, "--workdir", str(tmp_path / "run"), *override)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr
    assert message in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("ccl_jax:")]
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_missing_flags_are_named():
    done = run_main()
    assert done.returncode != 0
    assert "--config" in done.stderr and "--workdir" in done.stderr
    assert "Traceback" not in done.stderr

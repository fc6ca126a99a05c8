"""The command: flags that do not go together, and errors in one line."""

import os
import subprocess
import sys

import pytest


def call(tool, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"ccl_jax.tools.{tool}", *arguments],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --model with --data_dir, or --workdir"),
        (["--model", "x"], "--model needs --data_dir"),
        (["--model", "/nowhere/x", "--data_dir", ".", "--suite", "valse"], "there is no /nowhere"),
        (["--model", "x", "--data_dir", ".", "--suite", "vals"], "did you mean 'valse'"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    found = call("evaluate", *arguments)
    assert found.returncode == 1
    assert message in found.stderr.splitlines()[-1]
    assert "Traceback" not in found.stderr


@pytest.mark.slow
def test_help_needs_no_jax():
    found = call("evaluate", "--help")
    assert "--suite" in found.stdout

"""The command: what it refuses, in one line."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path):
    command = [sys.executable, "-m", "ccl_jax.tools.export", "--workdir", str(tmp_path)]
    out = tmp_path / "out"
    found = subprocess.run(
        [*command, "--out", str(out)], capture_output=True, text=True, env=os.environ, check=False
    )
    assert found.returncode == 1
    assert f"ccl_jax: {tmp_path} holds no run" in found.stderr.splitlines()[-1]
    assert "Traceback" not in found.stderr and not out.exists()

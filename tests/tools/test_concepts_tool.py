"""The command: what it writes and says, and what it refuses, in one line."""

import os
import pathlib
import subprocess
import sys

import pytest


def run(*arguments):
    command = [sys.executable, "-m", "ccl_jax.tools.concepts", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)


@pytest.mark.slow
def test_a_tar_gets_phrases_and_a_second_run_only_tells_of_them(shared, tmp_path):
    tar = shared / "data" / "coco_sugarcrepe_s224.tar"
    arguments = ("--input", str(tar), "--output", str(tmp_path), "--format", "jsonl")
    first = run(*arguments, "--batch_size", "64", "--workers", "1")
    assert first.returncode == 0, first.stderr
    assert "251 images" in first.stdout and "A batch of 64 images" in first.stdout
    assert "251 of 251 images" in first.stderr
    files = {path: path.stat().st_mtime_ns for path in pathlib.Path(tmp_path).glob("*.jsonl")}
    again = run(*arguments, "--batch_size", "64")
    assert again.stdout == first.stdout
    assert files == {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--input", "nowhere"], "cannot tell what kind of source"),
        (["--input", "nowhere.tar"], "nothing matches nowhere.tar"),
        (["--input", "x.tar", "--extractor_options", "[1"], "takes a JSON object"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, tmp_path):
    found = run(*arguments, "--output", str(tmp_path / "out"))
    assert found.returncode == 1 and found.stdout == ""
    assert found.stderr.startswith("ccl_jax: ") and message in found.stderr
    assert len(found.stderr.splitlines()) == 1

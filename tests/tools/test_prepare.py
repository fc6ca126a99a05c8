"""The command: what it writes, prints and refuses."""

import json
import os
import subprocess
import sys
import tarfile

import pytest

from ccl_jax.data.prepared import PreparedSource

IMAGE = bytes.fromhex(  # a GIF of one pixel
    "47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b"
)


def run(*arguments):
    command = [sys.executable, "-m", "ccl_jax.tools.prepare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)


@pytest.fixture
def tar(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for i in range(6):
            caption = json.dumps({"caption": f"caption {i}"}).encode()
            image = b"" if i == 4 else IMAGE
            for extension, data in (("jpg", image), ("json", caption)):
                (tmp_path / "member").write_bytes(data)
                tar.add(tmp_path / "member", f"key{i}.{extension}")
    return tmp_path / "x.tar"


def test_writes_verifies_and_says_so(tar, tmp_path):
    out = tmp_path / "set"
    found = run("--input", tar, "--output", out, "--shards", 2, "--max_bad_share", 0.5)
    assert found.returncode == 0, found.stderr
    assert "5 records of train in 2 shards (array_record)" in found.stdout
    assert "Left out: 1 (unreadable image x 1); see skipped-train.csv" in found.stdout
    assert [PreparedSource(out)[i].key for i in range(5)] == [
        "key0",
        "key1",
        "key2",
        "key3",
        "key5",
    ]
    found = run("--verify", "--output", out)
    assert found.returncode == 0 and "5 records of train" in found.stdout
    next(out.glob("*-00001-of-00002")).write_bytes(b"")
    found = run("--verify", "--output", out)
    assert found.returncode == 1
    (line,) = found.stderr.splitlines()[-1:]
    assert line.startswith("ccl_jax: 1 of 2 shards of ") and "00001-of-00002: 0 bytes" in line
    assert "Traceback" not in found.stderr


def test_refuses_in_one_line(tar, tmp_path):
    out = tmp_path / "set"
    for arguments, message in (
        (("--download", tmp_path / "t.tsv"), f"ccl_jax: nothing matches {tmp_path}/t.tsv"),
        (("--input", tar, "--beam_option=--project=x"), "ccl_jax: options ['--project=x'] are of"),
    ):
        found = run("--output", out, *arguments)
        assert found.returncode == 1, arguments
        assert found.stderr.splitlines()[-1].startswith(message)
        assert "Traceback" not in found.stderr and not list(out.glob("*-of-*"))

"""TensorFlow starts without its lines about drivers, and what it says in earnest is kept."""

import subprocess
import sys

import pytest

from ccl_jax.data import tf_import

LINES = [
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "I0000 00:00:1795255373.659123    5247 port.cc:153] oneDNN custom operations are on.",
    "E0000 00:00:1795242924.358930    4278 cuda_platform.cc:52] failed call to cuInit",
    "To enable the following instructions: AVX2 AVX512F, in other operations, rebuild",
]


@pytest.mark.parametrize("line", LINES)
def test_lines_about_drivers_and_instructions_are_noise(line):
    assert tf_import._NOISE.match(line)


def test_other_lines_are_not():
    assert not tf_import._NOISE.match("E0000 00:00:1.0  1 file_system.cc:9] disk full")


@pytest.mark.slow
def test_it_starts_in_silence():
    program = "from ccl_jax.data.tf_import import import_tensorflow as i; i(); import tensorflow"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

"""Two processes read their parts of the batches that one process reads alone."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import pytest

from ccl_jax.training.sharding import create_mesh, local_groups


def test_one_process_has_every_group():
    mesh = create_mesh(jax.devices()[:4])
    assert local_groups(mesh, 16, 2) == tuple(range(8))
    assert local_groups(mesh, 16, 4) == tuple(range(4))


def test_devices_along_the_tensor_axis_share_their_groups():
    mesh = create_mesh(jax.devices()[:4], {"data": 2, "fsdp": 1, "tensor": 2})
    assert local_groups(mesh, 16, 2) == tuple(range(8))


@pytest.mark.slow
def test_two_processes_make_the_batches_of_one(squares_tar):
    root = pathlib.Path(__file__).parents[2]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.host_batches", str(port), str(i), squares_tar],
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for process in processes:
        out, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
        assert "the same batches" in out

"""Several real processes on the loopback network: the same run as one, and one that dies."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
from ccl_jax.training.config import default_config


def get_config(arg=""):
    config = default_config()
    squares = {"kind": "webdataset", "path": SQUARES}
    with config.unlocked():
        config.data.source = squares
        config.model.image = {"image_size": 16, "width": 16, "depth": 1}
        config.model.text = {"width": 16, "depth": 1, "length": 8, "vocab_size": 64}
        if arg != "bare":
            config.evaluators = {"retrieval": {"evaluator": "retrieval", "source": squares}}
            config.heatmaps.source = squares
            config.heatmaps.images = 1
    config.model.preset = "tiny"
    config.data.batch_size = 16
    config.data.phrase_group = 4
    config.optimizer.warmup_steps = 2
    config.train.steps = 4
    config.train.log_every = 1
    config.train.checkpoint_every = 2
    return config
"""


@pytest.fixture(scope="module")
def launch(squares_tar, tmp_path_factory):
    """Starts `launch/local.sh`; compiled programs are shared by all calls."""
    folder = tmp_path_factory.mktemp("processes")
    config = folder / "config.py"
    config.write_text(f"SQUARES = {squares_tar!r}\n{CONFIG}")

    def start(processes, workdir, *overrides, bare=False):
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
            "XLA_FLAGS": "",
        }
        return subprocess.Popen(
            ["launch/local.sh", str(processes), "--devices", "1"]
            + [f"--config={config}{':bare' * bare}", f"--workdir={workdir}", *overrides],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


def finish(process, seconds=300):
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"did not end: {process.communicate()[0][-3000:]}")
    return output


def metrics(workdir):
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses(workdir):
    return [line["loss"] for line in metrics(workdir)]


@pytest.fixture(scope="module")
def alone(launch, tmp_path_factory):
    """Workdir of the run as one process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    process = launch(1, workdir)
    output = finish(process)
    assert process.returncode == 0, output
    return workdir


def test_two_processes_train_and_evaluate_as_one(launch, alone, tmp_path):
    process = launch(2, tmp_path / "run")
    output = finish(process)
    assert process.returncode == 0, output
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-5)
    one, two = (
        json.loads((folder / "results.json").read_text()) for folder in (alone, tmp_path / "run")
    )
    assert one["metrics"] == two["metrics"]
    assert output.count("Report: ") == 1  # said once


def test_four_processes_train_as_one_with_split_state(launch, alone, tmp_path):
    process = launch(4, tmp_path / "run", "--config.mesh.fsdp=2", bare=True)
    output = finish(process)
    assert process.returncode == 0, output
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-5)


def complete(workdir):
    """Checkpoints that are whole; those being written have longer names."""
    return [path for path in workdir.glob("checkpoints/*") if path.name.isdigit()]


def process_id(workdir, number):
    found = subprocess.run(
        ["pgrep", "-f", f"workdir={workdir} .*--process_id {number}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(found.stdout.split()[0])


def wait_for_checkpoint(process, workdir, beyond=0):
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if any(int(path.name) > beyond for path in complete(workdir)):
            return
        time.sleep(0.2)
    pytest.fail(f"no checkpoint beyond {beyond}: {finish(process, 5)}")


def said_until(process, words):
    """What a run says up to a line with `words`; then it is killed."""
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return said


def test_processes_stop_together_die_together_and_go_on(launch, tmp_path):
    workdir = tmp_path / "run"
    # The log of so many steps would fill the pipe that no one reads meanwhile.
    options = ("--config.train.steps=100000", "--config.train.log_every=100000")
    process = launch(2, workdir, *options, bare=True)
    wait_for_checkpoint(process, workdir)
    # Told to one of them, both save after the same step.
    os.kill(process_id(workdir, 1), signal.SIGTERM)
    output = finish(process, 120)
    assert process.returncode == 75, output
    told = [line for line in output.splitlines() if "told to stop; saved at step" in line]
    assert len(told) == 1, output
    stopped = max(int(path.name) for path in complete(workdir))
    assert f"saved at step {stopped:,};" in told[0]

    process = launch(2, workdir, *options, bare=True)
    wait_for_checkpoint(process, workdir, beyond=stopped)
    os.kill(process_id(workdir, 1), signal.SIGKILL)
    killed = time.monotonic()
    output = finish(process, 90)
    assert time.monotonic() - killed < 60
    assert process.returncode not in (0, 75)
    assert f"continuing at step {stopped:,}" in output

    last = max(int(path.name) for path in complete(workdir))
    again = launch(2, workdir, *options, bare=True)
    said = said_until(again, "continuing at step")
    assert f"continuing at step {last:,}" in said, said

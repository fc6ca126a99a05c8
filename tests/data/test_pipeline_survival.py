"""Whole epochs of real data: each image once, on one host or two, and through SIGKILL."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from killed_reader import open_batches

BATCH = 48  # 125 batches of an epoch of 6,000
KILLS = 10


@pytest.fixture(scope="module")
def tars(shared):
    return [str(shared / "data" / f"flickr8k_112_train-0000{i}.tar") for i in range(3)]


@pytest.fixture(scope="module")
def undisturbed(tars):
    """Ids (steps, batch) of one epoch, on one host."""
    return ids_of(open_batches(tars, BATCH), 0, 125)


def ids_of(batches, start, stop):
    return np.stack([batch["sample_id"] for batch in batches.batches(start, stop)])


@pytest.mark.slow
def test_an_epoch_has_each_of_6000_images_once_on_one_and_on_two_hosts(tars, undisturbed):
    np.testing.assert_array_equal(np.sort(undisturbed.ravel()), np.arange(6_000))
    np.testing.assert_array_equal(ids_of(open_batches(tars, BATCH), 0, 125), undisturbed)
    # Two hosts, that join a run which one host began.
    halves = [
        ids_of(open_batches(tars, BATCH, groups), 25, 125) for groups in ((0, 1, 2), (3, 4, 5))
    ]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), undisturbed[25:])


@pytest.mark.slow
def test_killed_ten_times_at_random_it_reads_the_same_sequence(tars, undisturbed, tmp_path):
    log = tmp_path / "ids.txt"
    rng = random.Random(0)
    killed = 0
    for batches_before in sorted(rng.sample(range(2, 120), KILLS)):
        process = start(tmp_path, tars)
        while count_lines(log) < batches_before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.02)  # in a write, a save or a read
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed >= KILLS - 1  # the last may have been done before its signal
    assert start(tmp_path, tars).wait() == 0
    ids = [[int(word) for word in line.split()] for line in log.read_text().splitlines()]
    np.testing.assert_array_equal(ids, undisturbed)


def start(workdir, tars):
    script = pathlib.Path(__file__).with_name("killed_reader.py")
    root = str(pathlib.Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, str(script), str(workdir), str(BATCH), *tars],
        env={**os.environ, "PYTHONPATH": root},
    )


def count_lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0

"""What a run writes while it trains: TensorBoard events, JSON lines, the progress line."""

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

from ccl_jax.data.tf_import import import_tensorflow
from ccl_jax.training import distributed


class MetricsWriter:
    """Writes scalars to TensorBoard events and to `metrics.jsonl` in a workdir.

    Of several processes the first writes. What cannot be written, as on a full disk, is told and
    left out: whether training can go on is for its checkpoints to say.
    """

    def __init__(self, workdir: str, start_step: int = 0, wandb_project: str = ""):
        """Opens both, and a run of Weights & Biases if asked.

        Args:
          workdir: of a single run.
          start_step: lines after it, of a run that was cut off, are dropped.
          wandb_project: of Weights & Biases; empty for none.

        Raises:
          ValueError: if that is asked for and not installed.
        """
        self._events = self._wandb = None
        if not distributed.is_first():
            return
        self._wandb = _open_wandb(wandb_project, workdir) if wandb_project else None
        self._path = os.path.join(workdir, "metrics.jsonl")
        kept = [line for line in _lines(self._path) if json.loads(line)["step"] <= start_step]
        with open(self._path + ".partial", "w", encoding="utf-8") as file:
            file.writelines(kept)
        os.replace(self._path + ".partial", self._path)  # a run killed here keeps the old lines
        # Event files are TensorFlow's own, and so is the error of one that cannot be written.
        import_tensorflow()
        import tensorflow as tf
        from clu import metric_writers

        self._refused = tf.errors.OpError
        self._events = metric_writers.SummaryWriter(os.path.join(workdir, "tensorboard"))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one step's scalars."""
        if self._events is None:
            return
        scalars = {name: float(value) for name, value in scalars.items()}
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **scalars}) + "\n")
            self._events.write_scalars(step, scalars)
        except (OSError, self._refused) as error:
            line = " ".join(str(error).split())[:200]
            logging.warning("the metrics of step %d are not written: %s", step, line)
        if self._wandb:
            self._wandb.log(scalars, step=step)

    def close(self) -> None:
        """Flushes the events."""
        if self._events:
            self._events.close()
        if self._wandb:
            self._wandb.finish()


def device_memory() -> dict[str, float]:
    """GB in use and at the peak on the fullest device of this process; empty on a CPU."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    names = {"bytes_in_use": "memory/in_use_gb", "peak_bytes_in_use": "memory/peak_gb"}
    return {
        ours: max(one[theirs] for one in stats) / 1e9
        for theirs, ours in names.items()
        if all(one and theirs in one for one in stats)
    }


def _open_wandb(project: str, workdir: str) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            f"config.train.wandb_project = {project!r} needs Weights & Biases: "
            'pip install "ccl_jax[wandb]", or leave it empty'
        ) from error
    # The folder's name as id: a resumed run goes on in the same curves.
    name = os.path.basename(os.path.abspath(workdir))
    return wandb.init(project=project, id=name, name=name, dir=workdir, resume="allow")


class Progress:
    """One line that shows step, loss, images/s and time left; rewritten on a terminal."""

    def __init__(self, name: str, steps: int, start_step: int, batch_size: int):
        """Begins at `start_step` of `steps`; `name` is shown in front."""
        self._prefix = f"{name}  " if name else ""
        self._steps = steps
        self._batch_size = batch_size
        self._first = start_step + 1
        self._last = (start_step, time.monotonic())
        self._rewrite = sys.stderr.isatty()
        self._silent = not distributed.is_first()

    def show(self, step: int, loss: float) -> float:
        """Prints the line and returns images/s since the last one."""
        now = time.monotonic()
        last_step, last_time = self._last
        elapsed = max(now - last_time, 1e-9)
        rate = (step - last_step) * self._batch_size / elapsed
        self._last = (step, now)
        if step == self._first:
            pace = f"compiled in {elapsed:.0f} s"
        else:
            left = _duration((self._steps - step) * self._batch_size / rate)
            pace = f"{rate:,.0f} images/s  {left} left"
        line = f"{self._prefix}step {step:,}/{self._steps:,}  loss {loss:.4f}  {pace}"
        # On a terminal the next line overwrites this one, whatever its length.
        end = "\r" if self._rewrite and step < self._steps else "\n"
        if not self._silent:
            print(f"{line:<78}", end=end, file=sys.stderr, flush=True)
        return rate

    def resume(self, step: int) -> None:
        """Begins a new measurement after work that is not training."""
        self._last = (step, time.monotonic())


def _lines(path: str) -> list[str]:
    """Complete lines of a JSON lines file; the last may have been cut off."""
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        return [line for line in file if line.endswith("\n")]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

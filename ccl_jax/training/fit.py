"""The loop over steps: what is logged, evaluated and saved when, and when it ends early."""

import contextlib
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ccl_jax.training import distributed, flops, notes
from ccl_jax.training.checkpoints import Checkpoints
from ccl_jax.training.metrics import MetricsWriter, Progress, device_memory
from ccl_jax.training.sharding import to_devices
from ccl_jax.training.step import Trainer, TrainState
from ccl_jax.training.stopping import Stopped, StopRequest, stop_request

Evaluate = Callable[[TrainState], dict[str, float]]


class Fit:
    """Training of a single run from a state to the last step.

    Attributes:
      state: after the last step taken.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: str,
        label: str,
        trainer: Trainer,
        state: TrainState,
        mesh: Mesh,
        checkpoints: Checkpoints,
        evaluate: Evaluate,
    ):
        """Prepares; `run` trains.

        Args:
          config: of a single run.
          workdir: of that run.
          label: shown in front of the progress line.
          trainer: the compiled step.
          state: to begin with.
          mesh: of the devices.
          checkpoints: where the state is saved.
          evaluate: gives the metrics of a state.
        """
        self.state = state
        self._train, self._workdir, self._mesh = config.train, workdir, mesh
        self._trainer, self._checkpoints, self._evaluate = trainer, checkpoints, evaluate
        self._first = int(state.step)
        self._progress = Progress(label, config.train.steps, self._first, config.data.batch_size)
        self._batch_size = config.data.batch_size
        self._seconds = dict.fromkeys(("waiting_for_data", "evaluation", "saving"), 0.0)
        self._rates: list[float] = []
        self._saved = time.monotonic()
        self._logged = (self._first, self._saved)  # step and time of the last line
        self._compiled = 0

    @property
    def seconds_per_step(self) -> float:
        """Median over the stretches between two lines of the log; 0 if none was taken."""
        return self._batch_size / statistics.median(self._rates) if self._rates else 0.0

    def run(self, batches: Any) -> None:
        """Takes all steps that are left.

        Args:
          batches: a `TrainingBatches`, or what gives batches and positions as it does.

        Raises:
          Stopped: if the process was told to stop; the state is saved then.
          ValueError: if loss or gradient were not finite for too many steps in a row, or the
            state cannot be saved.
        """
        if self._first >= self._train.steps:
            return
        self._position = batches.position
        writer = MetricsWriter(self._workdir, self._first, self._train.wandb_project)
        stream = iter(to_devices(batches.batches(self._first, self._train.steps), self._mesh))
        with contextlib.closing(writer), stop_request() as request, self._profile() as profile:
            for step in range(self._first + 1, self._train.steps + 1):
                with self._timed("waiting_for_data"):
                    batch = next(stream)
                profile(step)
                self.state, metrics = self._trainer.step(self.state, batch)
                self._after(step, metrics, writer, request)

    def _after(self, step: int, metrics, writer: MetricsWriter, request: StopRequest) -> None:
        train, last = self._train, step == self._train.steps
        logs = step == self._first + 1 or step % train.log_every == 0 or last
        due = step % train.checkpoint_every == 0 or last
        stops = request.reached()
        if logs:
            values = self._log(step, metrics, writer)
            self._check_finite(step, values)
            if train.checkpoint_minutes:
                due = due or distributed.any_process(self._overdue())[0]
        found = None
        if train.eval_every and step % train.eval_every == 0 and not last:
            with self._timed("evaluation"):
                found = self._evaluate(self.state)
            writer.write(step, {f"evaluation/{name}": value for name, value in found.items()})
            due = due or bool(train.best_metric)
        # In trouble nothing is saved on the way: the run can go on from before it.
        if stops or last or (due and not int(self.state.skipped[1])):
            with self._timed("saving"):
                position = dataclasses.asdict(self._position(step))
                self._checkpoints.save(self.state, found, position)
            self._saved = time.monotonic()
        if due or stops or found:
            self._progress.resume(step)
        if stops and not last:
            self._checkpoints.close()
            raise Stopped(step)

    def _log(self, step: int, metrics, writer: MetricsWriter) -> dict[str, float]:
        # Waits for the step: what is measured before is dispatch alone.
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        rate = self._progress.show(step, values["loss"])
        (before, then), self._logged = self._logged, (step, time.monotonic())
        steps, spent = step - before, self._logged[1] - then
        if step > self._first + 1:  # the first step compiles
            self._rates.append(rate)
            values |= {"images_per_second": rate} | self._use(rate)
            values |= {f"seconds/{name}": s / steps for name, s in self._seconds.items()}
            values["seconds/step"] = (spent - sum(self._seconds.values())) / steps
        values |= device_memory()
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        values["compilations"] = self._count_compilations(step)
        writer.write(step, values)
        return values

    def _use(self, images_per_second: float) -> dict[str, float]:
        """How much of its arithmetic a device does: in 10^12 operations/s, and of its peak."""
        rate = self._trainer.flops / self._batch_size * images_per_second / self._mesh.size
        peak = flops.peak(self._mesh.devices.flat[0].device_kind)
        return {"tflops_per_device": rate / 1e12} | ({"utilisation": rate / peak} if peak else {})

    def _count_compilations(self, step: int) -> int:
        count = self._trainer.step._cache_size()
        if self._compiled and count > self._compiled:
            logging.warning(
                "step %d compiled the training step again (%d times so far): batches change shape",
                step,
                count,
            )
        self._compiled = count
        return count

    def _check_finite(self, step: int, values: dict[str, float]) -> None:
        in_a_row = int(values["skipped_in_a_row"])
        if in_a_row:
            logging.warning("loss or gradient not finite for %d steps up to %d", in_a_row, step)
        if in_a_row < self._train.max_skipped_steps:
            return
        message = (
            f"loss or gradient was not finite for {in_a_row} steps in a row up to step {step:,}, "
            "which changed no weight; "
        )
        if self._checkpoints.latest is None:
            message += "there is no checkpoint yet. "
        else:
            # Let go before it is read again: there may be no room for two.
            like, self.state = jax.tree.map(_shape, self.state), None
            self.state, damaged = self._checkpoints.resume(like)
            for line in damaged:
                distributed.say(line)
                notes.add(self._workdir, line)
            message += (
                f"went back to the checkpoint of step {int(self.state.step):,}, which is good: the "
                "same command continues there. "
            )
        self._checkpoints.close()
        message += (
            "Lower config.optimizer.learning_rate, set config.optimizer.clip_norm, or look at the "
            "batches of those steps (tools.inspect_data)"
        )
        notes.add(self._workdir, message)
        raise ValueError(message)

    def _overdue(self) -> bool:
        minutes = self._train.checkpoint_minutes
        return bool(minutes) and time.monotonic() - self._saved >= 60 * minutes

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] += time.monotonic() - start

    @contextlib.contextmanager
    def _profile(self) -> Iterator[Callable[[int], None]]:
        """A function that starts and ends the profile when its step has come."""
        running = False
        first, last = self._train.profile_steps or (-1, -1)

        def at(step: int) -> None:
            nonlocal running
            if step == first:
                jax.profiler.start_trace(os.path.join(self._workdir, "profile"))
                running = True
            elif running and step > last:
                jax.block_until_ready(self.state)
                jax.profiler.stop_trace()
                running = False

        try:
            yield at
        finally:
            if running:
                jax.profiler.stop_trace()


def _shape(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)

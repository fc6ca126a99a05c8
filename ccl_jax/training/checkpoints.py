"""Checkpoints with Orbax: asynchronous, verified, restored to the devices they are needed on.

A checkpoint is a folder `checkpoints/STEP` that appears when it is complete. Beside the state it
holds facts: a checksum of every array, taken on the devices before it left them.
"""

import dataclasses
import functools
import os
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import preservation_policy

from ccl_jax.training import distributed
from ccl_jax.training.step import TrainState

_STATE, _FACTS, _METRICS = "state", "facts", "metrics"
# Pauses between attempts to write, in seconds: stores that are slow or away for a while.
_PAUSES = (2, 10, 30)


class Checkpoints:
    """The checkpoints of a run, in `workdir/checkpoints/STEP`."""

    def __init__(
        self,
        workdir: str,
        keep: int = 2,
        *,
        keep_every: int = 0,
        best: str = "",
        pauses: tuple[float, ...] = _PAUSES,
    ):
        """Opens the folder.

        Args:
          workdir: of a single run; a local path or one of a bucket.
          keep: how many of the latest checkpoints stay.
          keep_every: those of steps that it divides stay as well; 0 for none.
          best: the one with the highest value of this metric stays as well; empty for none.
          pauses: seconds before each further attempt to write, where writing failed.

        Raises:
          ValueError: if the folder cannot be made or read.
        """
        policies = [preservation_policy.LatestN(keep)]
        if keep_every:
            policies.append(preservation_policy.EveryNSteps(keep_every))
        if best:
            policies.append(
                preservation_policy.BestN(
                    get_metric_fn=lambda metrics: metrics[best],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self.folder = checkpoint_folder(workdir)
        self._best, self._pauses = best, pauses
        self._open = functools.partial(
            ocp.CheckpointManager,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                # Metrics are written only where there is such a function.
                best_fn=(lambda metrics: metrics[best]) if best else None,
            ),
        )
        if os.path.exists(self.folder) and not os.path.isdir(self.folder):
            raise ValueError(f"cannot use {self.folder}: it is a file, not a folder; remove it")
        self._manager = self._attempt(lambda: self._open(self.folder))
        self._unverified: tuple[int, dict[str, int]] | None = None

    @property
    def latest(self) -> int | None:
        """Step of the latest complete checkpoint, None without one."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """Step of the checkpoint with the highest `best` metric, None without one."""
        found = {
            step: metrics[self._best]
            for step in self._manager.all_steps()
            if (metrics := self._manager.metrics(step)) and self._best in metrics
        }
        return max(found, key=found.get, default=None)

    def save(
        self,
        state: TrainState,
        metrics: Mapping[str, float] | None = None,
        position: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves in the background; the state may be used up right after the call.

        Waits for the save before, and checks what it wrote. Where that failed, it says so and
        this one is written in the foreground, in several attempts, so that nothing is lost.

        Args:
          state: of the training step.
          metrics: of an evaluation at this step, by which the best checkpoint is chosen.
          position: in the data, plain values; kept among the facts.

        Raises:
          ValueError: if this state cannot be written either, saying what keeps it from it.
        """
        step, sums = int(state.step), None
        failed = self._settle()
        for pause in (0, *self._pauses):
            if pause:
                logging.error("%s; trying again in %g s", failed, pause)
                time.sleep(pause)
            sums = sums or checksums(state)
            facts = {"step": step, "checksums": sums, "data_position": dict(position or {})}
            refused = self._agreed(self._write(step, state, facts, metrics))
            if refused:
                failed = refused
                continue
            self._unverified = (step, sums)
            if failed is None:
                return
            failed = self._settle()
            if failed is None:
                return
        raise ValueError(
            f"{failed}. Mend that and run the same command: it continues at step "
            f"{self._last_complete() or 0:,}"
        )

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """A checkpoint.

        Args:
          like: a state or its `jax.eval_shape`, with the shardings to restore to: any number
            of devices, whatever it was saved from.
          step: of the checkpoint; the latest if None.

        Raises:
          ValueError: if there is no such checkpoint, or it holds another state.
        """
        step = self.latest if step is None else step
        if step is None:
            raise ValueError(f"no checkpoint in {self.folder}; train first, or check --workdir")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _present(like))
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )
        except FileNotFoundError as error:
            raise ValueError(
                f"no checkpoint of step {step:,} in {self.folder}; there are "
                f"{', '.join(map(str, self._manager.all_steps())) or 'none'}"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"the checkpoint of step {step:,} in {self.folder} does not hold this state (of "
                f"another model or version?): {_reason(error)}"
            ) from error
        return TrainState(**restored[_STATE])

    def close(self) -> None:
        """Waits for the save under way, checks it and releases the folder.

        Raises:
          ValueError: if the last save failed.
        """
        failed = self._settle()
        self._manager.close()
        if failed:
            raise ValueError(failed)

    def _write(self, step, state, facts, metrics) -> str | None:
        """Begins to write; what keeps it from it, or None."""
        try:
            self._begin(step, state, facts, metrics)
        except (OSError, ValueError) as error:
            return self._failure(step, error)
        return None

    def _begin(self, step, state, facts, metrics) -> None:
        if not os.path.isdir(self.folder) and "://" not in self.folder:
            # Removed while the run went on: Orbax remembers the folder.
            self._manager.close()
            self._manager = self._open(self.folder)
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_present(state)),
                facts=ocp.args.JsonSave(facts),
            ),
            metrics=dict(metrics) if metrics else None,
        )

    def _settle(self) -> str | None:
        """Waits for the save under way and verifies it; says what went wrong, or None."""
        if self._unverified is None:
            return None
        (step, sums), self._unverified = self._unverified, None
        try:
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                verify(self.folder, step, sums)
        except (OSError, ValueError) as error:
            return self._agreed(self._failure(step, error))
        return self._agreed(None)

    def _agreed(self, failure: str | None) -> str | None:
        """A failure of any process is one of all: they go on together."""
        if distributed.any_process(failure is not None)[0]:
            return failure or "another process could not write its part of the checkpoint"
        return None

    def _failure(self, step: int, error: Exception) -> str:
        return f"the checkpoint of step {step:,} could not be written: {_reason(error)}"

    def _last_complete(self) -> int | None:
        try:
            return max(complete_steps(self.folder), default=None)
        except OSError:
            return None

    def _attempt(self, action: Callable[[], Any]) -> Any:
        for pause in (*self._pauses, None):
            try:
                return action()
            except (PermissionError, NotADirectoryError, FileExistsError) as error:
                raise ValueError(f"cannot use {self.folder}: {_reason(error)}") from error
            except OSError as error:
                if pause is None:
                    raise ValueError(f"cannot use {self.folder}: {_reason(error)}") from error
                logging.error("%s: %s; trying again in %g s", self.folder, error, pause)
                time.sleep(pause)
        raise AssertionError


def checkpoint_folder(workdir: str) -> str:
    """Where the checkpoints of a run are."""
    place = workdir if "://" in workdir else os.path.abspath(workdir)
    return os.path.join(place, "checkpoints")


def complete_steps(folder: str) -> list[int]:
    """Steps of the complete checkpoints in a folder; those being written have other names."""
    return sorted(ocp.utils.checkpoint_steps(folder)) if os.path.isdir(folder) else []


def read_facts(folder: str, step: int) -> dict[str, Any]:
    """{"step", "checksums": {path: number}, "data_position": {...}} of a checkpoint.

    Raises:
      ValueError: if it has none.
    """
    with _reader() as reader:
        try:
            return reader.restore(
                os.path.join(folder, str(step)),
                args=ocp.args.Composite(facts=ocp.args.JsonRestore()),
            )[_FACTS]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"the checkpoint of step {step:,} in {folder} has no facts: {_reason(error)}"
            ) from error


def read_arrays(folder: str, step: int) -> dict[str, np.ndarray]:
    """{path: array} of the whole state of a checkpoint, in the memory of this host.

    Raises:
      ValueError: if it cannot be read.
    """
    place = os.path.join(folder, str(step))
    with _reader() as reader:
        try:
            shapes = reader.metadata(place).item_metadata[_STATE]
            abstract = jax.tree.map(
                lambda one: np.empty(one.shape, one.dtype), getattr(shapes, "tree", shapes)
            )
            found = reader.restore(
                place, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"the checkpoint of step {step:,} in {folder} cannot be read: {_reason(error)}"
            ) from error
    return _flat(found[_STATE])


def verify(folder: str, step: int, expected: Mapping[str, int] | None = None) -> int:
    """Reads a checkpoint whole and compares it with what was saved.

    Args:
      folder: of the checkpoints.
      step: of the checkpoint.
      expected: checksums; by default those among the checkpoint's facts.

    Returns:
      The number of arrays compared.

    Raises:
      ValueError: naming the arrays that differ, are missing or are too many.
    """
    expected = read_facts(folder, step)["checksums"] if expected is None else expected
    found = {path: _host_sum(array) for path, array in read_arrays(folder, step).items()}
    wrong = [
        path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path)
    ]
    if wrong:
        raise ValueError(
            f"the checkpoint of step {step:,} in {folder} is damaged: {len(wrong)} of "
            f"{len(expected)} arrays differ from what was saved, {sorted(wrong)[0]} for one; "
            "remove the folder of that step to use the one before"
        )
    return len(expected)


def checksums(state: TrainState) -> dict[str, int]:
    """A number for every array: its 32-bit words, those of smaller types one by one, summed
    modulo 2^32. The sum does not depend on how the array is split over devices."""
    return {path: int(value) for path, value in _flat(_device_sums(_present(state))).items()}


def remove(folder: str, step: int) -> None:
    """Removes a checkpoint."""
    shutil.rmtree(os.path.join(folder, str(step)))


@jax.jit
def _device_sums(tree):
    return jax.tree.map(
        lambda x: jnp.sum(_words(x, jax.lax.bitcast_convert_type), dtype=jnp.uint32), tree
    )


def _host_sum(array: np.ndarray) -> int:
    words = _words(np.asarray(array), lambda x, kind: x.view(kind))
    return int(np.sum(words, dtype=np.uint32))


def _words(array, view):
    if array.dtype == bool:
        return array.astype(np.uint32)
    kind = {1: np.uint8, 2: np.uint16}.get(array.dtype.itemsize, np.uint32)
    return view(array, kind).astype(np.uint32)


def _flat(tree) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(keys, simple=True, separator="/"): leaf
        for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _reader() -> ocp.Checkpointer:
    """Reads on this process alone, whatever the others do."""
    handler = ocp.CompositeCheckpointHandler(
        state=ocp.StandardCheckpointHandler(),
        facts=ocp.JsonCheckpointHandler(),
        metrics=ocp.JsonCheckpointHandler(),
    )
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"reader_{index}"
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _reason(error: BaseException) -> str:
    words = " ".join(str(error).split())
    if "No space left" in words or getattr(error, "errno", None) == 28:
        return "no space left on the device"
    return words[:300] or type(error).__name__


def _present(state: TrainState) -> dict[str, Any]:
    """The fields of a state that are not None: Orbax would write that a field was None."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if value is not None}

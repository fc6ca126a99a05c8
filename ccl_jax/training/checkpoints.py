"""Checkpoints with Orbax: asynchronous, verified, restored to the devices they are needed on.

A checkpoint is a folder `checkpoints/STEP` that appears when it is complete; what it holds is in
`checkpoint_files`.
"""

import concurrent.futures
import functools
import os
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import preservation_policy

from ccl_jax.training import checkpoint_files as files
from ccl_jax.training import distributed
from ccl_jax.training.step import TrainState

DAMAGED = "damaged_checkpoints"
"""Folder in a workdir for checkpoints that could not be read back."""

# Pauses between attempts to write or read, in seconds: stores that are slow or away for a while.
_PAUSES = (2, 10, 30)


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Left to `stopping`: asking for a step that is past would disturb what hosts agree on."""
        return False


class Checkpoints:
    """The checkpoints of a run, in `workdir/checkpoints/STEP`."""

    def __init__(
        self,
        workdir: str,
        keep: int = 2,
        *,
        keep_every: int = 0,
        best: str = "",
        read_only: bool = False,
        pauses: tuple[float, ...] = _PAUSES,
    ):
        """Opens the folder; what a run that was killed left of an unfinished save is removed.

        Args:
          workdir: of a single run; a local path or one of a bucket.
          keep: how many of the latest checkpoints stay.
          keep_every: those of steps that it divides stay as well; 0 for none.
          best: the one with the highest value of this metric stays as well; empty for none.
          read_only: change nothing, whatever a run may be writing there.
          pauses: seconds before each further attempt to write or read, where one failed.

        Raises:
          ValueError: if the folder cannot be made or read.
        """
        files.quiet()
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
        self.folder = files.checkpoint_folder(workdir)
        self._aside = os.path.join(os.path.dirname(self.folder), DAMAGED)
        self._best, self._pauses = best, pauses
        self._open = functools.partial(
            _Manager,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                # Metrics are written only where there is such a function.
                best_fn=(lambda metrics: metrics[best]) if best else None,
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
            ),
        )
        if os.path.exists(self.folder) and not os.path.isdir(self.folder):
            raise ValueError(f"cannot use {self.folder}: it is a file, not a folder; remove it")
        if read_only and not files.complete_steps(self.folder) and "://" not in self.folder:
            raise ValueError(f"no checkpoint in {self.folder}; train first, or check --workdir")
        self._manager = self._attempt(lambda: self._open(self.folder))
        # Waits for a save and reads it back, while training goes on.
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: tuple[int, concurrent.futures.Future] | None = None
        self._closed = False

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
        """Saves and reads back in the background; the state may be used up right after the call.

        Waits for the save before. Where that failed, it says so and this one is written in the
        foreground, in several attempts, so that nothing is lost.

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
                distributed.say(f"{failed}; trying again in {pause:g} s")
                time.sleep(pause)
                self._reopen()
            sums = sums or files.checksums(state)
            facts = {"step": step, "checksums": sums, "data_position": dict(position or {})}
            refused = self._agreed(self._write(step, state, facts, metrics))
            if refused:
                failed = refused
                continue
            self._pending = (step, self._worker.submit(self._finish, step, sums))
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
        """A checkpoint, compared with what was saved.

        Args:
          like: a state or its `jax.eval_shape`, with the shardings to restore to: any number
            of devices, whatever it was saved from.
          step: of the checkpoint; the latest if None.

        Raises:
          ValueError: if there is no such checkpoint, it holds another state, or it is damaged.
        """
        step = self.latest if step is None else step
        if step is None:
            raise ValueError(f"no checkpoint in {self.folder}; train first, or check --workdir")
        if step not in self._manager.all_steps():
            raise ValueError(
                f"no checkpoint of step {step:,} in {self.folder}; there are "
                f"{', '.join(map(str, self._manager.all_steps())) or 'none'}"
            )
        state, failure = self._read(like, step)
        if state is None:
            raise ValueError(failure)
        return state

    def resume(self, like: TrainState) -> tuple[TrainState, list[str]]:
        """The latest checkpoint that is whole, and a line about each later one that is not.

        Those are moved to `WORKDIR/damaged_checkpoints`, so that the run can write them again.

        Args:
          like: as for `restore`.

        Raises:
          ValueError: if there is no checkpoint, none is whole, or they hold another state.
        """
        if failed := self._settle():
            distributed.say(failed)  # what can be read of it is seen now
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            state, failure = self._read(like, step)
            if state is not None:
                return state, self._set_aside(damaged)
            damaged[step] = failure
        if damaged:
            raise ValueError(next(iter(damaged.values())))
        raise ValueError(f"no checkpoint in {self.folder}; train first, or check --workdir")

    def close(self) -> None:
        """Waits for the save under way, checks it and releases the folder; a second time nothing.

        Raises:
          ValueError: if the last save failed.
        """
        if self._closed:
            return
        self._closed = True
        failed = self._settle()
        self._worker.shutdown()
        self._manager.close()
        if failed:
            raise ValueError(failed)

    def abandon(self) -> None:
        """Waits for the save under way, without a word to other processes: they may be gone."""
        if self._pending is not None:
            concurrent.futures.wait([self._pending[1]], timeout=60)
        self._closed, self._pending = True, None

    def _write(self, step, state, facts, metrics) -> str | None:
        """Begins to write; what keeps it from it, or None."""
        try:
            self._begin(step, state, facts, metrics)
        except (OSError, ValueError) as error:
            return self._failure(step, error)
        return None

    def _begin(self, step, state, facts, metrics) -> None:
        if not os.path.isdir(self.folder) and "://" not in self.folder:
            self._reopen()  # removed while the run went on: Orbax remembers the folder
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(files.present(state)),
                facts=ocp.args.JsonSave(facts),
            ),
            metrics=dict(metrics) if metrics else None,
            force=True,
        )

    def _finish(self, step: int, sums: Mapping[str, int]) -> None:
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            files.verify(self.folder, step, sums)

    def _settle(self) -> str | None:
        """Waits until the save under way is read back; says what went wrong, or None."""
        if self._pending is None:
            return None
        (step, done), self._pending = self._pending, None
        try:
            done.result()
        except (OSError, ValueError) as error:
            return self._agreed(self._failure(step, error))
        return self._agreed(None)

    def _reopen(self) -> None:
        """Begins anew with the folder as it is; what a failed save left there is removed."""
        try:
            self._manager.close()
        except (OSError, ValueError) as error:
            logging.info("closing %s: %s", self.folder, error)  # of the save that failed
        self._manager = self._open(self.folder)

    def _read(self, like: TrainState, step: int) -> tuple[TrainState | None, str]:
        """A checkpoint, or None and what is wrong with it, after several attempts.

        Raises:
          ValueError: if it holds another state: no attempt would change that.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, files.present(like))
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        failure = ""
        for pause in (0, *self._pauses):
            if pause:
                distributed.say(f"{failure}; trying again in {pause:g} s")
                time.sleep(pause)
            state, found = None, None
            try:
                files.check_shapes(self.folder, step, abstract)
                state = TrainState(**self._manager.restore(step, args=args)[files.STATE])
            except files.AnotherState:
                raise
            except (OSError, ValueError, KeyError, TypeError) as error:
                found = (
                    f"the checkpoint of step {step:,} in {self.folder} cannot be read: "
                    f"{files.reason(error)}"
                )
            failure = self._agreed(found)
            if not failure:
                failure = self._agreed(files.difference(self.folder, step, state))
            if not failure:
                return state, ""
        return None, failure

    def _set_aside(self, damaged: Mapping[int, str]) -> list[str]:
        if not damaged:
            return []
        if jax.process_index() == 0:
            os.makedirs(self._aside, exist_ok=True)
            for step in damaged:
                place = os.path.join(self._aside, str(step))
                shutil.rmtree(place, ignore_errors=True)
                shutil.move(os.path.join(self.folder, str(step)), place)
        distributed.wait("damaged checkpoints")
        self._reopen()
        return [f"{failure}; moved to {self._aside}" for failure in damaged.values()]

    def _agreed(self, failure: str | None) -> str | None:
        """A failure of any process is one of all: they go on together."""
        if distributed.any_process(failure is not None)[0]:
            return failure or "another process could not write or read its part of the checkpoint"
        return None

    def _failure(self, step: int, error: Exception) -> str:
        return f"the checkpoint of step {step:,} could not be written: {files.reason(error)}"

    def _last_complete(self) -> int | None:
        try:
            return max(files.complete_steps(self.folder), default=None)
        except OSError:
            return None

    def _attempt(self, action: Callable[[], Any]) -> Any:
        for pause in (*self._pauses, None):
            try:
                return action()
            except (PermissionError, NotADirectoryError, FileExistsError) as error:
                raise ValueError(f"cannot use {self.folder}: {files.reason(error)}") from error
            except OSError as error:
                if pause is None:
                    raise ValueError(f"cannot use {self.folder}: {files.reason(error)}") from error
                distributed.say(f"{self.folder}: {error}; trying again in {pause:g} s")
                time.sleep(pause)
        raise AssertionError

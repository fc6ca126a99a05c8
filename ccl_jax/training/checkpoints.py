"""Checkpoints with Orbax: asynchronous, restored to the devices they are needed on."""

import dataclasses
import os
from typing import Any

import jax
import orbax.checkpoint as ocp

from ccl_jax.training.step import TrainState


class Checkpoints:
    """The checkpoints of a run, in `workdir/checkpoints/STEP`."""

    def __init__(self, workdir: str, keep: int = 2):
        """Opens the folder; `keep` is how many of the latest checkpoints stay."""
        self._manager = ocp.CheckpointManager(
            os.path.join(os.path.abspath(workdir), "checkpoints"),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep),
        )

    @property
    def latest(self) -> int | None:
        """Step of the latest complete checkpoint, None without one."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Saves in the background; the state may be used up right after the call.

        The position in the data is the step: batches are a function of seed and step.
        """
        self._manager.save(int(state.step), args=ocp.args.StandardSave(_present(state)))

    def restore(self, like: TrainState) -> TrainState:
        """The latest checkpoint.

        Args:
          like: a state or its `jax.eval_shape`, with the shardings to restore to.

        Raises:
          ValueError: if there is no checkpoint.
        """
        if self.latest is None:
            raise ValueError(
                f"no checkpoint in {self._manager.directory}; train first, or check --workdir"
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _present(like))
        restored = self._manager.restore(self.latest, args=ocp.args.StandardRestore(abstract))
        return TrainState(**restored)

    def close(self) -> None:
        """Waits for the save under way and releases the folder."""
        self._manager.wait_until_finished()
        self._manager.close()


def _present(state: TrainState) -> dict[str, Any]:
    """The fields of a state that are not None: Orbax would write that a field was None."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if value is not None}

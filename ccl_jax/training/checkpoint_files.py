"""What lies in the folder of a checkpoint: read, compared with what was saved, removed.

A checkpoint `checkpoints/STEP` holds the state and facts: a checksum of every array, taken on the
devices before it left them, and the position in the data.
"""

import dataclasses
import logging
import os
import pathlib
import shutil
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from ccl_jax.training.step import TrainState

STATE, FACTS, METRICS = "state", "facts", "metrics"


class AnotherState(ValueError):
    """A checkpoint holds arrays of another model or version."""


class _Quiet(logging.Filter):
    """Leaves out what Orbax logs: it fails with pages of tracebacks, and tells us the same."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to show a line; all of them with --verbosity=0 and above."""
        if absl_logging.get_verbosity() > absl_logging.WARNING:
            return True
        # asyncio: the exceptions of its other arrays, which no one has asked for.
        return record.name != "asyncio" and "orbax" not in pathlib.PurePath(record.pathname).parts


_QUIET = _Quiet()


def quiet() -> None:
    """Keeps Orbax from logging; its errors reach us as exceptions."""
    # Of writes that it gives up when another has failed.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    for name in ("asyncio", "absl"):
        logging.getLogger(name).addFilter(_QUIET)


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
            )[FACTS]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"the checkpoint of step {step:,} in {folder} has no facts: {reason(error)}"
            ) from error


def read_arrays(folder: str, step: int) -> dict[str, np.ndarray]:
    """{path: array} of the whole state of a checkpoint, in the memory of this host.

    Raises:
      ValueError: if it cannot be read.
    """
    place = os.path.join(folder, str(step))
    with _reader() as reader:
        try:
            shapes = reader.metadata(place).item_metadata[STATE]
            abstract = jax.tree.map(
                lambda one: np.empty(one.shape, one.dtype), getattr(shapes, "tree", shapes)
            )
            found = reader.restore(
                place, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"the checkpoint of step {step:,} in {folder} cannot be read: {reason(error)}"
            ) from error
    return _flat(found[STATE])


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
    if wrong := _wrong(folder, step, expected, found):
        raise ValueError(wrong)
    return len(expected)


def difference(folder: str, step: int, state: TrainState) -> str | None:
    """In what a restored state is not what was saved, in words; None if in nothing."""
    found = checksums(state)
    try:
        return _wrong(folder, step, read_facts(folder, step)["checksums"], found)
    except ValueError as error:
        return str(error)


def check_shapes(folder: str, step: int, like: Any) -> None:
    """Compares the arrays of a checkpoint with those that it is to be restored to.

    Args:
      folder: of the checkpoints.
      step: of the checkpoint.
      like: a tree of shapes, as `present` gives.

    Raises:
      AnotherState: naming the first array that differs.
      ValueError: if the checkpoint cannot be read.
    """
    with _reader() as reader:
        try:
            found = reader.metadata(os.path.join(folder, str(step))).item_metadata[STATE]
            found = {
                path: tuple(x.shape) for path, x in _flat(getattr(found, "tree", found)).items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{reason(error)}") from error
    wanted = {path: tuple(x.shape) for path, x in _flat(like).items()}
    for path in sorted(wanted.keys() | found.keys()):
        if wanted.get(path) != found.get(path):
            raise AnotherState(
                f"the checkpoint of step {step:,} in {folder} does not hold this state (of another "
                f"model or version?): {path} is {found.get(path, 'missing')} there and "
                f"{wanted.get(path, 'missing')} here"
            )


def checksums(state: TrainState) -> dict[str, int]:
    """A number for every array: its 32-bit words, those of smaller types one by one, summed
    modulo 2^32. The sum does not depend on how the array is split over devices."""
    return {path: int(value) for path, value in _flat(_device_sums(present(state))).items()}


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


def _wrong(folder, step, expected, found) -> str | None:
    wrong = [
        path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path)
    ]
    if not wrong:
        return None
    return (
        f"the checkpoint of step {step:,} in {folder} is damaged: {len(wrong)} of "
        f"{len(expected)} arrays differ from what was saved, {sorted(wrong)[0]} for one"
    )


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


def reason(error: BaseException) -> str:
    """The message of an error in a line."""
    words = " ".join(str(error).split())
    if "No space left" in words or getattr(error, "errno", None) == 28:
        return "no space left on the device"
    return words[:300] or type(error).__name__


def present(state: TrainState) -> dict[str, Any]:
    """The fields of a state that are not None: Orbax would write that a field was None."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if value is not None}

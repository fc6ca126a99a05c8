"""What `python -m ccl_jax.tools.checkpoints` shows and does."""

import os
import time
from collections.abc import Iterator

import numpy as np

from ccl_jax.training import checkpoint_files as files


def overview(workdir: str) -> str:
    """A line for every checkpoint: step, size, when it was written.

    Raises:
      ValueError: if there is none.
    """
    folder, steps = _found(workdir)
    lines = [f"{'step':>12}  {'MB':>10}  written"]
    for step in steps:
        place = os.path.join(folder, str(step))
        written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(os.path.getmtime(place)))
        lines.append(f"{step:>12,}  {_size(place) / 1e6:>10,.1f}  {written}")
    return "\n".join(lines)


def describe(workdir: str, step: int | None = None) -> str:
    """Position in the data, then a line for every array: path, shape, type, range of values.

    Args:
      workdir: of a single run.
      step: of the checkpoint; the latest if None.

    Raises:
      ValueError: if there is no such checkpoint or it cannot be read.
    """
    folder, steps = _found(workdir, step)
    step = steps[-1] if step is None else step
    facts = files.read_facts(folder, step)
    lines = [f"{folder}/{step}"]
    position = facts.get("data_position") or {}
    lines += [f"data {name}: {value}" for name, value in position.items()]
    for path, array in sorted(files.read_arrays(folder, step).items()):
        values = np.asarray(array, np.float64)
        shape = " x ".join(f"{n:,}" for n in array.shape) or "scalar"
        extent = f"{values.min():.4g} to {values.max():.4g}" if values.size else "empty"
        bad = "" if np.isfinite(values).all() else "  NOT FINITE"
        lines.append(f"{path}  {shape}  {array.dtype}  {extent}{bad}")
    return "\n".join(lines)


def verify(workdir: str, step: int | None = None) -> Iterator[tuple[int, str]]:
    """(step, what is wrong with the checkpoint or "") of one checkpoint or all.

    Raises:
      ValueError: if there is no such checkpoint.
    """
    folder, steps = _found(workdir, step)
    for each in steps if step is None else [step]:
        try:
            files.verify(folder, each)
        except ValueError as error:
            yield each, str(error)
        else:
            yield each, ""


def prune(workdir: str, keep: int, dry_run: bool = False) -> list[int]:
    """Removes all but the latest `keep` checkpoints; the steps that were, or would be, removed.

    Raises:
      ValueError: if there is none.
    """
    folder, steps = _found(workdir)
    old = steps[:-keep]
    for step in [] if dry_run else old:
        files.remove(folder, step)
    return old


def _found(workdir: str, step: int | None = None) -> tuple[str, list[int]]:
    folder = files.checkpoint_folder(workdir)
    steps = files.complete_steps(folder)
    if not steps:
        raise ValueError(f"{folder} holds no checkpoint; give --workdir the folder of a single run")
    if step is not None and step not in steps:
        known = ", ".join(map(str, steps))
        raise ValueError(f"{folder} holds no checkpoint of step {step}; there are {known}")
    return folder, steps


def _size(place: str) -> int:
    return sum(
        os.path.getsize(os.path.join(base, name))
        for base, _, names in os.walk(place)
        for name in names
    )

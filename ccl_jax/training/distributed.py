"""Joining the processes of a run: one a host on TPU, one a GPU or a host elsewhere."""

import contextlib
import glob
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# A host that has sent no sign of life for so long is dead, and takes the run down with it.
HEARTBEAT_SECONDS = 40
_START_SECONDS = 300


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the other processes, if there are any; must come before any use of a device.

    Found without arguments: Cloud TPU slices, SLURM steps of several tasks (`srun`), and the
    pods of an indexed Kubernetes job with `JAX_COORDINATOR_ADDRESS`. Alone, nothing is done.

    Args:
      coordinator: HOST:PORT of process 0, the same in all processes.
      num_processes: how many there are.
      process_id: which of them this is, from 0.

    Raises:
      ValueError: if some of the arguments are missing or do not fit, or the others cannot be
        reached.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if missing and len(missing) < 3:
        raise ValueError(
            f"several processes need --coordinator, --num_processes and --process_id; "
            f"{', '.join(missing)} is missing"
        )
    arguments = {}
    if not missing:
        _check(coordinator, num_processes, process_id)
        arguments = {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
        }
    elif not in_cluster(os.environ):
        return
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        where = coordinator or "found in the environment"
        raise ValueError(
            f"the processes did not find each other (coordinator {where}): "
            f"{' '.join(str(error).split())[:300]}; check that all were started with the same "
            "address, that it can be reached and that the port is free"
        ) from error


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether the environment says that this is one of several processes, or a TPU host."""
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1") or 1) > 1:
        return True
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return True
    if environment.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return False
    has_chips = bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
    return has_chips and importlib.util.find_spec("libtpu") is not None


def is_first() -> bool:
    """Whether this process writes what is written once: logs, reports, results."""
    return jax.process_index() == 0


def say(message: str) -> None:
    """Prints a line to stderr, on the first process."""
    if is_first():
        print(message, file=sys.stderr, flush=True)


def wait(name: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def first_before_others(name: str) -> Iterator[None]:
    """The first process runs the block, then the others do: what it writes, they read."""
    if not is_first():
        wait(name)
    yield
    if is_first():
        wait(name)


def any_process(*flags: bool) -> list[bool]:
    """Each flag, whether any process has raised it; all must call this at the same step."""
    if jax.process_count() == 1:
        return list(flags)
    return multihost_utils.process_allgather(np.array(flags)).any(axis=0).tolist()


def from_first(values: Any) -> Any:
    """What the first process gives, on all of them; plain JSON values."""
    if jax.process_count() == 1:
        return values
    text = np.frombuffer(json.dumps(values).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(text))))
    text = np.resize(text, size)  # of the others any bytes will do
    return json.loads(multihost_utils.broadcast_one_to_all(text).astype(np.uint8).tobytes())


def local(tree: Any) -> Any:
    """Arrays that every device holds whole, for this process to use without the others."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), tree)


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--coordinator {coordinator!r} is not HOST:PORT, as in 10.0.0.2:8476")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process_id {process_id} is not in [0, {num_processes}): processes count from 0"
        )

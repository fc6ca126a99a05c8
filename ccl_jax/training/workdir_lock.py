"""One run at a time in a workdir."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from typing import TextIO

FILE = "run.lock"


@contextlib.contextmanager
def locked(workdir: str) -> Iterator[None]:
    """Keeps other processes' runs out of a folder until the block, or this process, has ended.

    However the process ends, the system takes the lock from it. On file systems without locks,
    as buckets are through gcsfuse, and where nothing can be written, nobody is kept out.

    Raises:
      ValueError: if another run is in the folder.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = open(os.path.join(workdir, FILE), "a+", encoding="utf-8")  # noqa: SIM115
        except OSError:
            file = None
        else:
            stack.enter_context(file)
        if file and _lock(file, workdir):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield


def _lock(file: TextIO, workdir: str) -> bool:
    try:
        # Of the process, not of the open file: forked workers that outlive it hold nothing.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        raise ValueError(
            f"another run is writing to {workdir} ({file.read()}): stop it, wait for its end, or "
            "choose another --workdir"
        ) from error
    except OSError:
        return False
    return True

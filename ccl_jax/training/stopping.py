"""Being told to stop: SIGTERM of a scheduler, spot capacity that is taken away, Ctrl-C."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

# "Try again later" of sysexits.h: the launchers begin again after it (launch/supervise.sh).
EXIT_CODE = 75


class Stopped(Exception):
    """The run was told to stop, has saved and can be continued.

    Attributes:
      step: of the checkpoint.
    """

    def __init__(self, step: int):
        super().__init__(f"told to stop; saved at step {step:,}")
        self.step = step


class StopRequest:
    """Whether the run has been told to stop."""

    def __init__(self):
        self._told = False

    def tell(self, *_: object) -> None:
        """Asks for a stop; a signal handler."""
        self._told = True

    def __bool__(self) -> bool:
        return self._told


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """A `StopRequest` that SIGTERM sets; outside the main thread none does."""
    request = StopRequest()
    try:
        previous = signal.signal(signal.SIGTERM, request.tell)
    except ValueError:  # only the main thread may set handlers
        yield request
        return
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, previous)

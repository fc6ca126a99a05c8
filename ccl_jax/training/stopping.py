"""Being told to stop: SIGTERM of a scheduler, spot capacity that is taken away, maintenance."""

import itertools
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

# "Try again later" of sysexits.h: the launchers begin again after it (launch/supervise.sh).
EXIT_CODE = 75

# Of the questions that processes ask together: never the same one twice, over several runs too.
_QUESTIONS = itertools.count(1)


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

    def reached(self) -> bool:
        """Whether to stop now; to be asked once a step.

        Several processes hear "yes" after the same step, whichever of them got the signal: JAX's
        coordination service finds a step that none of them is past, without a collective.
        """
        if jax.process_count() == 1:
            return self._told
        return multihost_utils.reached_preemption_sync_point(next(_QUESTIONS))


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """A `StopRequest` that SIGTERM sets; outside the main thread none does.

    Of several processes JAX itself catches the signal, from `jax.distributed.initialize` on.
    """
    request = StopRequest()
    try:
        previous = signal.getsignal(signal.SIGTERM)
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, request.tell)
    except ValueError:  # only the main thread may set handlers
        yield request
        return
    try:
        yield request
    finally:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, previous)

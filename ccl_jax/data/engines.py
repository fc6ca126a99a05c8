"""One function over many items: on the cores of this machine, or on a cluster by Apache Beam.

The function keeps its result itself (a file with a name of its own, written under another
name and renamed), so the same function runs where workers share nothing but the storage, and
a run that was killed goes on with the items whose files are missing.
"""

import concurrent.futures
import concurrent.futures.process
import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

LOCAL = "local"
THREADS = "threads"

Item = TypeVar("Item")
Progress = Callable[[int, int], None]


def run(
    function: Callable[[Item], Any],
    items: Iterable[Item],
    *,
    runner: str = LOCAL,
    workers: int | None = None,
    options: Sequence[str] = (),
    progress: Progress | None = None,
) -> None:
    """Calls `function` once for every item; what it returns is dropped.

    A script that uses processes of this machine needs `if __name__ == "__main__":` around what
    it does: each of them imports it anew.

    Args:
      function: picklable, as is a function of a module or a `functools.partial` of one. It may
        be called twice for an item (a cluster retries), so it must give the same file twice.
      items: picklable, one unit of work each: seconds to minutes.
      runner: "local" for processes of this machine, "threads" for threads of this process
        (work that waits, as on a network), or the name of a Beam runner: DirectRunner,
        DataflowRunner, SparkRunner, FlinkRunner, PrismRunner.
      workers: processes or threads; None for one a core. A Beam runner takes its own
        options for that.
      options: command-line options of a Beam pipeline, as in "--project=x".
      progress: told (items done, all items) after each item; by Beam only at the end.

    Raises:
      ValueError: for a bad `workers`, for `options` without a Beam runner, if a worker
        process died, or if Beam is not installed or does not know the runner.
      Exception: the first that `function` raised; items not begun are left out then.
    """
    items = list(items)
    progress = progress or (lambda done, total: None)
    if runner not in (LOCAL, THREADS):
        _run_beam(function, items, runner, options)
        progress(len(items), len(items))
        return
    if options:
        raise ValueError(f"options {list(options)} are of Beam: name a Beam runner with them")
    workers = cores() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    workers = min(workers, len(items))
    if workers <= 1:
        for done, item in enumerate(items, 1):
            function(item)
            progress(done, len(items))
    elif runner == THREADS:
        _run_pool(
            concurrent.futures.ThreadPoolExecutor(workers), function, items, workers, progress
        )
    else:
        # Spawned, since a fork of a process that runs JAX's or TensorFlow's threads can hang.
        pool = concurrent.futures.ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent
        )
        # A few wait in line, so that no worker waits for this process.
        _run_pool(pool, function, items, 2 * workers, progress)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run_pool(pool, function, items, slots, progress):
    waiting, done, patient = iter(items), 0, True
    submit = functools.partial(pool.submit, function)
    try:
        pending = set(map(submit, itertools.islice(waiting, slots)))
        while pending:
            finished, pending = concurrent.futures.wait(
                pending, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in finished:
                future.result()
                done += 1
                progress(done, len(items))
            pending |= set(map(submit, itertools.islice(waiting, len(finished))))
    except concurrent.futures.process.BrokenProcessPool as error:
        raise ValueError(
            f"a worker process died after {done} of {len(items)} items, as when memory runs out: "
            "run the same again to go on from there, with fewer workers"
        ) from error
    except KeyboardInterrupt:
        patient = False
        raise
    finally:
        pool.shutdown(wait=patient, cancel_futures=True)


def _end_with_parent():
    """Ends a worker at once when its parent is gone or Ctrl-C is pressed.

    A parent that was killed cannot tell its workers; they would wait for it for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_beam(function, items, runner, options):
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ValueError(
            f"the runner {runner!r} is of Apache Beam, which is not installed: "
            f"pip install 'ccl_jax[beam]', or use {LOCAL!r} for the cores of this machine"
        ) from error
    settings = PipelineOptions([f"--runner={runner}", *options])
    with beam.Pipeline(options=settings) as pipeline:
        # Without a reshuffle all items stay in one bundle, that is, with one worker.
        _ = pipeline | beam.Create(items) | beam.Reshuffle() | beam.Map(function)

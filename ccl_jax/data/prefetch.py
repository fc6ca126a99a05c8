"""Work done ahead by threads, its results in order."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int
) -> Iterator[Result]:
    """`map` over threads: results in the order of the items, made before they are asked for.

    Args:
      function: called in the threads; should spend its time outside Python's lock, as Pillow's
        decoding and resampling do.
      items: read as far as needed, in the caller's thread.
      workers: threads.
      ahead: items that are under way or wait to be asked for.

    Yields:
      `function(item)` for every item. What it raises is raised here, at its item's turn.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="data")
    waiting: collections.deque[Future[Result]] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

"""Which items stand for a benchmark where there is no time for all of them."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import TypeVar

from ccl_jax.evaluation.cache import digest

T = TypeVar("T")


def spread(
    things: Sequence[T],
    count: int,
    *,
    key: Callable[[T], str],
    group: Callable[[T], str] = lambda _: "",
) -> list[T]:
    """About `count` things, the same at every call and on every machine.

    Each group gets one and then its share, so that an average over groups or over things
    stays one. Within a group a digest of the keys decides; a larger count holds a smaller one.

    Args:
      things: in any order.
      count: at most so many are taken, but at least those of one key.
      key: names a thing; things of one group and key are taken together.
      group: of a thing.

    Returns:
      In the order of `things`; all of them if they are no more than `count`.
    """
    if len(things) <= count:
        return list(things)
    units: dict[str, dict[str, list[int]]] = collections.defaultdict(dict)
    for index, thing in enumerate(things):
        units[group(thing)].setdefault(key(thing), []).append(index)
    order = []
    for name, members in units.items():
        drawn = sorted(members, key=lambda member: digest(name, member))
        order += [
            (rank > 0, (rank + 0.5) / len(drawn), digest(name, member), members[member])
            for rank, member in enumerate(drawn)
        ]
    order.sort(key=lambda unit: unit[:3])
    taken = list(order[0][3])
    for *_, indices in order[1:]:
        if len(taken) + len(indices) > count:
            break
        taken += indices
    return [things[index] for index in sorted(taken)]

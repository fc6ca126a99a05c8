"""A mixture: several sources as one, each with its share of the records."""

import dataclasses
import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from ccl_jax.data.records import BadRecord, Record, Source
from ccl_jax.data.sources.registry import open_source, source_counts

# A permutation of an epoch, and sample ids of 32 bits, end about here.
_MAX_EPOCH = (1 << 31) - 1


class MixtureSource:
    """Several sources laid into one another by weight, finite and seekable.

    An epoch of the mixture is the shortest that keeps to the weights and has every record
    of every source at least once: the source that is largest for its weight is seen exactly
    once, the others repeat, a record of theirs at most once more than another. Nothing is
    left out. Without weights every record is seen exactly once.

    Which record lies at an index depends on the sizes and weights alone. The draws of a
    source are spread evenly over the indexes: of any run of them, a source has its share up
    to one record for each source. A repeated record keeps its `sample_id`, which is unique
    over the mixture: the records of the first source keep theirs, those of the next follow.

    Attributes:
      name: the names of the sources, with their shares.
      sources: the sources.
      shares: the share of each in the records of an epoch, adding to 1.
      counts: records drawn in an epoch, and the counts of each source.
    """

    def __init__(self, sources: Sequence[Mapping[str, Any]]):
        """Opens the sources.

        Args:
          sources: each the "kind" and options of a source, as `open_source` takes them, and
            its "weight", a positive number; give one to every source or to none.

        Raises:
          ValueError: if there is none, a weight is missing or not positive, a source is empty,
            or the epoch has over 2^31 records.
        """
        opened, weights = [], []
        for entry in sources:
            if not isinstance(entry, Mapping):
                raise ValueError(
                    f"a mixture's sources are dicts of kind, weight and options, got {entry!r}"
                )
            options = dict(entry)
            weights.append(options.pop("weight", None))
            if "kind" not in options:
                raise ValueError(f"a source of the mixture names no kind: {options}")
            opened.append(open_source(**options))
        self._mix(opened, weights)

    @classmethod
    def of(cls, sources: Sequence[Source], weights: Sequence[float] | None = None):
        """A mixture of sources that are open already; `weights` as above, or None."""
        mixture = cls.__new__(cls)
        mixture._mix(list(sources), list(weights or [None] * len(sources)))
        return mixture

    def _mix(self, sources, weights):
        if not sources:
            raise ValueError("a mixture needs at least one source: give sources=[{...}, ...]")
        sizes = [len(source) for source in sources]
        for source, size in zip(sources, sizes, strict=True):
            if not size:
                raise ValueError(f"{source.name} has no records: leave it out of the mixture")
        draws = _count_draws(sources, sizes, weights)
        self.sources = sources
        self._sizes, self._draws, self._total = sizes, draws, sum(draws)
        self._first_ids = [0, *itertools.accumulate(sizes)]
        # Draw r of a source comes at the time (r + 1/2) / its draws; as whole numbers
        # (2 r + 1) * step, all over one denominator.
        common = math.lcm(*draws)
        self._steps = [common // count for count in draws]
        self.shares = [count / self._total for count in draws]
        self.name = " + ".join(
            f"{source.name} ({share:.3g})"
            for source, share in zip(sources, self.shares, strict=True)
        )
        self.counts = {
            f"{place}:{source.name}: {name}": count
            for place, source in enumerate(sources)
            for name, count in source_counts(source).items()
        }

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: int) -> Record:
        """Reads one record.

        Raises:
          IndexError: if `index` is not in [0, len).
          BadRecord: as its source does, its key led by the source's name.
        """
        place, row = self.locate(index)
        source = self.sources[place]
        try:
            record = source[row]
        except BadRecord as error:
            key = f"{source.name}/{error.key}"
            raise BadRecord(key, error.reason, error.detail) from error
        sample_id = self._first_ids[place] + record.sample_id
        return dataclasses.replace(record, sample_id=sample_id, key=f"{source.name}/{record.key}")

    def locate(self, index: int) -> tuple[int, int]:
        """(number of the source, index in it) of the record at `index`; exact, nothing stored.

        Raises:
          IndexError: if `index` is not in [0, len).
        """
        index = operator.index(index)
        if not 0 <= index < self._total:
            raise IndexError(f"record {index} of {self._total}")
        # By the time of the index, a source has made its share of the draws up to 1/2. So few
        # draws of each source can be the one, and those before them come earlier for sure.
        count = len(self._draws)
        candidates, before = [], 0
        for place, (draws, step) in enumerate(zip(self._draws, self._steps, strict=True)):
            about = (2 * index + 1) * draws // (2 * self._total)
            low, high = max(about - count, 0), min(about + count + 2, draws)
            before += low
            candidates += [((2 * row + 1) * step, place, row) for row in range(low, high)]
        _, place, row = sorted(candidates)[index - before]
        return place, row % self._sizes[place]


def _count_draws(sources, sizes, weights):
    """Draws of each source in an epoch."""
    if all(weight is None for weight in weights):
        return sizes
    for source, weight in zip(sources, weights, strict=True):
        if weight is None:
            raise ValueError(f"{source.name} has no weight: give one to every source or to none")
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ValueError(f"the weight of {source.name} is {weight!r}: give a number")
        if not 0 < weight < math.inf:
            raise ValueError(f"the weight of {source.name} is {weight}: give one above 0")
    # Draws a unit of weight, such that the source with the most records a unit is seen once.
    unit = max(size / weight for size, weight in zip(sizes, weights, strict=True))
    draws = [max(round(unit * weight), size) for size, weight in zip(sizes, weights, strict=True)]
    if sum(draws) > _MAX_EPOCH:
        rarest = min(range(len(sources)), key=lambda place: weights[place] / sizes[place])
        raise ValueError(
            f"an epoch of this mixture has {sum(draws):.3g} records, since {sources[rarest].name} "
            f"has {sizes[rarest]} and the weight {weights[rarest]}: raise its weight"
        )
    return draws

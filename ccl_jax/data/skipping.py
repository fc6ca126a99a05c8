"""Unusable records: counted by reason, named in a file, and too many of them end the run."""

import collections
import json
import math
import os
import threading

from absl import logging

from ccl_jax.data.records import BadRecord

# The share is judged from this many records on; before, it says little.
_LEAST_READ = 100
_LINES_IN_LOG = 20


class SkippedRecords:
    """Counts each unusable record once; safe to use from several threads.

    The run ends when more than `max_share` of the source's records turned out unusable, or as
    soon as the records read so far leave no reasonable doubt that it will come to that.

    Attributes:
      reasons: unusable records so far, by reason.
    """

    def __init__(self, name: str, size: int, max_share: float, path: str | None = None):
        """Starts at none.

        Args:
          name: of the source, for the error.
          size: records of the source.
          max_share: of the records that may be unusable.
          path: JSON lines file to which every one is added with its reason, unless an earlier run
            named it there. The log names the first twenty alone.
        """
        self.reasons: collections.Counter[str] = collections.Counter()
        self._name, self._size, self._max_share, self._path = name, size, max_share, path
        # By index: keys may repeat between shards that each count from zero.
        self._indexes: set[int] = set()
        self._named = _indexes_in(path) if path else set()
        self._read = 0
        self._lock = threading.Lock()

    def add_usable(self) -> None:
        """Notes that a record could be used."""
        with self._lock:
            self._read += 1

    def add(self, error: BadRecord, index: int) -> None:
        """Notes that the record at `index` of the source could not be used.

        Raises:
          ValueError: if there are too many.
        """
        with self._lock:
            self._read += 1
            if index in self._indexes:
                return
            self._indexes.add(index)
            self.reasons[error.reason] += 1
            self._tell(error, index)
            if len(self._indexes) > max(self._max_share * self._size, 1):
                raise ValueError(self._message(f"of {self._size:,} records"))
            if len(self._indexes) > self._early_limit():
                raise ValueError(self._message(f"of the first {self._read:,} records read"))

    def _tell(self, error: BadRecord, index: int) -> None:
        count = len(self._indexes)
        if count <= _LINES_IN_LOG:
            logging.warning("Skipped %s (%d so far)", error, count)
        if count == _LINES_IN_LOG:
            logging.warning("Further skipped records are counted, %s", self._named_where())
        if self._path and index not in self._named:
            line = {"index": index, "key": error.key}
            line |= {"reason": error.reason, "detail": error.detail}
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _named_where(self) -> str:
        return f"and named in {self._path}" if self._path else "and not named"

    def _early_limit(self) -> float:
        # Four standard deviations over what `max_share` of the records read would be.
        expected = self._max_share * max(self._read, _LEAST_READ)
        return expected + 4 * math.sqrt(expected) + 1

    def _message(self, seen: str) -> str:
        reasons = ", ".join(f"{k} x {v}" for k, v in self.reasons.most_common(3))
        named = f"; {self._path} names them" if self._path else ""
        return (
            f"{self._name}: {len(self._indexes)} {seen} are unusable ({reasons}){named}; mend the "
            f"data, or raise config.data.max_bad_share above {self._max_share}"
        )


def _indexes_in(path: str) -> set[int]:
    indexes = set()
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            for line in file:
                try:
                    indexes.add(json.loads(line)["index"])
                except ValueError:
                    continue  # the line under way when a run was killed
    return indexes

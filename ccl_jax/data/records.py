"""What a source yields: one record per image, and the error that skips one."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@dataclasses.dataclass(frozen=True)
class Record:
    """One image with its captions, as stored: nothing decoded, drawn or tokenised.

    Attributes:
      sample_id: position in the source, stable across epochs and runs.
      key: the record's own name, used in logs.
      image: encoded bytes (JPEG, PNG or WebP).
      captions: at least one non-empty caption.
      phrases: the noun phrases of each caption, aligned with `captions`; None
        where the source has none and they have to be extracted.
      extra: what an evaluator may want (`mask`, `label`, `pairs`, ...).
    """

    sample_id: int
    key: str
    image: bytes
    captions: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...] | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class BadRecord(Exception):
    """A single record that cannot be used; the pipeline counts, names and skips it.

    Attributes:
      key: the record's name.
      reason: a short, countable reason such as "unreadable image".
      detail: what exactly was wrong, or "".
    """

    def __init__(self, key: str, reason: str, detail: str = ""):
        super().__init__(f"{key}: {reason}" + (f" ({detail})" if detail else ""))
        self.key = key
        self.reason = reason
        self.detail = detail

    def __reduce__(self):
        # The default would hand the message alone to __init__.
        return BadRecord, (self.key, self.reason, self.detail)


@runtime_checkable
class Source(Protocol):
    """A finite, seekable collection of records, safe to read from several threads.

    Record i is the same in every epoch and run, and its `sample_id` is unique within the
    source. A source may also have `counts`, a mapping of names to numbers of what it found
    and left out (see `ccl_jax.data.sources.source_counts`), and `class_names`.
    """

    name: str

    def __len__(self) -> int:
        """Number of records."""

    def __getitem__(self, index: int) -> Record:
        """The record at `index` in [0, len); raises `BadRecord` if unusable."""

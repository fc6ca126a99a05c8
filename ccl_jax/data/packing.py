"""The phrases of a group of images, packed into the group's share of the batch."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ccl_jax.data.concepts import extract_phrases
from ccl_jax.data.records import Record

# Extraction takes longer than all else that Python does for an image; sets of up to this many
# captions pay for it in the first epochs alone.
_CAPTIONS_KEPT = 1 << 16


class Chosen(NamedTuple):
    """Phrases of a group of images.

    Attributes:
      kept: (row in the group, phrase), in the order of the rows.
      dropped: those that found no room, likewise.
    """

    kept: list[tuple[int, str]]
    dropped: list[tuple[int, str]]


def phrases_of(record: Record, caption: int, concepts: str = "embedded") -> tuple[str, ...]:
    """Distinct phrases of a caption: the record's own, else extracted, else the whole caption."""
    text, given = record.captions[caption], record.phrases
    found = _extracted(text, concepts) if given is None else given[caption]
    return tuple(dict.fromkeys(found)) or (text,)


def choose(phrases: Sequence[Sequence[str]], budget: int, rng: np.random.Generator) -> Chosen:
    """Fits the phrases of a group into its budget; over it, some are dropped at random.

    Args:
      phrases: of each image.
      budget: of the group.
      rng: drawn from only if there are too many.
    """
    owned = [(row, phrase) for row, texts in enumerate(phrases) for phrase in texts]
    if len(owned) <= budget:
        return Chosen(owned, [])
    order = rng.permutation(len(owned))
    kept, dropped = sorted(order[:budget]), sorted(order[budget:])
    return Chosen([owned[i] for i in kept], [owned[i] for i in dropped])


@functools.lru_cache(maxsize=_CAPTIONS_KEPT)
def _extracted(caption: str, concepts: str) -> tuple[str, ...]:
    return extract_phrases(caption, extractor=concepts)

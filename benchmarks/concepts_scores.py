"""Phrases that a reader wrote down for 200 captions, and how well others agree with them.

tests/data/annotations/README.md says what counts as a phrase and when two are the same.
"""

import collections
import dataclasses
import functools
import json
import pathlib
import random
import re
from collections.abc import Callable, Sequence

from ccl_jax.data.sources import WebDatasetSource

ANNOTATIONS = pathlib.Path(__file__).parents[1] / "tests" / "data" / "annotations"
HALVES = ("development", "held_out")
TARS = ("flickr8k_112_dev-00000.tar", "coco_sugarcrepe_s224.tar")
_SEED = 2026


@dataclasses.dataclass(frozen=True)
class Example:
    """A caption and the phrases that a reader found in it."""

    caption: str
    phrases: tuple[str, ...]


@functools.cache
def _captions(data: str, file: str) -> dict[str, tuple[str, ...]]:
    """Captions of a tar by key."""
    return {record.key: record.captions for record in WebDatasetSource(pathlib.Path(data) / file)}


def draw(data: str) -> dict[str, list[tuple[str, str, int]]]:
    """The places of the captions of each half, (file, key, index): the draw as it was made."""
    rng = random.Random(_SEED)
    halves: dict[str, list] = {half: [] for half in HALVES}
    for file in TARS:
        captions = _captions(data, file)
        for number, key in enumerate(rng.sample(sorted(captions), 100)):
            halves[HALVES[number >= 50]].append((file, key, rng.randrange(len(captions[key]))))
    return halves


def read_annotations(half: str, data: str) -> list[Example]:
    """The examples of a half; the captions come from the tars in `data`."""
    items = json.loads((ANNOTATIONS / f"{half}.json").read_text(encoding="utf-8"))
    return [
        Example(_captions(data, item["file"])[item["key"]][item["caption"]], tuple(item["phrases"]))
        for item in items
    ]


def normalise(phrase: str) -> str:
    """Lower case, without punctuation and a leading article.

    >>> normalise("The snow-covered ground.")
    'snow covered ground'
    """
    return re.sub(r"^(?:an?|the) ", "", " ".join(re.findall(r"\w+", phrase.lower())))


def head(phrase: str) -> str:
    """The last word."""
    return normalise(phrase).rpartition(" ")[2]


def score(
    examples: Sequence[Example],
    found: Sequence[Sequence[str]],
    same: Callable[[str], str] = normalise,
) -> dict[str, float]:
    """Precision and recall in percent over all phrases; phrases match if `same` of them do.

    Within a caption a phrase of the reader is matched at most once.
    """
    hits = given = wanted = 0
    for example, phrases in zip(examples, found, strict=True):
        # Two phrases that differ in the article alone are one.
        left = collections.Counter(map(same, dict.fromkeys(map(normalise, example.phrases))))
        right = collections.Counter(map(same, dict.fromkeys(map(normalise, phrases))))
        hits += (left & right).total()
        wanted += left.total()
        given += right.total()
    return {"precision": 100 * hits / max(given, 1), "recall": 100 * hits / max(wanted, 1)}


def mistakes(examples: Sequence[Example], found: Sequence[Sequence[str]]) -> list[str]:
    """A line for each caption with a wrong or a missing phrase."""
    lines = []
    for example, phrases in zip(examples, found, strict=True):
        wanted, given = set(map(normalise, example.phrases)), set(map(normalise, phrases))
        if wanted != given:
            lines.append(
                f"{example.caption}\n    wrong: {sorted(given - wanted)} "
                f"missing: {sorted(wanted - given)}"
            )
    return lines

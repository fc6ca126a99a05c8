"""What was found and dropped, and what a training batch will lose and repeat."""

import collections
import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ccl_jax.data.concepts.extractors import Extraction

# A shard reports this many of its phrases with their counts, and all images together this
# many lists of phrases for the statistics of batches.
_FREQUENT = 2_000
SAMPLE = 50_000
_BATCHES = 64


@dataclasses.dataclass
class Statistics:
    """Counts over records; those of shards add up.

    Attributes:
      records: images with captions that could be read.
      captions: their captions.
      phrases: phrases kept.
      lengths: number of phrases -> captions with so many.
      frequent: phrase -> occurrences; of each shard only its most frequent.
      dropped: name of a filter -> phrases that it dropped.
      skipped: [key, reason, detail] of each unusable record.
      sample: of some images, the phrases of one caption, or the caption if it has none.
    """

    records: int = 0
    captions: int = 0
    phrases: int = 0
    lengths: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    frequent: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    dropped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    skipped: list[list[str]] = dataclasses.field(default_factory=list)
    sample: list[list[str]] = dataclasses.field(default_factory=list)

    def add(
        self, captions: Sequence[str], found: Sequence[Extraction], drawn: int | None = None
    ) -> None:
        """Adds a record; `drawn` is the caption that stands for it in the sample."""
        self.records += 1
        self.captions += len(captions)
        for extraction in found:
            self.phrases += len(extraction.kept)
            self.lengths[len(extraction.kept)] += 1
            self.frequent.update(extraction.kept)
            self.dropped.update(name for _, name in extraction.dropped)
        if drawn is not None:
            self.sample.append(list(found[drawn].kept) or [captions[drawn][:200]])

    def merge(self, other: "Statistics") -> None:
        """Adds the counts of another shard."""
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if isinstance(mine, collections.Counter):
                mine.update(theirs)
            elif isinstance(mine, list):
                mine.extend(theirs)
            else:
                setattr(self, field.name, mine + theirs)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return values | {"frequent": dict(self.frequent.most_common(_FREQUENT))}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Statistics":
        """What `to_json` gave, after a trip through a file."""
        lengths = {int(length): count for length, count in values["lengths"].items()}
        return cls(
            **values
            | {name: collections.Counter(values[name]) for name in ("frequent", "dropped")}
            | {"lengths": collections.Counter(lengths)}
        )


def in_sample(index: int, records: int) -> bool:
    """Whether a record is one of about `SAMPLE`, spread evenly and the same in every run."""
    return index * 2_654_435_761 % 2**32 < 2**32 * SAMPLE / max(records, 1)


def batch_statistics(
    sample: Sequence[Sequence[str]],
    *,
    batch_size: int,
    phrases_per_image: float = 4.0,
    phrase_group: int = 8,
) -> dict[str, float]:
    """What packing does to batches drawn from a sample, as the training pipeline packs them.

    Args:
      sample: phrases of one caption for each image.
      batch_size: images; all of the sample's if it has fewer.
      phrases_per_image: budget of phrases, on average over a group.
      phrase_group: images that share a budget.

    Returns:
      Means over up to 64 batches: `images`, `phrases` (packed), `losing` (images that lose a
      phrase), `dropped` (phrases without room), `padding` (unused places), `repeated` (packed
      phrases that another image of the batch has too) and `distinct` (texts of phrases).
    """
    rng = np.random.default_rng(0)
    size = min(batch_size, len(sample)) // phrase_group * phrase_group
    if not size:
        return {}
    budget = round(phrases_per_image * phrase_group)
    totals: collections.Counter[str] = collections.Counter()
    batches = min(_BATCHES, math.ceil(len(sample) / size) * 4)
    for _ in range(batches):
        images = rng.permutation(len(sample))[:size]
        packed = []
        for start in range(0, size, phrase_group):
            group = images[start : start + phrase_group]
            owned = [(image, phrase) for image in group for phrase in dict.fromkeys(sample[image])]
            if len(owned) > budget:
                order = rng.permutation(len(owned))
                totals["losing"] += len({owned[i][0] for i in order[budget:]})
                totals["dropped"] += len(owned) - budget
                owned = [owned[i] for i in order[:budget]]
            packed += owned
        texts = collections.Counter(phrase for _, phrase in packed)
        totals["images"] += size
        totals["phrases"] += len(packed)
        totals["padding"] += size // phrase_group * budget - len(packed)
        totals["repeated"] += sum(count for count in texts.values() if count > 1)
        totals["distinct"] += len(texts)
    names = ("images", "phrases", "losing", "dropped", "padding", "repeated", "distinct")
    return {name: totals[name] / batches for name in names}


def format_statistics(statistics: Statistics, **batch: Any) -> str:
    """A summary for a terminal; `batch` are the options of `batch_statistics`."""
    captions = max(statistics.captions, 1)
    reasons = collections.Counter(reason for _, reason, _ in statistics.skipped)
    lines = [
        f"{statistics.records:,} images, {statistics.captions:,} captions, "
        f"{statistics.phrases:,} phrases ({statistics.phrases / captions:.2f} a caption)",
        f"Unusable records: {len(statistics.skipped):,}{_reasons(reasons.most_common())}",
        f"Captions without phrases: {statistics.lengths[0]:,} "
        f"({statistics.lengths[0] / captions:.1%}); each stands as one phrase in training",
        "",
        "Phrases in a caption:",
        *_histogram(statistics.lengths),
        "",
        f"Dropped: {sum(statistics.dropped.values()):,}"
        + _reasons(statistics.dropped.most_common()),
        "Most frequent"
        + _reasons((repr(phrase), count) for phrase, count in statistics.frequent.most_common(20)),
    ]
    means = batch_statistics(statistics.sample, **batch)
    if means:
        shares = {
            name: means[name] / max(means[whole], 1)
            for name, whole in (("losing", "images"), ("repeated", "phrases"))
        }
        lines += [
            "",
            f"A batch of {means['images']:.0f} images, one caption each, on average: "
            f"{means['phrases']:.0f} phrases, {means['padding']:.0f} places empty; "
            f"{means['losing']:.1f} images ({shares['losing']:.1%}) lose phrases, "
            f"{means['dropped']:.1f} phrases in all; {means['repeated']:.0f} phrases "
            f"({shares['repeated']:.1%}) are those of another image too, "
            f"{means['distinct']:.0f} distinct",
        ]
    return "\n".join(lines)


def _reasons(counts: Iterable[tuple[str, int]]) -> str:
    text = ", ".join(f"{name} x {count:,}" for name, count in counts)
    return f": {text}" if text else ""


def _histogram(lengths: collections.Counter[int], bins: int = 10) -> list[str]:
    """A bar for each number of phrases; the last holds all greater ones."""
    total = max(sum(lengths.values()), 1)
    binned: collections.Counter[int] = collections.Counter()
    for length, count in lengths.items():
        binned[min(length, bins)] += count
    return [
        f"  {length:2}{'+' if length == bins else ' '} {binned[length] / total:6.1%} "
        + "#" * round(50 * binned[length] / total)
        for length in range(max(binned, default=0) + 1)
    ]

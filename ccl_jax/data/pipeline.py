"""From a source to training batches: order, caption draw, phrases, tokens, pixels.

A batch is a pure function of (seed, step), whatever the number of workers and hosts. Every epoch
is a permutation of the source (`order.py`), and batches are cut from the epochs laid end to end,
so that no record is left out and every host has a batch for every step. So the position in the
data is the step (`position.py`).

A record that cannot be used leaves its place to another one of the same epoch, far from it in the
order: the order of all others stays as it was, on one host or many, and each of them still comes
once an epoch; the stand-ins come a second time.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging

from ccl_jax.data import order
from ccl_jax.data.images import MAX_PIXELS, transform_image
from ccl_jax.data.packing import choose, phrases_of
from ccl_jax.data.position import Position, fingerprint
from ccl_jax.data.prefetch import ordered_map
from ccl_jax.data.records import BadRecord, Record, Source
from ccl_jax.data.skipping import SkippedRecords
from ccl_jax.data.text import Tokenizer

Batch = dict[str, np.ndarray]

# Batches that are prepared while another one is in use.
_BATCHES_AHEAD = 2
_MOST_THREADS = 32
# Records that are tried for one place. At the default share of bad records three are plenty.
_MOST_ATTEMPTS = 200
# Extractors that keep up with a training pipeline.
_CONCEPTS = ("embedded", "spacy")


@dataclasses.dataclass(frozen=True)
class PipelineOptions:
    """What a batch looks like.

    Attributes:
      batch_size: images in a global batch.
      image_size: side of the square images in pixels.
      text_length: tokens of a caption.
      phrase_length: tokens of a phrase.
      phrases_per_image: budget of phrases, on average over a group of images; 0 for none.
      phrase_group: images that share a budget. A device's share of the batch must be a
        multiple of it, so that a phrase lies on the device of its image.
      transform: a name in `images.TRANSFORMS`.
      crop_scale: least and greatest share of the area that a random crop keeps.
      resample: a name in `images.RESAMPLE`.
      crop_share: side of a centre crop, as a share of the shortest edge.
      max_pixels: width x height of the largest image that is decoded.
      concepts: who finds phrases where the source has none: "embedded" or "spacy".
      max_bad_share: share of the records that may be unusable before the run stops.
      workers: threads that prepare groups of images; 0 for one a core, 32 at most.
      seed: of order, caption draw, crops and phrase draw.
    """

    batch_size: int
    image_size: int
    text_length: int
    phrase_length: int = 16
    phrases_per_image: float = 4.0
    phrase_group: int = 8
    transform: str = "random_resized_crop"
    crop_scale: tuple[float, float] = (0.9, 1.0)
    resample: str = "bicubic"
    crop_share: float = 1.0
    max_pixels: int = MAX_PIXELS
    concepts: str = "embedded"
    max_bad_share: float = 0.05
    workers: int = 0
    seed: int = 0

    def __post_init__(self):
        if self.batch_size < 1 or self.batch_size % self.phrase_group:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide into groups of phrase_group = "
                f"{self.phrase_group} images; choose a multiple"
            )
        if self.concepts not in _CONCEPTS:
            raise ValueError(
                f"concepts = {self.concepts!r}; use {' or '.join(_CONCEPTS)} here, or store the "
                "phrases first: python -m ccl_jax.tools.concepts --extractor llm"
            )
        if self.workers < 0:
            raise ValueError(f"workers = {self.workers}; give a number of threads, or 0")

    @property
    def threads(self) -> int:
        """Threads that `workers` asks for."""
        # Beyond some number they wait for Python's lock rather than work.
        return self.workers or min(len(os.sched_getaffinity(0)), _MOST_THREADS)

    @property
    def groups(self) -> int:
        """Groups of images in a global batch."""
        return self.batch_size // self.phrase_group

    @property
    def group_phrases(self) -> int:
        """Phrases that a group of images has room for."""
        return round(self.phrases_per_image * self.phrase_group)


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image of a batch, before it is packed.

    Attributes:
      record: where it comes from.
      image: uint8 (h, w, 3).
      caption: the one that was drawn.
      phrases: of the caption; those that found room in the budget.
      dropped: the others.
    """

    record: Record
    image: np.ndarray
    caption: str
    phrases: tuple[str, ...]
    dropped: tuple[str, ...]


class TrainingBatches:
    """An endless, seekable stream of batches.

    Attributes:
      source: where the records come from.
      tokenizer: of captions and phrases.
      options: what a batch looks like.
      groups: the groups of every global batch that are prepared here, by number.
      dropped_phrases: phrases that found no room in their group's budget so far.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        options: PipelineOptions,
        *,
        groups: Sequence[int] | None = None,
        skipped_path: str | None = None,
    ):
        """Reads nothing yet.

        Args:
          source: where the records come from.
          tokenizer: of captions and phrases.
          options: what a batch looks like.
          groups: the groups of `options.phrase_group` images that this host prepares of every
            batch, in [0, options.groups); all by default. Hosts that share the groups out among
            them make together what one host makes alone.
          skipped_path: JSON lines file that names every unusable record.

        Raises:
          ValueError: if the source is empty, or a group is not in a batch.
        """
        if len(source) == 0:
            raise ValueError(f"{source.name} has no records; check its path and split")
        if len(source) < options.batch_size:
            logging.warning(
                "%s has %d records, fewer than a batch of %d: every batch repeats some, and a "
                "contrastive loss takes a repeated image for a negative of itself",
                *(source.name, len(source), options.batch_size),
            )
        self.source = source
        self.tokenizer = tokenizer
        self.options = options
        self.groups = tuple(range(options.groups) if groups is None else groups)
        if not self.groups or not set(self.groups) <= set(range(options.groups)):
            raise ValueError(
                f"groups {self.groups} are not among the {options.groups} of a batch of "
                f"{options.batch_size} in groups of {options.phrase_group}"
            )
        self.dropped_phrases = 0
        self._skipped = SkippedRecords(
            source.name, len(source), options.max_bad_share, skipped_path
        )

    @property
    def skipped(self) -> dict[str, int]:
        """Unusable records met here so far, by reason; the most frequent first."""
        return dict(self._skipped.reasons.most_common())

    @functools.cached_property
    def _fingerprint(self) -> int:
        return fingerprint(self.source)

    def position(self, step: int) -> Position:
        """Where the data stands after `step` batches, to be saved with a checkpoint."""
        epoch, place = divmod(step * self.options.batch_size, len(self.source))
        return Position(
            step=step,
            epoch=epoch,
            place=place,
            batch_size=self.options.batch_size,
            seed=self.options.seed,
            source=self.source.name,
            records=len(self.source),
            fingerprint=self._fingerprint,
        )

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of the steps [start, stop), each a pure function of its step.

        Yields:
          `image` (b, h, w, 3) uint8, `text` (b, t) int32, `sample_id` (b,) int32 and, unless
          the budget is 0, `phrase_text` (p, t_p) int32, `phrase_image` (p,) int32: rows of the
          global batch, -1 for padding. Of a global batch these are the rows of `groups`.

        Raises:
          ValueError: if too many records are unusable.
        """
        per_batch, workers = len(self.groups), self.options.threads
        done = ordered_map(
            self._fill,
            self._work(start, stop),
            workers=workers,
            ahead=_BATCHES_AHEAD * per_batch + workers,
        )
        for number, (batch, dropped) in enumerate(done, 1):
            self.dropped_phrases += dropped
            if number % per_batch == 0:
                yield batch

    def samples(self, step: int) -> list[Sample]:
        """The images of a batch with their texts, for people to look at.

        Raises:
          ValueError: if too many records are unusable.
        """
        first = step * self.options.groups
        return [sample for group in self.groups for sample in self._samples(first + group)]

    def _work(self, start: int, stop: int) -> Iterator[tuple[Batch, int, int]]:
        """(batch to write to, which of its groups, number of the group in the order)."""
        for step in range(start, stop):
            batch = self._empty_batch()
            for slot, group in enumerate(self.groups):
                yield batch, slot, step * self.options.groups + group

    def _empty_batch(self) -> Batch:
        options, tokens = self.options, self.tokenizer.pad_id
        images = len(self.groups) * options.phrase_group
        size = options.image_size
        batch = {
            "image": np.empty((images, size, size, 3), np.uint8),
            "text": np.full((images, options.text_length), tokens, np.int32),
            "sample_id": np.empty(images, np.int32),
        }
        if options.group_phrases:
            phrases = len(self.groups) * options.group_phrases
            batch["phrase_text"] = np.full((phrases, options.phrase_length), tokens, np.int32)
            batch["phrase_image"] = np.full(phrases, -1, np.int32)
        return batch

    def _fill(self, work: tuple[Batch, int, int]) -> tuple[Batch, int]:
        """Writes a group of the order into its rows of a batch; returns the phrases dropped."""
        batch, slot, index = work
        options = self.options
        samples = self._samples(index)
        rows = slice(slot * options.phrase_group, (slot + 1) * options.phrase_group)
        for image, sample in zip(batch["image"][rows], samples, strict=True):
            image[...] = sample.image
        batch["text"][rows] = self.tokenizer([s.caption for s in samples], options.text_length)
        batch["sample_id"][rows] = [sample.record.sample_id for sample in samples]
        if not options.group_phrases:
            return batch, 0
        first_row = index % options.groups * options.phrase_group
        owned = [(row, text) for row, s in enumerate(samples, first_row) for text in s.phrases]
        start = slot * options.group_phrases
        rows = slice(start, start + len(owned))
        batch["phrase_text"][rows] = self.tokenizer([p for _, p in owned], options.phrase_length)
        batch["phrase_image"][rows] = [row for row, _ in owned]
        return batch, sum(len(sample.dropped) for sample in samples)

    def _samples(self, index: int) -> list[Sample]:
        """The images of a group of the order."""
        options = self.options
        rng = np.random.default_rng((options.seed, 1, index))
        start = index * options.phrase_group
        drawn = [self._usable(start + offset, rng) for offset in range(options.phrase_group)]
        kept = dropped = [()] * len(drawn)
        if options.group_phrases:
            phrases = [phrases_of(record, n, options.concepts) for record, n, _ in drawn]
            chosen = choose(phrases, options.group_phrases, rng)
            kept, dropped = (
                [tuple(text for owner, text in part if owner == row) for row in range(len(drawn))]
                for part in chosen
            )
        return [
            Sample(record, image, record.captions[caption], kept[row], dropped[row])
            for row, (record, caption, image) in enumerate(drawn)
        ]

    def _usable(self, position: int, rng: np.random.Generator) -> tuple[Record, int, np.ndarray]:
        """The record at a position of the order, or its stand-in; its caption and its pixels."""
        size, seed = len(self.source), self.options.seed
        index, epoch = order.record_at(seed, position, size)
        for attempt in range(1, min(size, _MOST_ATTEMPTS) + 1):
            try:
                record = self.source[index]
                image = self._image(record, rng)
            except BadRecord as error:
                self._skipped.add(error, index)
                index = order.stand_in(seed, position, size, attempt)
                continue
            self._skipped.add_usable()
            return record, self._caption(record, epoch), image
        raise ValueError(
            f"{self.source.name}: none of {attempt} records tried in a row can be used "
            f"({', '.join(self.skipped)}); mend the data"
        )

    def _image(self, record: Record, rng: np.random.Generator) -> np.ndarray:
        return transform_image(
            record.image,
            record.key,
            size=self.options.image_size,
            transform=self.options.transform,
            rng=rng,
            scale=self.options.crop_scale,
            resample=self.options.resample,
            crop_share=self.options.crop_share,
            max_pixels=self.options.max_pixels,
        )

    def _caption(self, record: Record, epoch: int) -> int:
        """One caption an epoch; all of them in as many epochs, from a start of its own."""
        offset = order.mix(self.options.seed, 2, record.sample_id) >> 32
        return (offset + epoch) % len(record.captions)

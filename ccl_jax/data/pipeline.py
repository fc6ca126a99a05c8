"""From a source to training batches: order, caption draw, phrases, tokens, pixels.

The order is a pure function of (seed, step): every epoch is a permutation of the source,
drawn from the seed and the epoch's number, and batches are cut from the epochs laid end to
end. So the position in the data is the step, whatever the number of workers.
"""

import collections
import dataclasses
import functools
import threading
from collections.abc import Iterator

import numpy as np
from absl import logging

from ccl_jax.data.concepts import extract_phrases
from ccl_jax.data.images import transform_image
from ccl_jax.data.records import BadRecord, Record, Source
from ccl_jax.data.text import Tokenizer

Batch = dict[str, np.ndarray]


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
      max_bad_share: share of the records that may be unusable before the run stops.
      workers: groups prepared in parallel.
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
    max_bad_share: float = 0.05
    workers: int = 2
    seed: int = 0

    def __post_init__(self):
        if self.batch_size < 1 or self.batch_size % self.phrase_group:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide into groups of phrase_group = "
                f"{self.phrase_group} images; choose a multiple"
            )

    @property
    def group_phrases(self) -> int:
        """Phrases that a group of images has room for."""
        return round(self.phrases_per_image * self.phrase_group)


class TrainingBatches:
    """An endless, seekable stream of batches.

    Attributes:
      source: where the records come from.
      tokenizer: of captions and phrases.
      options: what a batch looks like.
      skipped: unusable records met so far, by reason.
      dropped_phrases: phrases that found no room in their group's budget so far.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, options: PipelineOptions):
        if len(source) == 0:
            raise ValueError(f"{source.name} has no records; check its path and split")
        self.source = source
        self.tokenizer = tokenizer
        self.options = options
        self.dropped_phrases = 0
        self.skipped: collections.Counter[str] = collections.Counter()
        self._bad: set[str] = set()
        self._lock = threading.Lock()
        self._error: Exception | None = None

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of the steps [start, stop), each a pure function of its step.

        Yields:
          `image` (b, h, w, 3) uint8, `text` (b, t) int32, `sample_id` (b,) int32 and, unless
          the budget is 0, `phrase_text` (p, t_p) int32, `phrase_image` (p,) int32 (-1 for
          padding).

        Raises:
          ValueError: if too many records are unusable.
        """
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
        groups = self.options.batch_size // self.options.phrase_group
        example = self._group(start * groups)
        names = list(example)

        def load(index):
            values = tf.numpy_function(
                self._guarded_group, [index], [example[name].dtype for name in names]
            )
            for name, value in zip(names, values, strict=True):
                value.set_shape(example[name].shape)
            return dict(zip(names, values, strict=True))

        dataset = (
            tf.data.Dataset.range(start * groups, stop * groups)
            .map(load, num_parallel_calls=self.options.workers, deterministic=True)
            .batch(groups)
            .prefetch(2)
        )
        try:
            for batch in dataset.as_numpy_iterator():
                yield self._merge(batch)
        except tf.errors.OpError:
            # TensorFlow reports an exception of Python's as text; ours is kept.
            if self._error is None:
                raise
            raise self._error from None

    def _guarded_group(self, index):
        try:
            return list(self._group(int(index)).values())
        except Exception as error:
            self._error = error
            raise

    def _merge(self, batch: Batch) -> Batch:
        """Joins groups: (groups, g, ...) to (groups * g, ...), phrase rows made global."""
        groups = len(batch["image"])
        if "phrase_image" in batch:
            offset = np.arange(groups, dtype=np.int32)[:, None] * self.options.phrase_group
            rows = batch["phrase_image"]
            batch["phrase_image"] = np.where(rows >= 0, rows + offset, -1).astype(np.int32)
            self.dropped_phrases += int(batch.pop("dropped").sum())
        return {name: value.reshape(-1, *value.shape[2:]) for name, value in batch.items()}

    def _group(self, index: int) -> Batch:
        """The images of one group with their captions and phrases."""
        options = self.options
        rng = np.random.default_rng((options.seed, 1, index))
        start = index * options.phrase_group
        images, captions, ids, phrases = [], [], [], []
        for position in range(start, start + options.phrase_group):
            record, image, epoch = self._usable(position, rng)
            chosen = self._caption(record, epoch)
            images.append(image)
            captions.append(record.captions[chosen])
            ids.append(record.sample_id)
            phrases.append(_phrases(record, chosen) if options.group_phrases else ())
        group = {
            "image": np.stack(images),
            "text": self.tokenizer(captions, options.text_length),
            "sample_id": np.array(ids, np.int32),
        }
        if options.group_phrases:
            group.update(self._pack(phrases, rng))
        return group

    def _pack(self, phrases: list[tuple[str, ...]], rng: np.random.Generator) -> Batch:
        """Packs the phrases of a group into its budget; over it, some are dropped at random."""
        owned = [(row, phrase) for row, texts in enumerate(phrases) for phrase in texts]
        budget = self.options.group_phrases
        dropped = max(len(owned) - budget, 0)
        if dropped:
            owned = [owned[i] for i in sorted(rng.permutation(len(owned))[:budget])]
        shape = (budget, self.options.phrase_length)
        text = np.full(shape, self.tokenizer.pad_id, np.int32)
        image = np.full(budget, -1, np.int32)
        text[: len(owned)] = self.tokenizer([p for _, p in owned], self.options.phrase_length)
        image[: len(owned)] = [row for row, _ in owned]
        return {
            "phrase_text": text,
            "phrase_image": image,
            "dropped": np.array(dropped, np.int32),
        }

    def _usable(self, position: int, rng) -> tuple[Record, np.ndarray, int]:
        """The record at a position of the order, or the next one that can be read."""
        size = len(self.source)
        for ahead in range(size):
            epoch, place = divmod(position + ahead, size)
            index = int(_permutation(self.options.seed, epoch, size)[place])
            try:
                record = self.source[index]
                return record, self._image(record, rng), epoch
            except BadRecord as error:
                self._skip(error)
        raise ValueError(f"{self.source.name}: none of {size} records can be read; see the log")

    def _image(self, record: Record, rng) -> np.ndarray:
        return transform_image(
            record.image,
            record.key,
            size=self.options.image_size,
            transform=self.options.transform,
            rng=rng,
            scale=self.options.crop_scale,
            resample=self.options.resample,
            crop_share=self.options.crop_share,
        )

    def _caption(self, record: Record, epoch: int) -> int:
        """One caption an epoch; all of them in as many epochs, from a start of its own."""
        offset = np.random.default_rng((self.options.seed, 2, record.sample_id)).integers(1 << 16)
        return int(offset + epoch) % len(record.captions)

    def _skip(self, error: BadRecord) -> None:
        with self._lock:
            if error.key in self._bad:
                return
            self._bad.add(error.key)
            self.skipped[error.reason] += 1
            logging.warning("Skipped %s (%d so far)", error, len(self._bad))
            limit = max(self.options.max_bad_share * len(self.source), 1)
            if len(self._bad) > limit:
                reasons = ", ".join(f"{k} x {v}" for k, v in self.skipped.most_common(3))
                raise ValueError(
                    f"{self.source.name}: {len(self._bad)} of {len(self.source)} records are "
                    f"unusable ({reasons}); mend the data, or raise config.data.max_bad_share "
                    f"above {self.options.max_bad_share}"
                )


def _phrases(record: Record, caption: int) -> tuple[str, ...]:
    """Distinct phrases of a caption: its own, else extracted, else the whole caption."""
    text = record.captions[caption]
    found = record.phrases[caption] if record.phrases is not None else extract_phrases(text)
    return tuple(dict.fromkeys(found)) or (text,)


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, 0, epoch)).permutation(size)

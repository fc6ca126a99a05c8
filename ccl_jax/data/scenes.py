"""Scenes: the embedded data set. Drawn on the spot, deterministic, no download.

Splits:
  train: 2-4 objects; the pairs in `HELD_OUT` never occur.
  validation: the same distribution.
  compositional: 2-4 objects, one of them a colour-shape pair never seen in training.
  objects: one object of any of the 64 colour-shape classes, for zero-shot classification.
"""

import concurrent.futures
import contextlib
import functools
import io
import multiprocessing
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from ccl_jax.data import scene_examples
from ccl_jax.data.records import Record

SPLIT_SIZES = {"train": 20_000, "validation": 1_000, "compositional": 1_000, "objects": 1_000}
_CHUNK = 500
_SEED = 0
# name -> (one in how many scenes, pixels between the places that an object may have)
_SIZES = {"full": (1, 8), "mini": (50, 8), "free": (1, 1)}


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Two to four coloured shapes on a cluttered background, with exact annotations."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(
            name="full",
            description="48 x 48 pixels, 23,000 scenes; objects lie on a lattice of 8 pixels, "
            "so that a small model learns their shapes in minutes.",
        ),
        tfds.core.BuilderConfig(name="mini", description="A fiftieth of it, for tests."),
        tfds.core.BuilderConfig(
            name="free", description="As full, with objects at any pixel: needs longer training."
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        size = scene_examples.IMAGE_SIZE
        texts = tfds.features.Sequence(tfds.features.Text())
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
                "mask": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
                "captions": texts,
                "phrases": tfds.features.Sequence(texts),
                "object_labels": tfds.features.Sequence(
                    tfds.features.ClassLabel(names=scene_examples.CLASS_NAMES)
                ),
                "object_phrases": texts,
                "pair_categories": texts,
                "pair_captions": texts,
                "pair_negatives": texts,
            }
        )
        return self.dataset_info_from_configs(description=__doc__, features=features)

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager
        share, _ = _SIZES[self.builder_config.name]
        return {
            split: self._generate_examples(split, size // share)
            for split, size in SPLIT_SIZES.items()
        }

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        chunks = [range(i, min(i + _CHUNK, count)) for i in range(0, count, _CHUNK)]
        _, lattice = _SIZES[self.builder_config.name]
        make = functools.partial(scene_examples.make_examples, _SEED, split, lattice)
        if len(chunks) < 8:
            for chunk in map(make, chunks):
                yield from chunk
            return
        # Spawned, since a fork of a process that runs TensorFlow's threads can hang.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(mp_context=context) as pool:
            for chunk in pool.map(make, chunks):
                yield from chunk


class ScenesSource:
    """A split of the scenes data set as records; drawn on first use.

    Besides the captions and their true phrases, a record's `extra` holds `mask` (h, w)
    uint8 (0 background, k = object k), `object_phrases` and `object_labels` (of object k at
    k - 1), `pairs` of (category, caption, negative), and for scenes of one object `label`.
    """

    class_names = scene_examples.CLASS_NAMES

    def __init__(self, split: str, *, data_dir: str | None = None, size: str = "full"):
        """Opens a split.

        Args:
          split: "train", "validation", "compositional" or "objects".
          data_dir: TFDS folder; None for TFDS's own default ($TFDS_DATA_DIR or
            ~/tensorflow_datasets).
          size: "full", "mini" (a fiftieth of it) or "free" (objects at any pixel).

        Raises:
          ValueError: for an unknown split or size.
        """
        if split not in SPLIT_SIZES:
            raise ValueError(f"scenes has no split {split!r}; choose from {', '.join(SPLIT_SIZES)}")
        if size not in _SIZES:
            raise ValueError(f"scenes has no size {size!r}; choose from {', '.join(_SIZES)}")
        self.name = f"scenes/{split}" if size == "full" else f"scenes-{size}/{split}"
        # ArrayRecord, unlike TFRecord, can be read at any index.
        builder = Scenes(config=size, data_dir=data_dir, file_format="array_record")
        if not builder.data_path.exists():
            print(f"Drawing the scenes data set into {builder.data_path}, once", file=sys.stderr)
        with _quiet():
            builder.download_and_prepare()
        # A record holds the image's bytes; Pillow decodes a mask far faster than TFDS does.
        raw = {"image": tfds.decode.SkipDecoding(), "mask": tfds.decode.SkipDecoding()}
        self._examples = builder.as_data_source(split, decoders=raw)

    def __len__(self) -> int:
        return len(self._examples)

    @functools.cache  # noqa: B019 - a source lives as long as the run, and is small
    def __getitem__(self, index: int) -> Record:
        example = self._examples[index]
        pairs = (_texts(example[f"pair_{k}"]) for k in ("categories", "captions", "negatives"))
        extra: dict[str, Any] = {
            "mask": np.asarray(Image.open(io.BytesIO(example["mask"]))),
            "object_labels": tuple(int(label) for label in example["object_labels"]),
            "object_phrases": _texts(example["object_phrases"]),
            "pairs": tuple(zip(*pairs, strict=True)),
        }
        if len(extra["object_labels"]) == 1:
            extra["label"] = extra["object_labels"][0]
        return Record(
            sample_id=index,
            key=f"{self.name}/{index}",
            image=example["image"],
            captions=_texts(example["captions"]),
            phrases=tuple(_texts(phrases) for phrases in example["phrases"]),
            extra=extra,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS from telling of downloads, of which there are none, and deprecations."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)


def _texts(values) -> tuple[str, ...]:
    return tuple(value.decode() for value in values)

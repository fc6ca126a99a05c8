"""Scenes: the embedded data set. Drawn on the spot, deterministic, no download.

Splits:
  train: 2-4 objects; the pairs in `HELD_OUT` never occur.
  validation: the same distribution.
  compositional: 2-4 objects, one of them a colour-shape pair never seen in training.
  objects: one object of any of the 64 colour-shape classes, for zero-shot classification.
"""

import concurrent.futures
import functools
import multiprocessing
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ccl_jax.data import scene_examples
from ccl_jax.data.records import Record

SPLIT_SIZES = {"train": 20_000, "validation": 1_000, "compositional": 1_000, "objects": 1_000}
_CHUNK = 500
_SEED = 0


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Two to four coloured shapes on a cluttered background, with exact annotations."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="full", description="48 x 48 pixels, 23,000 scenes."),
        tfds.core.BuilderConfig(name="mini", description="A fiftieth of it, for tests."),
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
        share = 50 if self.builder_config.name == "mini" else 1
        return {
            split: self._generate_examples(split, size // share)
            for split, size in SPLIT_SIZES.items()
        }

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        chunks = [range(i, min(i + _CHUNK, count)) for i in range(0, count, _CHUNK)]
        make = functools.partial(scene_examples.make_examples, _SEED, split)
        if len(chunks) < 8:
            for chunk in map(make, chunks):
                yield from chunk
            return
        # Spawned, since a fork of a process that runs TensorFlow's threads can hang.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(mp_context=context) as pool:
            for chunk in pool.map(make, chunks):
                yield from chunk

"""One example of the scenes data set: drawn, described and encoded.

Apart from the builder, so that the processes that draw need not import TensorFlow.
"""

import io
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from ccl_jax.data import scene_captions, scene_drawing

IMAGE_SIZE = 48
CLASSES = tuple((c, s) for c in scene_drawing.COLOR_NAMES for s in scene_drawing.SHAPES)
CLASS_NAMES = tuple(f"{color} {shape}" for color, shape in CLASSES)


def make_example(seed: int, split: str, index: int, lattice: int = 8) -> dict[str, Any]:
    """Example `index` of a split: a pure function of its arguments.

    Args:
      seed: of the whole data set.
      split: a split of `ccl_jax.data.scenes.Scenes`.
      index: of the example in the split.
      lattice: pixels between the places that an object may have.

    Returns:
      The features of `ccl_jax.data.scenes.Scenes`; images as PNG in file objects.
    """
    rng = random.Random(f"{seed}/{split}/{index}")
    if split == "objects":
        pairs = [CLASSES[index % len(CLASSES)]]
    else:
        count = rng.choices((2, 3, 4), weights=(4, 3, 3))[0]
        pairs = scene_drawing.sample_pairs(rng, count, held_out=split == "compositional")
    objects = scene_drawing.sample_objects(rng, IMAGE_SIZE, pairs, lattice=lattice)
    image, mask = scene_drawing.draw_scene(rng, objects, IMAGE_SIZE)
    captions = scene_captions.scene_captions(rng, objects)
    false = () if split == "train" else scene_captions.scene_pairs(rng, objects)
    return {
        "image": _png(image),
        "mask": _png(mask),
        "captions": [caption.text for caption in captions],
        "phrases": [list(caption.phrases) for caption in captions],
        "object_labels": [CLASSES.index((obj.color, obj.shape)) for obj in objects],
        "object_phrases": [scene_captions.object_phrase(obj) for obj in objects],
        "pair_categories": [pair.category for pair in false],
        "pair_captions": [pair.caption for pair in false],
        "pair_negatives": [pair.negative for pair in false],
    }


def make_examples(
    seed: int, split: str, lattice: int, indices: Iterable[int]
) -> list[tuple[int, dict]]:
    """`(index, example)` for each index."""
    return [(index, make_example(seed, split, index, lattice)) for index in indices]


def _png(array: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png", compress_level=1)
    file.seek(0)
    return file

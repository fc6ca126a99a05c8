"""What `train_step.py` times: the step of a config, and a batch for it."""

from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ccl_jax.models.two_towers import TwoTowers
from ccl_jax.training import objective
from ccl_jax.training.config import default_config

OBJECTIVES = {
    "siglip": {"siglip": {"weight": 1.0}},
    "ccl": {
        "siglip": {"weight": 1.0},
        "npc": {"weight": 1.0, "duplicates": "positive"},
        "xac": {"weight": 0.01, "duplicates": "positive"},
    },
    "clip": {"clip": {"weight": 1.0}},
}


class Size(NamedTuple):
    """Sizes of a SigLIP model (MAP head, last text position) and a batch."""

    image: int
    patch: int
    width: int
    depth: int
    heads: int
    text_length: int
    text_depth: int
    batch: int

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Reads "64x16x128x4x4x16x2x64", the fields in their order."""
        numbers = [int(n) for n in text.split("x")]
        if len(numbers) != len(cls._fields) or min(numbers) < 1:
            raise ValueError(f"{text!r}: use {' x '.join(cls._fields)}, as 64x16x128x4x4x16x2x64")
        return cls(*numbers)

    def __str__(self) -> str:
        return "x".join(map(str, self))

    def model(self, vocab_size: int) -> dict[str, Any]:
        """`config.model`."""
        shared = {"width": self.width, "heads": self.heads}
        return {
            "preset": None,
            "image": shared
            | {"image_size": self.image, "patch_size": self.patch, "depth": self.depth},
            "text": shared
            | {"vocab_size": vocab_size, "length": self.text_length, "depth": self.text_depth},
        }


def make_config(
    model: dict[str, Any], batch: int, name: str, phrases: float = 4.0, micro_batch: int = 0
) -> ConfigDict:
    """A config whose step is timed.

    Args:
      model: changes of `config.model`.
      batch: images.
      name: of the objective, in `OBJECTIVES`.
      phrases: an image, where the objective has any.
      micro_batch: `config.train.micro_batch`.
    """
    config = default_config()
    with config.unlocked():
        config.objective = OBJECTIVES[name]
        for field, value in model.items():
            config.model[field] = value
        config.data.source = {"kind": "none"}
    config.data.batch_size = batch
    config.data.phrases_per_image = phrases
    config.train.micro_batch = micro_batch
    return config


def draw_batch(config: ConfigDict, model: TwoTowers) -> dict[str, np.ndarray]:
    """A batch of noise; phrases are as long as captions where the last position is pooled."""
    rng = np.random.default_rng(0)
    images, length = config.data.batch_size, model.text["length"]
    size, words = model.image["image_size"], model.text["vocab_size"]
    batch = {
        "image": rng.integers(0, 256, (images, size, size, 3), dtype=np.uint8),
        "text": rng.integers(0, words, (images, length), dtype=np.int32),
    }
    if "phrase" in objective.needs(config.objective.to_dict()):
        count = round(images * config.data.phrases_per_image)
        if model.text.get("pool") == "eot":
            length = config.data.phrase_length
        batch["phrase_text"] = rng.integers(0, words, (count, length), dtype=np.int32)
        batch["phrase_image"] = (np.arange(count) * images // count).astype(np.int32)
    return batch

"""What `train_step.py` times: the step of a config, a batch for it, and its arithmetic."""

from typing import Any, NamedTuple

import losses_cases
import numpy as np
from ml_collections import ConfigDict

from ccl_jax.models.image_tower import patch_grid
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
# Dense bfloat16 operations a second of a chip, in 10^12, from its maker's data sheet.
PEAKS = {
    "H200": 989,
    "H100": 989,
    "A100": 312,
    "L4": 121,
    "TPU v4": 275,
    "TPU v5 lite": 197,
    "TPU v5p": 459,
    "TPU v6 lite": 918,
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


def tower_flops(tokens: int, width: int, depth: int, mlp_dim: int | None = None, **_: Any) -> int:
    """Operations of the matrix products of a transformer for one sequence, forward.

    Two for each multiply-add: 4 projections and 2 layers of an MLP for every token, and
    tokens^2 scores and weighted sums, of which a causal mask takes none away.
    """
    mlp_dim = mlp_dim or 4 * width
    dense = tokens * (4 * width**2 + 2 * width * mlp_dim)
    return 2 * depth * (dense + 2 * tokens**2 * width)


def model_flops(config: ConfigDict, model: TwoTowers) -> int:
    """Operations of the matrix products of a step that trains everything.

    Forward and backward: three times the forward ones, but twice for the patch embedding,
    whose input has no gradient. Those of the losses as `losses_cases.needed_flops` counts
    them. What rematerialisation computes again is not counted, nor what is not a product.
    """
    wanted = objective.needs(config.objective.to_dict())
    image, text, images = model.image, model.text, config.data.batch_size
    grid = patch_grid(image["image_size"], image["patch_size"], image.get("patch_stride"))
    patches = grid**2
    if model.patch_dropout:
        patches = max(1, round((1 - model.patch_dropout) * patches))
    classes = image.get("pool", "map") == "cls"
    width = image["width"]
    embed_dim = text.get("embed_dim") or text["width"]
    mlp_dim = image.get("mlp_dim") or 4 * width
    forward = images * tower_flops(patches + classes, **image)
    # Of the embedding: forward, and the gradient of its kernel.
    patch = 4 * images * patches * 3 * image["patch_size"] ** 2 * width
    if classes:
        forward += 2 * images * width * embed_dim * (1 + patches * ("image_tokens" in wanted))
    else:
        # One query and its MLP; keys and values of every patch; scores and weighted sum.
        single = 2 * width**2 + 2 * width * mlp_dim
        forward += 2 * images * (single + patches * (2 * width**2 + 2 * width))
        if "image_tokens" in wanted:
            forward += 2 * images * patches * (width**2 + 2 * width * mlp_dim)
    if "patch_emb" in wanted:
        forward += 2 * images * patches * (2 * width * embed_dim + embed_dim**2)

    phrases = round(images * config.data.phrases_per_image) * ("phrase" in wanted)
    phrase_length = text["length"] if text.get("pool") != "eot" else config.data.phrase_length
    for count, length in ((images, text["length"]), (phrases, phrase_length)):
        forward += count * (tower_flops(length, **text) + 2 * text["width"] * embed_dim)
    case = losses_cases.Case(images, phrases, patches, embed_dim)
    losses = sum(losses_cases.needed_flops(name, case) for name in config.objective)
    return 3 * forward + patch + losses


def peak(device_kind: str) -> float | None:
    """Nominal dense bfloat16 operations a second of a chip, None if it is not in the table."""
    found = [value for name, value in PEAKS.items() if name in device_kind]
    return found[0] * 1e12 if found else None

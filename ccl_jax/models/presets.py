"""Model sizes by name."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from ccl_jax.models.image_tower import ImageTower
from ccl_jax.models.text_tower import TextTower
from ccl_jax.models.two_towers import TwoTowers


def _siglip(
    width,
    depth,
    heads,
    patch_size,
    *,
    image_size=224,
    text_depth=None,
    vocab_size=32_000,
    mlp_dim=None,
):
    return {
        "image": {
            "image_size": image_size,
            "patch_size": patch_size,
            "width": width,
            "depth": depth,
            "heads": heads,
            "mlp_dim": mlp_dim,
            "pool": "map",
        },
        "text": {
            "vocab_size": vocab_size,
            "length": 64,
            "width": width,
            "depth": text_depth or depth,
            "heads": heads,
            "mlp_dim": mlp_dim,
            "pool": "last",
        },
    }


def _clip(width, depth, heads, patch_size, text_width, text_heads, embed_dim):
    shared = {"activation": "quick_gelu", "norm_eps": 1e-5, "embed_dim": embed_dim}
    return {
        "image": {
            "image_size": 224,
            "patch_size": patch_size,
            "width": width,
            "depth": depth,
            "heads": heads,
            "pool": "cls",
            **shared,
        },
        "text": {
            "vocab_size": 49_408,
            "length": 77,
            "width": text_width,
            "depth": 12,
            "heads": text_heads,
            "pool": "eot",
            **shared,
        },
    }


# SigLIP's sizes are those of Zhai et al. (2023) and big_vision, So400m's those of Alabdulmohsin
# et al. (2023), CLIP's those of Radford et al. (2021), table 20. SigLIP 2 (Tschannen et al., 2025)
# has SigLIP's towers with the vocabulary of Gemma.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": _siglip(64, 3, 2, 8, image_size=48, text_depth=2, vocab_size=512),
    "S/16": _siglip(384, 12, 6, 16),
    "B/16": _siglip(768, 12, 12, 16),
    "L/16": _siglip(1024, 24, 16, 16),
    "siglip2-B/16": _siglip(768, 12, 12, 16, vocab_size=256_000),
    "So400m/14": _siglip(1152, 27, 16, 14, mlp_dim=4304),
    "clip-B/32": _clip(768, 12, 12, 32, 512, 8, 512),
    "clip-B/16": _clip(768, 12, 12, 16, 512, 8, 512),
    "clip-L/14": _clip(1024, 24, 16, 14, 768, 12, 768),
}


def build_model(config: Mapping[str, Any], *, eot_id: int) -> TwoTowers:
    """The model that a config's `model` part describes.

    Args:
      config: `preset`, the fields of `image` and `text` that differ from it, and the fields
        of `TwoTowers`; `dtype` by name. With `preset` None or left out, `image` and `text`
        give every size themselves, as those of a pretrained checkpoint do.
      eot_id: the tokenizer's end-of-text token, unless `text` has its own `eot_id`.

    Raises:
      ValueError: for an unknown preset or field, or a size that is not given.
    """
    fields = dict(config)
    name = fields.pop("preset", None)
    if name is not None and name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"there is no preset {name!r}; did you mean {close!r}? Known: {', '.join(PRESETS)}"
        )
    towers = {}
    for part, tower in (("image", ImageTower), ("text", TextTower)):
        changes = dict(fields.pop(part, {}))
        known = {field.name for field in dataclasses.fields(tower)} - {"parent", "name", "dtype"}
        for key in changes:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
                raise ValueError(
                    f"config.model.{part} has no field {key!r}; did you mean {close!r}?"
                )
        towers[part] = (PRESETS[name][part] if name else {}) | changes
        if missing := _required(tower) - towers[part].keys():
            raise ValueError(
                f"config.model.{part} gives no {', '.join(sorted(missing))}; give the sizes, or "
                "a preset to take them from"
            )
    towers["text"] = {"eot_id": eot_id} | towers["text"]
    return TwoTowers(**towers, **fields)


def _required(tower: type) -> set[str]:
    """Names of the fields of `tower` that have no default."""
    return {
        field.name
        for field in dataclasses.fields(tower)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    } - {"parent", "name"}

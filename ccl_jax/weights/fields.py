"""The towers' fields in full, so that two models can be compared."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ccl_jax.models.image_tower import ImageTower
from ccl_jax.models.text_tower import TextTower

TOWERS = {"image": ImageTower, "text": TextTower}


def complete(model: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """`image` and `text` with every field of the towers, defaults filled in.

    `mlp_dim` and `embed_dim` become numbers. Left out are `dtype`, since weights are float32
    whatever the towers compute in, and `eot_id` where the tower does not pool by it.

    >>> sizes = {"width": 8, "depth": 1, "heads": 2}
    >>> image = sizes | {"image_size": 32, "patch_size": 8}
    >>> text = sizes | {"vocab_size": 5, "length": 4, "mlp_dim": 20}
    >>> full = complete({"image": image, "text": text})
    >>> full["image"]["mlp_dim"], full["text"]["mlp_dim"], full["text"]["pool"]
    (32, 20, 'last')
    """
    full = {}
    for part, tower in TOWERS.items():
        defaults = {
            field.name: field.default
            for field in dataclasses.fields(tower)
            if field.default is not dataclasses.MISSING
        }
        fields = {k: v for k, v in defaults.items() if k not in ("parent", "name")}
        fields |= model[part]
        fields.pop("dtype", None)
        fields["mlp_dim"] = fields["mlp_dim"] or 4 * fields["width"]
        fields["embed_dim"] = fields["embed_dim"] or fields["width"]
        full[part] = fields
    if full["text"]["pool"] != "eot":
        del full["text"]["eot_id"]
    return full

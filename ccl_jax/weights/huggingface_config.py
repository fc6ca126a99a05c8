"""The `config.json` of Hugging Face models, from and to the fields of our towers.

Defaults are those of `configuration_{siglip,siglip2,clip}.py` in transformers 5; a `config.json`
leaves out what is at its default.
"""

import math
from collections.abc import Mapping
from typing import Any

from absl import logging

from ccl_jax.weights.fields import complete

FAMILIES = ("siglip", "siglip2", "clip")

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
_ACTIVATION_NAMES = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}

_SIGLIP_TOWER = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_SIGLIP_TEXT = _SIGLIP_TOWER | {
    "vocab_size": 32_000,
    "max_position_embeddings": 64,
    "projection_size": None,
}
_SIGLIP_VISION = _SIGLIP_TOWER | {"num_channels": 3, "patch_size": 16, "vision_use_head": True}
_CLIP_TOWER = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_CLIP_TEXT = _CLIP_TOWER | {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "vocab_size": 49_408,
    "max_position_embeddings": 77,
    "eos_token_id": 49_407,
}
_CLIP_VISION = _CLIP_TOWER | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
}
# family -> part -> what `config.json` need not say
DEFAULTS = {
    "siglip": {
        "text_config": _SIGLIP_TEXT,
        "vision_config": _SIGLIP_VISION | {"image_size": 224},
    },
    "siglip2": {
        "text_config": _SIGLIP_TEXT,
        "vision_config": _SIGLIP_VISION | {"num_patches": 256},
    },
    "clip": {"text_config": _CLIP_TEXT, "vision_config": _CLIP_VISION},
}


def model_config(config: Mapping[str, Any]) -> tuple[str, dict[str, dict[str, Any]]]:
    """Family and towers that a `config.json` describes.

    Args:
      config: its values.

    Returns:
      A name in `FAMILIES`, and every field of `ImageTower` and `TextTower` under "image" and
      "text". For siglip2 the image tower has the one resolution at which NaFlex does not
      resample its positions: square, of `num_patches` patches.

    Raises:
      ValueError: for another family, or what our towers cannot express.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"config.json is of a {family!r} model; weights can be read of "
            f"{', '.join(map(repr, FAMILIES))}, with both towers"
        )
    text, vision = (_part(config, family, part) for part in ("text_config", "vision_config"))
    if vision["num_channels"] != 3:
        raise ValueError(f"vision_config.num_channels = {vision['num_channels']}; it must be 3")
    image = {
        "image_size": _image_size(vision, family),
        "patch_size": _side(vision, "patch_size"),
        "pool": "cls" if family == "clip" else "map",
        **_tower(vision, "vision_config"),
    }
    if image["image_size"] % image["patch_size"]:
        image["patch_stride"] = image["patch_size"]  # the convolution leaves the remainder out
    words = {
        "vocab_size": text["vocab_size"],
        "length": text["max_position_embeddings"],
        "pool": "eot" if family == "clip" else "last",
        **_tower(text, "text_config"),
    }
    if family == "clip":
        image["embed_dim"] = words["embed_dim"] = config.get("projection_dim") or 512
        words["eot_id"] = _eot_id(text)
    else:
        words["embed_dim"] = text["projection_size"] or text["hidden_size"]
        if not vision["vision_use_head"]:
            raise ValueError(
                "vision_config.vision_use_head is false: without the attention pooling head "
                "there is no image embedding; take a checkpoint that has it"
            )
    if family == "siglip2":
        logging.info(
            "A NaFlex model is read at one resolution: square images of %d pixels",
            image["image_size"],
        )
    return family, complete({"image": image, "text": words})


def config_of(model: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The values of `config.json` for a model of ours; undoes `model_config`.

    Args:
      model: `image` and `text`, fields of `ImageTower` and `TextTower`.

    Raises:
      ValueError: for a model that neither SiglipModel nor CLIPModel can express.
    """
    model = complete(model)
    image, text = model["image"], model["text"]
    family = {("map", "last"): "siglip", ("cls", "eot"): "clip"}.get((image["pool"], text["pool"]))
    if family is None:
        raise ValueError(
            f"no Hugging Face model pools images by {image['pool']!r} and texts by "
            f"{text['pool']!r}; there are 'map' with 'last' (SigLIP) and 'cls' with 'eot' (CLIP): "
            "config.model.image.pool and config.model.text.pool choose"
        )
    if image["patch_stride"] not in (None, image["patch_size"]):
        raise ValueError(
            f"image.patch_stride {image['patch_stride']} is not patch_size {image['patch_size']}: "
            "Hugging Face models have no overlapping patches; export the model without them"
        )
    vision = _tower_values(image) | {
        "model_type": f"{family}_vision_model",
        "image_size": image["image_size"],
        "patch_size": image["patch_size"],
        "num_channels": 3,
    }
    words = _tower_values(text) | {
        "model_type": f"{family}_text_model",
        "vocab_size": text["vocab_size"],
        "max_position_embeddings": text["length"],
    }
    config = {"model_type": family, "dtype": "float32", "initializer_factor": 1.0}
    if family == "siglip":
        vision["vision_use_head"] = True
        words["projection_size"] = text["embed_dim"]
        config["architectures"] = ["SiglipModel"]
    else:
        if text["eot_id"] == 2:
            raise ValueError(
                "text.eot_id 2 cannot be written: CLIPModel takes an eos_token_id of 2 to mean "
                "that the highest id ends a text; train with a tokenizer whose end-of-text "
                "token has another id"
            )
        words["eos_token_id"] = text["eot_id"]
        vision["projection_dim"] = words["projection_dim"] = text["embed_dim"]
        config |= {"architectures": ["CLIPModel"], "projection_dim": text["embed_dim"]}
    return config | {"text_config": words, "vision_config": vision}


def _part(config: Mapping[str, Any], family: str, part: str) -> dict[str, Any]:
    """A tower's values with the defaults; CLIP's old `*_config_dict` wins, as it does there."""
    defaults = DEFAULTS[family][part]
    values = defaults | (config.get(part) or {})
    if family == "clip" and (old := config.get(f"{part}_dict")) is not None:
        values |= defaults | old
    return values


def _tower(values: Mapping[str, Any], part: str) -> dict[str, Any]:
    activation = values["hidden_act"]
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"{part}.hidden_act = {activation!r}; the towers have {', '.join(_ACTIVATIONS)}"
        )
    return {
        "width": values["hidden_size"],
        "depth": values["num_hidden_layers"],
        "heads": values["num_attention_heads"],
        "mlp_dim": values["intermediate_size"],
        "activation": _ACTIVATIONS[activation],
        "norm_eps": values["layer_norm_eps"],
    }


def _side(values: Mapping[str, Any], key: str) -> int:
    sides = values[key] if isinstance(values[key], list) else [values[key]]
    if len(set(sides)) != 1:
        raise ValueError(f"vision_config.{key} = {sides}; images and patches must be square")
    return sides[0]


def _image_size(vision: Mapping[str, Any], family: str) -> int:
    if family != "siglip2":
        return _side(vision, "image_size")
    count, patch = vision["num_patches"], _side(vision, "patch_size")
    if math.isqrt(count) ** 2 != count:
        raise ValueError(f"vision_config.num_patches = {count} patches do not fill a square")
    return math.isqrt(count) * patch


def _eot_id(text: Mapping[str, Any]) -> int:
    """The end-of-text id at whose first place CLIP pools.

    Configs from before transformers' pull request 24773 say 2, whatever the tokenizer; there
    the highest id of a text is pooled, and that is the end of text, CLIP's last token.
    """
    ids = text["eos_token_id"]
    ids = ids if isinstance(ids, list) else [ids]
    if len(ids) != 1 or ids[0] is None:
        raise ValueError(f"text_config.eos_token_id = {ids}; one id is needed to pool at")
    if ids[0] == 2:
        return text["vocab_size"] - 1
    if not 0 <= ids[0] < text["vocab_size"]:
        raise ValueError(
            f"text_config.eos_token_id = {ids[0]} is outside of the embedding table of "
            f"{text['vocab_size']} rows; the config is not of these weights"
        )
    return ids[0]


def _tower_values(tower: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_size": tower["width"],
        "intermediate_size": tower["mlp_dim"],
        "num_hidden_layers": tower["depth"],
        "num_attention_heads": tower["heads"],
        "hidden_act": _ACTIVATION_NAMES[tower["activation"]],
        "layer_norm_eps": tower["norm_eps"],
        "attention_dropout": 0.0,
    }

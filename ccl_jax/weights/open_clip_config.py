"""OpenCLIP's `open_clip_config.json` as fields of our towers.

Keys and defaults are those of `CLIPVisionCfg`, `CLIPTextCfg` and `factory.py` in
mlfoundations/open_clip; sizes and activations of SigLIP's image towers those of
`timm/models/vision_transformer.py` in huggingface/pytorch-image-models.
"""

import re
from collections.abc import Mapping
from typing import Any

from ccl_jax.weights.fields import complete

_VISION = {
    "image_size": 224,
    "patch_size": 16,
    "width": 768,
    "layers": 12,
    "head_width": 64,
    "mlp_ratio": 4.0,
    "act_kwargs": None,
    "norm_kwargs": None,
    "timm_model_name": None,
    "timm_pool": "avg",
    "timm_proj": "linear",
}
_TEXT = {
    "context_length": 77,
    "vocab_size": 49_408,
    "width": 512,
    "heads": 8,
    "layers": 12,
    "mlp_ratio": 4.0,
    "act_kwargs": None,
    "norm_kwargs": None,
    "no_causal_mask": False,
    "pool_type": "argmax",
    "proj_bias": False,
    "eos_id": 2,
}
# Of training, of the tokenizer, or of parts that are off.
_WITHOUT_EFFECT = (
    r"patch_dropout|timm_drop.*|timm_model_pretrained|output_tokens|attn_pooler_.*|hf_.*|pad_id"
    r"|tokenizer_.*|correct_cls_mask"
)
# What changes the model, and the values at which it does not.
_OFF = {
    "ls_init_value": (None,),
    "attentional_pool": (False, None),
    "no_ln_pre": (False,),
    "pos_embed_type": ("learnable",),
    "final_ln_after_pool": (False,),
    "embed_cls": (False,),
    "use_pad_mask": (False,),
    "proj_type": ("linear",),
    "block_type": (None, "default"),
    "qk_norm": (False,),
    "scaled_cosine_attn": (False,),
    "scale_heads": (False,),
    "scale_attn_inner": (False,),
    "scale_attn": (False,),
    "scale_fc": (False,),
    "timm_proj_bias": (False,),
}
# size in the model's name -> width, depth, heads, hidden width of the MLPs
TIMM_SIZES = {
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, 6144),
}
_TIMM_NAME = re.compile(r"vit_([a-z0-9]+)_patch(\d+)_siglip_(\d+)")
# timm runs these with the tanh GELU that all SigLIP were trained with, the others with the
# exact one. We follow, so that outputs are those of OpenCLIP.
_TIMM_TANH = re.compile(r"vit_(base_patch32|large_patch16_siglip_512|so400m_patch16|giantopt)")


def model_config(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Towers that an `open_clip_config.json` describes.

    Args:
      config: its values, or those under its `model_cfg`.

    Returns:
      Every field of `ImageTower` and `TextTower` under "image" and "text".

    Raises:
      ValueError: naming the option that our towers cannot express.
    """
    config = config.get("model_cfg", config)
    for key in ("embed_dim", "vision_cfg", "text_cfg"):
        if key not in config:
            raise ValueError(
                f"open_clip_config.json gives no {key}; CLIP and SigLIP models of OpenCLIP can "
                "be read"
            )
    if "multimodal_cfg" in config:
        raise ValueError("open_clip_config.json is of a CoCa model; CLIP and SigLIP can be read")
    if (config["text_cfg"] or {}).get("hf_model_name"):
        raise ValueError(
            f"text_cfg.hf_model_name = {config['text_cfg']['hf_model_name']!r}: text towers of "
            "Hugging Face inside OpenCLIP cannot be read; take a checkpoint with OpenCLIP's own"
        )
    vision = _known(config["vision_cfg"], _VISION, "vision_cfg")
    text = _known(config["text_cfg"], _TEXT, "text_cfg")
    quick = bool(config.get("quick_gelu"))
    image = _timm_image(vision) if vision["timm_model_name"] else _image(vision, quick)
    if image["pool"] == "cls":
        image["embed_dim"] = config["embed_dim"]
    words = _text(text, quick) | {"embed_dim": config["embed_dim"]}
    return complete({"image": image, "text": words})


def _known(values: Mapping[str, Any], defaults: dict[str, Any], part: str) -> dict[str, Any]:
    """The values with defaults; only keys whose effect we reproduce or that have none."""
    for key, value in values.items():
        if key in defaults or re.fullmatch(_WITHOUT_EFFECT, key):
            continue
        if value not in _OFF.get(key, ()):
            raise ValueError(
                f"{part}.{key} = {value!r} is of a model that our towers cannot express; take a "
                "plain ViT CLIP or a SigLIP checkpoint"
            )
    return defaults | {key: value for key, value in values.items() if key in defaults}


def _image(vision: Mapping[str, Any], quick: bool) -> dict[str, Any]:
    if isinstance(vision["layers"], list):
        raise ValueError(
            f"vision_cfg.layers = {vision['layers']} is of a ResNet; image towers must be ViTs"
        )
    if vision["width"] % vision["head_width"]:
        raise ValueError("vision_cfg.width must be a multiple of vision_cfg.head_width")
    return {
        **_patches(vision["image_size"], vision["patch_size"]),
        "width": vision["width"],
        "depth": vision["layers"],
        "heads": vision["width"] // vision["head_width"],
        "mlp_dim": int(vision["width"] * vision["mlp_ratio"]),
        "pool": "cls",
        **_details(vision, quick, "vision_cfg"),
    }


def _timm_image(vision: Mapping[str, Any]) -> dict[str, Any]:
    name = vision["timm_model_name"]
    match = _TIMM_NAME.fullmatch(name)
    if not match or match[1] not in TIMM_SIZES:
        raise ValueError(
            f"vision_cfg.timm_model_name = {name!r}; of timm's towers, those of SigLIP with an "
            f"attention pool can be read: vit_SIZE_patchP_siglip_R, SIZE one of "
            f"{', '.join(TIMM_SIZES)}"
        )
    if (vision["timm_pool"], vision["timm_proj"]) != ("map", "none"):
        raise ValueError(
            f"vision_cfg.timm_pool = {vision['timm_pool']!r} and timm_proj = "
            f"{vision['timm_proj']!r}; SigLIP has 'map' and 'none'"
        )
    width, depth, heads, mlp_dim = TIMM_SIZES[match[1]]
    return {
        **_patches(vision["image_size"], int(match[2])),
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp_dim": mlp_dim,
        "pool": "map",
        "activation": "gelu_tanh" if _TIMM_TANH.match(name) else "gelu",
        "norm_eps": 1e-6,
    }


def _text(text: Mapping[str, Any], quick: bool) -> dict[str, Any]:
    pool = {
        (False, "argmax", False): "eot",
        (False, "eos", False): "eot",
        (True, "last", True): "last",
    }.get((text["no_causal_mask"], text["pool_type"], text["proj_bias"]))
    if pool is None:
        raise ValueError(
            f"text_cfg with no_causal_mask = {text['no_causal_mask']}, pool_type = "
            f"{text['pool_type']!r}, proj_bias = {text['proj_bias']} is neither CLIP's (False, "
            "'argmax' or 'eos', False) nor SigLIP's (True, 'last', True)"
        )
    words = {
        "vocab_size": text["vocab_size"],
        "length": text["context_length"],
        "width": text["width"],
        "depth": text["layers"],
        "heads": text["heads"],
        "mlp_dim": int(text["width"] * text["mlp_ratio"]),
        "pool": pool,
        **_details(text, quick, "text_cfg"),
    }
    if pool == "eot":
        # "argmax" pools at the highest id of a text: its end, CLIP's last token.
        argmax = text["pool_type"] == "argmax"
        words["eot_id"] = text["vocab_size"] - 1 if argmax else text["eos_id"]
    return words


def _details(values: Mapping[str, Any], quick: bool, part: str) -> dict[str, Any]:
    """Activation and epsilon; torch's defaults are the exact GELU and 1e-5."""
    options, norm = values["act_kwargs"] or {}, values["norm_kwargs"] or {}
    activation = "quick_gelu" if quick else "gelu"
    if options == {"approximate": "tanh"} and not quick:
        activation = "gelu_tanh"
    elif options:
        raise ValueError(f"{part}.act_kwargs = {options} with quick_gelu = {quick} is not known")
    if norm.keys() - {"eps"}:
        raise ValueError(f"{part}.norm_kwargs = {norm}: no option but eps can be followed")
    return {"activation": activation, "norm_eps": norm.get("eps", 1e-5)}


def _patches(image_size: int | list[int], patch_size: int) -> dict[str, Any]:
    sides = image_size if isinstance(image_size, list) else [image_size]
    if len(set(sides)) != 1:
        raise ValueError(f"vision_cfg.image_size = {sides}; images must be square")
    fields = {"image_size": sides[0], "patch_size": patch_size}
    if sides[0] % patch_size:
        fields["patch_stride"] = patch_size  # the convolution leaves the remainder out
    return fields

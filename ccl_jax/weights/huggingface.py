"""Hugging Face checkpoints: SiglipModel, Siglip2Model at one resolution, CLIPModel.

Names and shapes are those of `modeling_{siglip,siglip2,clip}.py` in transformers 5.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from ccl_jax.weights import mapping
from ccl_jax.weights.huggingface_config import config_of
from ccl_jax.weights.mapping import Entry, blocks, dense, fused, norm

IGNORED = {r".*\.position_ids": "a buffer that counts positions"}
# No Hugging Face model has PACL's patch embedder, and CLIPModel has no bias.
_NO_PLACE = {"siglip": ("embedder/.*",), "clip": ("embedder/.*", "bias")}


def entries(family: str, model: Mapping[str, Mapping[str, Any]]) -> list[Entry]:
    """The table of a family's tensors, for a model of given sizes."""
    image, text, vision, words = "image_tower", "text_tower", "vision_model", "text_model"
    rows = [
        Entry(
            f"{vision}.embeddings.position_embedding.weight",
            (f"{image}/position_embedding",),
            mapping.SAME,
        ),
        *blocks(image, f"{vision}.encoder.layers.{{}}", model["image"]["depth"], _block),
        *norm(f"{image}/norm_post", f"{vision}.post_layernorm"),
        Entry(
            f"{words}.embeddings.token_embedding.weight",
            (f"{text}/token_embedding/embedding",),
            mapping.SAME,
        ),
        Entry(
            f"{words}.embeddings.position_embedding.weight",
            (f"{text}/position_embedding",),
            mapping.SAME,
        ),
        *blocks(text, f"{words}.encoder.layers.{{}}", model["text"]["depth"], _block),
        *norm(f"{text}/norm_post", f"{words}.final_layer_norm"),
    ]
    patch, kernel = f"{vision}.embeddings.patch_embedding", f"{image}/patch_embedding"
    conv = Entry(f"{patch}.weight", (f"{kernel}/kernel",), mapping.CONV_KERNEL)
    if family == "clip":
        projection = "projection/kernel"
        return rows + [
            conv,
            Entry(
                f"{vision}.embeddings.class_embedding",
                (f"{image}/class_token",),
                mapping.UNBATCHED,
            ),
            *norm(f"{image}/norm_pre", f"{vision}.pre_layrnorm"),  # the name is spelt so
            Entry("visual_projection.weight", (f"{image}/{projection}",), mapping.TRANSPOSED),
            Entry("text_projection.weight", (f"{text}/{projection}",), mapping.TRANSPOSED),
            Entry("logit_scale", ("log_scale",), mapping.SCALAR),
        ]
    # NaFlex cuts patches as we do, (row, column, channel), and has a Linear in place of a conv.
    flat = Entry(f"{patch}.weight", (f"{kernel}/kernel",), mapping.TRANSPOSED)
    return rows + [
        flat if family == "siglip2" else conv,
        Entry(f"{patch}.bias", (f"{kernel}/bias",), mapping.SAME),
        *_head(f"{image}/head", f"{vision}.head"),
        *dense(f"{text}/projection", f"{words}.head"),
        Entry("logit_scale", ("log_scale",), mapping.ONE_VALUE),
        Entry("logit_bias", ("bias",), mapping.ONE_VALUE),
    ]


def to_huggingface(
    params: Mapping[str, Any], model: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A model of ours as `SiglipModel` or `CLIPModel`.

    Args:
      params: of `TwoTowers`; a patch embedder and, for CLIP, the bias are left out and logged.
      model: `image` and `text`, fields of `ImageTower` and `TextTower`.

    Returns:
      The values of `config.json`, and float32 tensors by name; what `load` reads from them is
      equal to `params` bit by bit.

    Raises:
      ValueError: for a model that neither class can express, or parameters of another model.
    """
    config = config_of(model)
    family = config["model_type"]
    flat = traverse_util.flatten_dict(params, sep="/")
    return config, mapping.write(entries(family, model), flat, left=_NO_PLACE[family])


def save(folder: Path, params: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Writes `config.json` and `model.safetensors` as `transformers` reads them.

    Raises:
      ValueError: as `to_huggingface` does; nothing is written then.
    """
    config, tensors = to_huggingface(params, model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    # transformers asks for the format; "pt" says that kernels are transposed as torch's are.
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _block(path: str, name: str) -> list[Entry]:
    return [
        *norm(f"{path}/norm_attention", f"{name}.layer_norm1"),
        *norm(f"{path}/norm_mlp", f"{name}.layer_norm2"),
        *dense(f"{path}/attention/query", f"{name}.self_attn.q_proj"),
        *dense(f"{path}/attention/key", f"{name}.self_attn.k_proj"),
        *dense(f"{path}/attention/value", f"{name}.self_attn.v_proj"),
        *dense(f"{path}/attention/out", f"{name}.self_attn.out_proj"),
        *dense(f"{path}/mlp/up", f"{name}.mlp.fc1"),
        *dense(f"{path}/mlp/down", f"{name}.mlp.fc2"),
    ]


def _head(path: str, name: str) -> list[Entry]:
    projections = f"{name}.attention.in_proj"
    return [
        Entry(f"{name}.probe", (f"{path}/probe",), mapping.SAME),
        *fused(
            f"{path}/attention",
            ("query", "key", "value"),
            f"{projections}_weight",
            f"{projections}_bias",
        ),
        *dense(f"{path}/attention/out", f"{name}.attention.out_proj"),
        *norm(f"{path}/norm", f"{name}.layernorm"),
        *dense(f"{path}/mlp/up", f"{name}.mlp.fc1"),
        *dense(f"{path}/mlp/down", f"{name}.mlp.fc2"),
    ]

"""OpenCLIP checkpoints: `open_clip_config.json` with `open_clip_model.safetensors`.

Names are those of `VisionTransformer`, `TextTransformer`, `CLIP` and `CustomTextCLIP` in
mlfoundations/open_clip, and for SigLIP's image towers of `VisionTransformer` and
`AttentionPoolLatent` in timm; OpenCLIP's own `convert.py` relates both to big_vision's.
"""

from collections.abc import Collection, Mapping
from typing import Any

from ccl_jax.weights import mapping
from ccl_jax.weights.mapping import Entry, blocks, dense, fused, norm

IGNORED = {r"(text\.)?attn_mask": "a buffer that holds the causal mask"}

_QKV = ("query", "key", "value")


def entries(model: Mapping[str, Mapping[str, Any]], names: Collection[str]) -> list[Entry]:
    """The table of tensors for a model of given sizes.

    Args:
      model: fields of the towers.
      names: of the checkpoint's tensors: they tell whether the text tower is a part of its own
        (`text.`), and whether there is a bias, which CLIP models may have.
    """
    prefix = "text." if any(name.startswith("text.") for name in names) else ""
    trunk = model["image"]["pool"] == "map"
    rows = _trunk(model["image"]["depth"]) if trunk else _visual(model["image"]["depth"])
    rows = rows + _text(model["text"]["depth"], prefix)
    if model["text"]["pool"] == "last":
        rows += dense("text_tower/projection", f"{prefix}text_projection")
    else:
        # Unlike a Linear's weight, this parameter is used as x @ w.
        kernel = ("text_tower/projection/kernel",)
        rows.append(Entry(f"{prefix}text_projection", kernel, mapping.SAME))
    rows.append(Entry("logit_scale", ("log_scale",), mapping.SCALAR))
    if trunk or "logit_bias" in names:
        rows.append(Entry("logit_bias", ("bias",), mapping.SCALAR))
    return rows


def _visual(depth: int) -> list[Entry]:
    image = "image_tower"
    return [
        Entry("visual.conv1.weight", (f"{image}/patch_embedding/kernel",), mapping.CONV_KERNEL),
        Entry("visual.class_embedding", (f"{image}/class_token",), mapping.UNBATCHED),
        Entry("visual.positional_embedding", (f"{image}/position_embedding",), mapping.SAME),
        *norm(f"{image}/norm_pre", "visual.ln_pre"),
        *blocks(image, "visual.transformer.resblocks.{}", depth, _resblock),
        *norm(f"{image}/norm_post", "visual.ln_post"),
        Entry("visual.proj", (f"{image}/projection/kernel",), mapping.SAME),
    ]


def _text(depth: int, prefix: str) -> list[Entry]:
    text, embedding = "text_tower", "text_tower/token_embedding/embedding"
    return [
        Entry(f"{prefix}token_embedding.weight", (embedding,), mapping.SAME),
        Entry(f"{prefix}positional_embedding", (f"{text}/position_embedding",), mapping.SAME),
        *blocks(text, f"{prefix}transformer.resblocks.{{}}", depth, _resblock),
        *norm(f"{text}/norm_post", f"{prefix}ln_final"),
    ]


def _resblock(path: str, name: str) -> list[Entry]:
    attention, inner = f"{path}/attention", f"{name}.attn"
    return [
        *norm(f"{path}/norm_attention", f"{name}.ln_1"),
        *norm(f"{path}/norm_mlp", f"{name}.ln_2"),
        *fused(attention, _QKV, f"{inner}.in_proj_weight", f"{inner}.in_proj_bias"),
        *dense(f"{attention}/out", f"{inner}.out_proj"),
        *dense(f"{path}/mlp/up", f"{name}.mlp.c_fc"),
        *dense(f"{path}/mlp/down", f"{name}.mlp.c_proj"),
    ]


def _trunk(depth: int) -> list[Entry]:
    image, name, pool = "image_tower", "visual.trunk", "visual.trunk.attn_pool"
    patch, head = f"{image}/patch_embedding", f"{image}/head"
    return [
        Entry(f"{name}.patch_embed.proj.weight", (f"{patch}/kernel",), mapping.CONV_KERNEL),
        Entry(f"{name}.patch_embed.proj.bias", (f"{patch}/bias",), mapping.SAME),
        Entry(f"{name}.pos_embed", (f"{image}/position_embedding",), mapping.BATCHED),
        *blocks(image, f"{name}.blocks.{{}}", depth, _timm_block),
        *norm(f"{image}/norm_post", f"{name}.norm"),
        Entry(f"{pool}.latent", (f"{head}/probe",), mapping.SAME),
        *dense(f"{head}/attention/query", f"{pool}.q"),
        *fused(f"{head}/attention", ("key", "value"), f"{pool}.kv.weight", f"{pool}.kv.bias"),
        *dense(f"{head}/attention/out", f"{pool}.proj"),
        *norm(f"{head}/norm", f"{pool}.norm"),
        *dense(f"{head}/mlp/up", f"{pool}.mlp.fc1"),
        *dense(f"{head}/mlp/down", f"{pool}.mlp.fc2"),
    ]


def _timm_block(path: str, name: str) -> list[Entry]:
    attention, inner = f"{path}/attention", f"{name}.attn"
    return [
        *norm(f"{path}/norm_attention", f"{name}.norm1"),
        *norm(f"{path}/norm_mlp", f"{name}.norm2"),
        *fused(attention, _QKV, f"{inner}.qkv.weight", f"{inner}.qkv.bias"),
        *dense(f"{attention}/out", f"{inner}.proj"),
        *dense(f"{path}/mlp/up", f"{name}.mlp.fc1"),
        *dense(f"{path}/mlp/down", f"{name}.mlp.fc2"),
    ]

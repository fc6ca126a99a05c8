"""Checkpoints of other projects made from a Hugging Face one, by hand and name by name.

Written against the descriptions of the formats, not against `ccl_jax.weights`: nothing here
uses its tables.
"""

import numpy as np


def _t(x):
    return np.ascontiguousarray(x.T)


def _flax_attention(t, name, heads):
    """query, key, value: (d, heads, d / heads); out: (heads, d / heads, d)."""
    width = t[f"{name}.out_proj.weight"].shape[0]
    if f"{name}.in_proj_weight" in t:
        weights = np.split(t[f"{name}.in_proj_weight"], 3)
        biases = np.split(t[f"{name}.in_proj_bias"], 3)
    else:
        weights = [t[f"{name}.{p}_proj.weight"] for p in "qkv"]
        biases = [t[f"{name}.{p}_proj.bias"] for p in "qkv"]
    out = {}
    for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
        out[f"{part}/kernel"] = _t(weight).reshape(width, heads, width // heads)
        out[f"{part}/bias"] = bias.reshape(heads, width // heads)
    kernel = _t(t[f"{name}.out_proj.weight"])
    out["out/kernel"] = kernel.reshape(heads, width // heads, width)
    out["out/bias"] = t[f"{name}.out_proj.bias"]
    return {f"MultiHeadDotProductAttention_0/{k}": v for k, v in out.items()}


def _flax_norm(t, name, to):
    return {f"{to}/scale": t[f"{name}.weight"], f"{to}/bias": t[f"{name}.bias"]}


def _flax_mlp(t, name):
    out = {}
    for i, layer in enumerate(("fc1", "fc2")):
        out[f"MlpBlock_0/Dense_{i}/kernel"] = _t(t[f"{name}.{layer}.weight"])
        out[f"MlpBlock_0/Dense_{i}/bias"] = t[f"{name}.{layer}.bias"]
    return out


def _flax_block(t, name, heads):
    return (
        _flax_norm(t, f"{name}.layer_norm1", "LayerNorm_0")
        | _flax_norm(t, f"{name}.layer_norm2", "LayerNorm_1")
        | _flax_attention(t, f"{name}.self_attn", heads)
        | _flax_mlp(t, f"{name}.mlp")
    )


def _under(prefix, tensors):
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def big_vision(t, *, heads, depth, stacked=False):
    """A SigLIP checkpoint as big_vision's two_towers saves it."""
    out = {
        "img/embedding/kernel": t["vision_model.embeddings.patch_embedding.weight"].transpose(
            2, 3, 1, 0
        ),
        "img/embedding/bias": t["vision_model.embeddings.patch_embedding.bias"],
        "img/pos_embedding": t["vision_model.embeddings.position_embedding.weight"][None],
        "img/MAPHead_0/probe": t["vision_model.head.probe"],
        "txt/Embed_0/embedding": t["text_model.embeddings.token_embedding.weight"],
        "txt/pos_embedding": t["text_model.embeddings.position_embedding.weight"][None],
        "txt/head/kernel": _t(t["text_model.head.weight"]),
        "txt/head/bias": t["text_model.head.bias"],
        "t": t["logit_scale"],
        "b": t["logit_bias"],
    }
    head = (
        _flax_attention(t, "vision_model.head.attention", heads)
        | _flax_norm(t, "vision_model.head.layernorm", "LayerNorm_0")
        | _flax_mlp(t, "vision_model.head.mlp")
    )
    out |= _under("img/MAPHead_0", head)
    for ours, theirs, final in (
        ("img/Transformer", "vision_model", "post_layernorm"),
        ("txt/Encoder_0", "text_model", "final_layer_norm"),
    ):
        out |= _under(ours, _flax_norm(t, f"{theirs}.{final}", "encoder_norm"))
        rows = [_flax_block(t, f"{theirs}.encoder.layers.{i}", heads) for i in range(depth)]
        if stacked:
            out |= _under(
                f"{ours}/encoderblock",
                {name: np.stack([row[name] for row in rows]) for name in rows[0]},
            )
        else:
            for i, row in enumerate(rows):
                out |= _under(f"{ours}/encoderblock_{i}", row)
    return _under("params", out)


def _both(t, name, to):
    return {f"{to}.weight": t[f"{name}.weight"], f"{to}.bias": t[f"{name}.bias"]}


def _qkv(t, name, leaf):
    return np.concatenate([t[f"{name}.self_attn.{p}_proj.{leaf}"] for p in "qkv"])


def _resblock(t, name, to):
    return (
        _both(t, f"{name}.layer_norm1", f"{to}.ln_1")
        | _both(t, f"{name}.layer_norm2", f"{to}.ln_2")
        | {
            f"{to}.attn.in_proj_weight": _qkv(t, name, "weight"),
            f"{to}.attn.in_proj_bias": _qkv(t, name, "bias"),
        }
        | _both(t, f"{name}.self_attn.out_proj", f"{to}.attn.out_proj")
        | _both(t, f"{name}.mlp.fc1", f"{to}.mlp.c_fc")
        | _both(t, f"{name}.mlp.fc2", f"{to}.mlp.c_proj")
    )


def _open_clip_text(t, depth, prefix):
    words = "text_model.embeddings"
    out = {
        f"{prefix}token_embedding.weight": t[f"{words}.token_embedding.weight"],
        f"{prefix}positional_embedding": t[f"{words}.position_embedding.weight"],
    }
    out |= _both(t, "text_model.final_layer_norm", f"{prefix}ln_final")
    for i in range(depth):
        out |= _resblock(t, f"text_model.encoder.layers.{i}", f"{prefix}transformer.resblocks.{i}")
    return out


def open_clip_vit(t, *, depth, prefix=""):
    """A CLIP checkpoint as OpenCLIP's own classes save it."""
    image = "vision_model.embeddings"
    out = _open_clip_text(t, depth, prefix) | {
        "visual.conv1.weight": t[f"{image}.patch_embedding.weight"],
        "visual.class_embedding": t[f"{image}.class_embedding"],
        "visual.positional_embedding": t[f"{image}.position_embedding.weight"],
        "visual.proj": _t(t["visual_projection.weight"]),
        f"{prefix}text_projection": _t(t["text_projection.weight"]),
        "logit_scale": t["logit_scale"],
    }
    out |= _both(t, "vision_model.pre_layrnorm", "visual.ln_pre")
    out |= _both(t, "vision_model.post_layernorm", "visual.ln_post")
    for i in range(depth):
        out |= _resblock(t, f"vision_model.encoder.layers.{i}", f"visual.transformer.resblocks.{i}")
    return out


def open_clip_siglip(t, *, depth):
    """A SigLIP checkpoint as OpenCLIP saves it, with timm's image tower."""
    image, pool = "vision_model.embeddings", "visual.trunk.attn_pool"
    query, keys, values = np.split(t["vision_model.head.attention.in_proj_weight"], 3)
    query_bias, key_bias, value_bias = np.split(t["vision_model.head.attention.in_proj_bias"], 3)
    out = _open_clip_text(t, depth, "text.") | {
        "visual.trunk.patch_embed.proj.weight": t[f"{image}.patch_embedding.weight"],
        "visual.trunk.patch_embed.proj.bias": t[f"{image}.patch_embedding.bias"],
        "visual.trunk.pos_embed": t[f"{image}.position_embedding.weight"][None],
        f"{pool}.latent": t["vision_model.head.probe"],
        f"{pool}.q.weight": query,
        f"{pool}.q.bias": query_bias,
        f"{pool}.kv.weight": np.concatenate([keys, values]),
        f"{pool}.kv.bias": np.concatenate([key_bias, value_bias]),
        "logit_scale": t["logit_scale"].reshape(()),
        "logit_bias": t["logit_bias"].reshape(()),
    }
    out |= _both(t, "text_model.head", "text.text_projection")
    out |= _both(t, "vision_model.post_layernorm", "visual.trunk.norm")
    out |= _both(t, "vision_model.head.attention.out_proj", f"{pool}.proj")
    out |= _both(t, "vision_model.head.layernorm", f"{pool}.norm")
    out |= _both(t, "vision_model.head.mlp.fc1", f"{pool}.mlp.fc1")
    out |= _both(t, "vision_model.head.mlp.fc2", f"{pool}.mlp.fc2")
    for i in range(depth):
        name, to = f"vision_model.encoder.layers.{i}", f"visual.trunk.blocks.{i}"
        out |= _both(t, f"{name}.layer_norm1", f"{to}.norm1")
        out |= _both(t, f"{name}.layer_norm2", f"{to}.norm2")
        out |= {
            f"{to}.attn.qkv.weight": _qkv(t, name, "weight"),
            f"{to}.attn.qkv.bias": _qkv(t, name, "bias"),
        }
        out |= _both(t, f"{name}.self_attn.out_proj", f"{to}.attn.proj")
        out |= _both(t, f"{name}.mlp.fc1", f"{to}.mlp.fc1")
        out |= _both(t, f"{name}.mlp.fc2", f"{to}.mlp.fc2")
    return out


def naflex(t):
    """A SigLIP checkpoint as Siglip2Model: patches (row, column, channel) into a Linear."""
    name = "vision_model.embeddings.patch_embedding.weight"
    kernel = t[name].transpose(0, 2, 3, 1)
    return t | {name: np.ascontiguousarray(kernel.reshape(len(kernel), -1))}

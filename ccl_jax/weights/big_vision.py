"""big_vision `.npz` checkpoints of SigLIP: a vision transformer with MAP head, a text tower.

Names are those that `models/vit.py`, `models/proj/image_text/text_transformer.py` and
`two_towers.py` of google-research/big_vision give their modules. Blocks lie side by side
(`encoderblock_0`) or, if trained with `scan=True`, stacked along a first axis
(`encoderblock`). The towers use the tanh GELU and Flax's layer norm (epsilon 1e-6).
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ccl_jax.weights import mapping
from ccl_jax.weights.fields import complete
from ccl_jax.weights.files import Tensor, Tensors
from ccl_jax.weights.mapping import Entry, Layout

IGNORED = {r"(opt|chrono)/.*": "the state of the optimiser or of the run, not a weight"}

_ATTENTION = "MultiHeadDotProductAttention_0"


def normalised(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors without the prefix `params/`, stacked blocks taken apart.

    Returns:
      Names as in `img/Transformer/encoderblock_3/LayerNorm_0/scale`.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("params/")
        if "/encoderblock/" not in name or not tensor.shape:
            result[name] = tensor
            continue
        # One read serves all blocks.
        whole = functools.cache(tensor.load)
        for i in range(tensor.shape[0]):
            single = name.replace("/encoderblock/", f"/encoderblock_{i}/")
            result[single] = Tensor(tensor.shape[1:], functools.partial(_row, whole, i))
    return result


def model_config(tensors: Tensors) -> dict[str, dict[str, Any]]:
    """The towers' fields, read off the shapes of `normalised` tensors.

    A checkpoint does not say its image size; it is taken as the patches that it has positions
    for, side by side (378 for So400m/14 at 384, whose last 6 pixels no patch covers).

    Raises:
      ValueError: naming a tensor that is missing or of a shape that SigLIP does not have.
    """
    patch, _, channels, _ = kernel = _shape(tensors, "img/embedding/kernel", 4)
    _, count, _ = _shape(tensors, "img/pos_embedding", 3)
    grid = math.isqrt(count)
    if channels != 3 or grid**2 != count:
        raise ValueError(
            f"img/embedding/kernel {kernel} and img/pos_embedding with {count} positions are not "
            "of a square grid of colour patches"
        )
    image = _tower(tensors, "img/Transformer") | {
        "image_size": grid * patch,
        "patch_size": patch,
        "pool": "map",
    }
    vocab_size, _ = _shape(tensors, "txt/Embed_0/embedding", 2)
    text = _tower(tensors, "txt/Encoder_0") | {
        "vocab_size": vocab_size,
        "length": _shape(tensors, "txt/pos_embedding", 3)[1],
        "pool": "last",
        "embed_dim": _shape(tensors, "txt/head/kernel", 2)[1],
    }
    return complete({"image": image, "text": text})


def entries(model: Mapping[str, Mapping[str, Any]]) -> list[Entry]:
    """The table of `normalised` names, for a model of given sizes."""
    image, text = "image_tower", "text_tower"
    heads = model["image"]["heads"]
    blocks = functools.partial(_block, heads=heads)
    words = functools.partial(_block, heads=model["text"]["heads"])
    patch = f"{image}/patch_embedding"
    return [
        Entry("img/embedding/kernel", (f"{patch}/kernel",), mapping.IMAGE_KERNEL),
        Entry("img/embedding/bias", (f"{patch}/bias",), mapping.SAME),
        Entry("img/pos_embedding", (f"{image}/position_embedding",), mapping.BATCHED),
        *mapping.blocks(image, "img/Transformer/encoderblock_{}", model["image"]["depth"], blocks),
        *_norm(f"{image}/norm_post", "img/Transformer/encoder_norm"),
        Entry("img/MAPHead_0/probe", (f"{image}/head/probe",), mapping.SAME),
        *_attention(f"{image}/head/attention", f"img/MAPHead_0/{_ATTENTION}", heads),
        *_norm(f"{image}/head/norm", "img/MAPHead_0/LayerNorm_0"),
        *_mlp(f"{image}/head/mlp", "img/MAPHead_0/MlpBlock_0"),
        Entry("txt/Embed_0/embedding", (f"{text}/token_embedding/embedding",), mapping.SAME),
        Entry("txt/pos_embedding", (f"{text}/position_embedding",), mapping.BATCHED),
        *mapping.blocks(text, "txt/Encoder_0/encoderblock_{}", model["text"]["depth"], words),
        *_norm(f"{text}/norm_post", "txt/Encoder_0/encoder_norm"),
        *_same(f"{text}/projection", "txt/head", "kernel", "bias"),
        Entry("t", ("log_scale",), mapping.ONE_VALUE),
        Entry("b", ("bias",), mapping.ONE_VALUE),
    ]


def _row(whole, i: int) -> np.ndarray:
    return whole()[i]


def _shape(tensors: Tensors, name: str, rank: int) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(
            f"there is no {name}; SigLIP checkpoints of big_vision hold params/img/..., "
            "params/txt/..., params/t and params/b"
        )
    shape = tensors[name].shape
    if len(shape) != rank:
        raise ValueError(f"{name} has shape {shape}; SigLIP's has {rank} axes")
    return shape


def _tower(tensors: Tensors, name: str) -> dict[str, Any]:
    pattern = re.compile(rf"{name}/encoderblock_(\d+)/")
    depth = len({match[1] for key in tensors if (match := pattern.match(key))})
    block = f"{name}/encoderblock_0"
    width, heads, _ = _shape(tensors, f"{block}/{_ATTENTION}/query/kernel", 3)
    _, mlp_dim = _shape(tensors, f"{block}/MlpBlock_0/Dense_0/kernel", 2)
    return {"width": width, "depth": depth, "heads": heads, "mlp_dim": mlp_dim}


def _same(path: str, name: str, *leaves: str) -> list[Entry]:
    return [Entry(f"{name}/{leaf}", (f"{path}/{leaf}",), mapping.SAME) for leaf in leaves]


def _norm(path: str, name: str) -> list[Entry]:
    return _same(path, name, "scale", "bias")


def _mlp(path: str, name: str) -> list[Entry]:
    up = _same(f"{path}/up", f"{name}/Dense_0", "kernel", "bias")
    return up + _same(f"{path}/down", f"{name}/Dense_1", "kernel", "bias")


def _attention(path: str, name: str, heads: int) -> list[Entry]:
    """Flax keeps (d, heads, d / heads) kernels into the heads, and the reverse out of them."""
    into = Layout(lambda x: (x.reshape(len(x), -1),), lambda x: x.reshape(len(x), heads, -1))
    bias = Layout(lambda x: (x.reshape(-1),), lambda x: x.reshape(heads, -1))
    out = Layout(
        lambda x: (x.reshape(-1, x.shape[-1]),), lambda x: x.reshape(heads, -1, x.shape[-1])
    )
    rows = []
    for part in ("query", "key", "value"):
        rows.append(Entry(f"{name}/{part}/kernel", (f"{path}/{part}/kernel",), into))
        rows.append(Entry(f"{name}/{part}/bias", (f"{path}/{part}/bias",), bias))
    rows.append(Entry(f"{name}/out/kernel", (f"{path}/out/kernel",), out))
    rows.append(Entry(f"{name}/out/bias", (f"{path}/out/bias",), mapping.SAME))
    return rows


def _block(path: str, name: str, *, heads: int) -> list[Entry]:
    return [
        *_norm(f"{path}/norm_attention", f"{name}/LayerNorm_0"),
        *_norm(f"{path}/norm_mlp", f"{name}/LayerNorm_1"),
        *_attention(f"{path}/attention", f"{name}/{_ATTENTION}", heads),
        *_mlp(f"{path}/mlp", f"{name}/MlpBlock_0"),
    ]

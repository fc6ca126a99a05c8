"""`load`: finds out what a checkpoint is and reads it."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from flax import traverse_util

from ccl_jax.weights import (
    big_vision,
    hub,
    huggingface,
    huggingface_config,
    mapping,
    open_clip,
    open_clip_config,
)
from ccl_jax.weights.adapt import adapt
from ccl_jax.weights.fields import complete
from ccl_jax.weights.files import (
    PICKLES,
    Tensors,
    open_npz,
    open_safetensors,
    read_json,
    refuse_pickle,
    shards,
)

_CONFIGS = ("config.json", "open_clip_config.json")
_SIDE_FILES = ("*.json", "*.model", "merges.txt")
_INDEX = "model.safetensors.index.json"
_OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
_READABLE = (
    "a folder or hub name with config.json and model.safetensors (SiglipModel, Siglip2Model, "
    "CLIPModel), one with open_clip_config.json and open_clip_model.safetensors (OpenCLIP), or "
    "an .npz file of big_vision"
)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A checkpoint as a model of ours.

    Attributes:
      family: "siglip", "siglip2", "clip" (Hugging Face), "open_clip" or "big_vision".
      model: every field of `ImageTower` and `TextTower` under "image" and "text";
        `build_model(model, eot_id=...)` builds it.
      params: the float32 parameters of `TwoTowers`, nested dicts of NumPy arrays.
    """

    family: str
    model: dict[str, dict[str, Any]]
    params: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Found:
    """A checkpoint on disk whose tensors have not been opened."""

    family: str
    path: Path  # the .npz, or the folder
    model: dict[str, dict[str, Any]] | None  # None for big_vision, which says it by its shapes


def model_config(source: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """The towers of a checkpoint, without reading its weights.

    Args:
      source: as for `load`.

    Returns:
      Every field of `ImageTower` and `TextTower`, under "image" and "text".

    Raises:
      ValueError: as for `load`.
    """
    found = _find(source)
    return found.model or big_vision.model_config(big_vision.normalised(open_npz(found.path)))


def load(
    source: str | os.PathLike,
    model: Mapping[str, Any] | None = None,
    *,
    init_bias: float = -10.0,
) -> Pretrained:
    """Reads a checkpoint.

    Args:
      source: a folder or hub name of a Hugging Face `SiglipModel`, `Siglip2Model` or
        `CLIPModel` or of an OpenCLIP model, one of their safetensors files, or a big_vision
        `.npz`.
      model: fields under "image" and "text" that differ from the checkpoint's, or all of them,
        for another resolution, patch stride or text length (see `adapt`); others must agree.
      init_bias: the bias of the sigmoid losses for checkpoints that have none, as CLIP's.

    Returns:
      The model's fields and its parameters, those of a patch embedder excepted. Tensors of the
      checkpoint that are left over on purpose are named in the log.

    Raises:
      ValueError: saying what to do, for a source that is not there, a hub that cannot be
        reached, a pickle, a truncated file, another family of models, tensors that are missing,
        surplus or of another shape, or fields that these weights cannot follow.
    """
    found = _find(source)
    family, own = found.family, found.model
    if family == "big_vision":
        tensors = big_vision.normalised(open_npz(found.path))
        own = big_vision.model_config(tensors)
        table, ignored = big_vision.entries(own), big_vision.IGNORED
    elif family == "open_clip":
        tensors = open_safetensors(_weights(source, found))
        table, ignored = open_clip.entries(own, tensors.keys()), open_clip.IGNORED
    else:
        tensors = open_safetensors(_weights(source, found))
        table, ignored = huggingface.entries(family, own), huggingface.IGNORED
    flat = _read(table, tensors, own, ignored, str(source))
    if "bias" not in flat:
        logging.info("%s has no bias; it starts at %s", source, init_bias)
        flat["bias"] = np.asarray(init_bias, np.float32)
    params = traverse_util.unflatten_dict(flat, sep="/")
    changes = model or {}
    wanted = complete({part: own[part] | dict(changes.get(part, {})) for part in own})
    if wanted != own:
        params = adapt(params, own, wanted)
    return Pretrained(family, wanted, params)


def side_files(source: str | os.PathLike) -> Path | None:
    """The folder with a checkpoint's tokenizer and processor configs, of the hub downloaded.

    None for a source that is a single file.

    Raises:
      ValueError: as `load` for a source that is not there.
    """
    path = Path(source)
    if path.is_file():
        return None
    if path.is_dir():
        return path
    if hub.NAME.fullmatch(str(source)):
        return hub.fetch(str(source), _SIDE_FILES)
    return _find(source).path


def _read(table, tensors: Tensors, model, ignored, source: str) -> dict[str, np.ndarray]:
    shapes = mapping.parameter_shapes(model)
    return mapping.read(table, tensors, shapes, ignored=ignored, source=source)


def _find(source: str | os.PathLike) -> _Found:
    """What a source is; of the hub, this downloads the configs alone."""
    path = Path(source)
    if path.is_file():
        refuse_pickle(path)
        if path.suffix == ".npz":
            return _Found("big_vision", path, None)
        if path.suffix != ".safetensors":
            raise ValueError(f"{path} is of no kind that can be read: give {_READABLE}")
        return _in_folder(path.parent, path)
    if path.is_dir():
        return _in_folder(path, path)
    suffixes = (*PICKLES, ".npz", ".safetensors", ".json")
    if hub.NAME.fullmatch(str(source)) and path.suffix not in suffixes:
        folder = hub.fetch(str(source), _CONFIGS)
        return _in_folder(folder, folder)
    hint = "; copy it here first" if "://" in str(source) else ""
    raise ValueError(f"there is no {source}{hint}: give {_READABLE}")


def _in_folder(folder: Path, path: Path) -> _Found:
    """The checkpoint whose configs lie in `folder`; `path` is the folder or a file in it."""
    plain, own = (folder / name for name in _CONFIGS)
    values = read_json(plain) if plain.is_file() else {}
    # A folder may hold a model in both forms, or a config.json of timm's beside OpenCLIP's.
    prefers_own = path.name == _OPEN_CLIP_WEIGHTS or (
        (folder / _OPEN_CLIP_WEIGHTS).is_file() and not any(folder.glob("model*.safetensors"))
    )
    readable = values.get("model_type") in huggingface_config.FAMILIES
    if own.is_file() and (prefers_own or not readable):
        return _Found("open_clip", path, open_clip_config.model_config(read_json(own)))
    if "model_type" in values:
        family, model = huggingface_config.model_config(values)
        return _Found(family, path, model)
    if values:
        raise ValueError(f"{plain} names no model_type; give {_READABLE}")
    raise ValueError(f"{folder} has no config.json or open_clip_config.json; give {_READABLE}")


def _weights(source: str | os.PathLike, found: _Found) -> list[Path]:
    """The safetensors files of a checkpoint; of the hub, this downloads them."""
    folder = found.path
    if folder.is_file():
        return [folder]
    name = _OPEN_CLIP_WEIGHTS if found.family == "open_clip" else "model.safetensors"
    if not Path(source).is_dir():
        folder = hub.fetch(str(source), [name, _INDEX, "model-*.safetensors"])
    if (folder / name).is_file():
        return [folder / name]
    if found.family != "open_clip" and (folder / _INDEX).is_file():
        return shards(folder / _INDEX)
    for pickle in sorted(p for p in folder.iterdir() if p.suffix in PICKLES):
        refuse_pickle(pickle)
    raise ValueError(
        f"{folder} has no {name}; download it too, or, if the model is published as a pickle "
        "alone (.bin, .pt), convert that to safetensors where torch is installed"
    )

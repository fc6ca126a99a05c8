"""Parameters for another resolution, patch stride or text length, or over fresh ones."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import traverse_util
from jaxtyping import ArrayLike, Float

from ccl_jax.models.image_tower import patch_grid
from ccl_jax.weights.fields import TOWERS, complete

_IMAGE_POSITIONS = "image_tower/position_embedding"
_TEXT_POSITIONS = "text_tower/position_embedding"
# Fields that may differ because the positions can follow, and those without parameters.
_FOLLOWED = {"image_size", "patch_stride"}
_WITHOUT_PARAMETERS = {"activation", "norm_eps"}


def resample_positions(
    table: Float[ArrayLike, "n d"],
    old_grid: int,
    new_grid: int,
    *,
    class_token: bool = False,
    old_step: float = 1.0,
    new_step: float = 1.0,
) -> Float[np.ndarray, "m d"]:
    """A position table for another number of patches along a side.

    Bicubic (Keys' kernel, a = -0.5), antialiased where the grid gets coarser: what OpenCLIP and
    timm do, Pillow with images, and `jax.image.resize(method="cubic")`. transformers takes
    bicubic with a = -0.75 and never antialiases, big_vision bilinear without antialiasing,
    NaFlex bilinear with it. Unlike all of them, overlapping patches get the positions at their
    centres, where others stretch the old grid to the edge of the image.

    Args:
      table: (old_grid^2 [+ 1], d) positions, row by row; of floats.
      old_grid: patches along a side of the table.
      new_grid: patches along a side of the result.
      class_token: whether the first row belongs to the class token; it is kept.
      old_step: patch stride of the table over the patch size; below 1 for overlapping patches.
      new_step: the same of the result.

    Returns:
      (new_grid^2 [+ 1], d) positions of the table's dtype, computed on the host in float64.

    Raises:
      ValueError: if the table has another number of rows than `old_grid` says.
    """
    table = np.asarray(table)
    extra = int(class_token)
    if len(table) != old_grid**2 + extra:
        raise ValueError(
            f"a position table of {len(table)} rows is not of {old_grid} x {old_grid} patches"
            + (" and a class token" if class_token else "; is the first row a class token's?")
        )
    if (old_grid, old_step) == (new_grid, new_step):
        return table
    # In patch sizes, patch k is centred at k * step + 1/2, and a grid covers what its patches
    # cover. Place both grids over the same image.
    sides = (old_step * (old_grid - 1) + 1) / (new_step * (new_grid - 1) + 1)
    centres = ((np.arange(new_grid) * new_step + 0.5) * sides - 0.5) / old_step
    spread = max(1.0, new_step / old_step * sides)
    weights = _keys((centres[:, None] - np.arange(old_grid)) / spread)
    weights /= weights.sum(axis=1, keepdims=True)
    grid = table[extra:].astype(np.float64).reshape(old_grid, old_grid, -1)
    grid = np.einsum("io,jp,opd->ijd", weights, weights, grid, optimize=True)
    rows = grid.reshape(new_grid**2, -1).astype(table.dtype)
    return np.concatenate([table[:extra], rows])


def _keys(x: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Keys' cubic convolution kernel with a = -0.5 (IEEE Trans. ASSP 29, 1981)."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def adapt(
    params: Mapping[str, Any],
    old: Mapping[str, Mapping[str, Any]],
    new: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The parameters of one model for another that differs in resolution, stride or length.

    Image positions are resampled. Text positions are cut off at the new length: exact for a
    causal tower ("eot"); a tower that pools the last position ("last") then sees texts ending
    where it was not trained to, which is logged as a warning.

    Args:
      params: of `TwoTowers` with the fields `old`; other parameters beside are kept.
      old: `image` and `text`, fields of `ImageTower` and `TextTower`.
      new: the same of the model that the parameters are for.

    Returns:
      A new tree; what does not change is shared with `params`.

    Raises:
      ValueError: naming a field of `new` that these parameters cannot follow, as for a
        vocabulary, an end-of-text id or a width that is not the checkpoint's.
    """
    old, new = complete(old), complete(new)
    for part in TOWERS:
        for key in sorted(old[part].keys() | new[part].keys()):
            _check_field(part, key, old[part].get(key), new[part].get(key))
    flat = traverse_util.flatten_dict(params, sep="/")
    (old_grid, old_step), (new_grid, new_step) = _grid(old["image"]), _grid(new["image"])
    if (old_grid, old_step) != (new_grid, new_step):
        logging.info("Image positions: %d x %d -> %d x %d", *(old_grid,) * 2, *(new_grid,) * 2)
    table = flat[_IMAGE_POSITIONS]
    flat[_IMAGE_POSITIONS] = _like(
        table,
        resample_positions(
            table,
            old_grid,
            new_grid,
            class_token=old["image"]["pool"] == "cls",
            old_step=old_step,
            new_step=new_step,
        ),
    )
    length = new["text"]["length"]
    if length != old["text"]["length"]:
        flat[_TEXT_POSITIONS] = flat[_TEXT_POSITIONS][:length]
    if length != old["text"]["length"] and new["text"]["pool"] == "last":
        logging.warning(
            "The text tower pools the last position, which moves from %d to %d: embeddings of "
            "texts change; keep config.model.text.length = %d for those of the checkpoint",
            old["text"]["length"],
            length,
            old["text"]["length"],
        )
    return traverse_util.unflatten_dict(flat, sep="/")


def merge(fresh: Mapping[str, Any], loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Loaded parameters over freshly initialised ones.

    Args:
      fresh: the parameters of the model to train, as `init` gives them.
      loaded: what `load` or `adapt` gave.

    Returns:
      A tree as `fresh`, with the values of `loaded` in the dtypes and on the devices of
      `fresh`. PACL's patch embedder, which no checkpoint has, stays fresh.

    Raises:
      ValueError: naming a parameter that only one of the two has, or of another shape.
    """
    flat = traverse_util.flatten_dict(fresh, sep="/")
    values = traverse_util.flatten_dict(loaded, sep="/")
    lost = [p for p in flat.keys() - values.keys() if not p.startswith("embedder/")]
    if odd := sorted(lost) + sorted(values.keys() - flat.keys()):
        raise ValueError(
            f"only one of model and weights has {odd[0]} ({len(odd)} such parameters); build the "
            "model from the fields that `load` gives"
        )
    for path, value in values.items():
        if value.shape != flat[path].shape:
            raise ValueError(
                f"{path} is {value.shape} in the weights and {flat[path].shape} in the model; "
                "build the model from the fields that `load` gives"
            )
    if stay := sorted(flat.keys() - values.keys()):
        logging.info("Not in the weights, so freshly initialised: %s", ", ".join(stay))
    merged = flat | {path: _like(flat[path], value) for path, value in values.items()}
    return traverse_util.unflatten_dict(merged, sep="/")


def check_vocabulary(size: int, model: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises a ValueError if a tokenizer of `size` tokens gives ids that the model lacks."""
    rows = model["text"]["vocab_size"]
    if size > rows:
        raise ValueError(
            f"the tokenizer has {size:,} tokens and the embedding table {rows:,} rows: the "
            "tokenizer does not belong to these weights; take the one they were trained with"
        )


def _check_field(part: str, key: str, old: Any, new: Any) -> None:
    name = f"config.model.{part}.{key}"
    if old == new or key in _FOLLOWED:
        return
    if key in _WITHOUT_PARAMETERS:
        logging.warning("%s = %r, and the weights were trained with %r", name, new, old)
    elif key == "length":
        if new > old:
            raise ValueError(f"{name} = {new}, and the weights have positions for {old}; lower it")
    elif key in ("vocab_size", "eot_id"):
        raise ValueError(
            f"{name} = {new}, and that of the weights is {old}: the tokenizer does not belong to "
            "these weights; take the one they were trained with, and leave the field out"
        )
    else:
        raise ValueError(
            f"{name} = {new!r}, and that of the weights is {old!r}; leave it out to take theirs, "
            "or choose other weights"
        )


def _grid(image: Mapping[str, Any]) -> tuple[int, float]:
    """Patches along a side, and their stride in patch sizes."""
    patch, stride = image["patch_size"], image["patch_stride"] or image["patch_size"]
    return patch_grid(image["image_size"], patch, stride), stride / patch


def _like(old, value):
    """`value` as an array of the kind, dtype and placement of `old`."""
    if not isinstance(old, jax.Array):
        return np.asarray(value, old.dtype)
    # Every process has the whole value and hands out its own shards.
    value = np.asarray(value, old.dtype)
    return jax.make_array_from_callback(value.shape, old.sharding, lambda index: value[index])

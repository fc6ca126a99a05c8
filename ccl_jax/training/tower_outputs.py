"""Outputs of frozen towers: which of them a run reads, how they are made, how a step uses them.

A batch from a store (`tower_store`) has them under `stored_NAME` in place of pixels and, where
the text tower is frozen too, of what its tokens would give:

| name | shape, dtype | what |
|---|---|---|
| `patches` | (b, l, w), the store's | states after the last norm, for PACL's embedder |
| `image_tokens` | (b, l, e), the store's | patch tokens in embedding space, L2-normalised |
| `image` | (b, e) float32 | global image embeddings, L2-normalised |
| `text` | (b, e) float32 | caption embeddings, L2-normalised |
| `phrase` | (p, e) float32 | phrase embeddings, L2-normalised |
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Int, UInt8
from ml_collections import ConfigDict

from ccl_jax import losses
from ccl_jax.models.two_towers import Embeddings, TwoTowers, normalize_image
from ccl_jax.training import objective

PREFIX = "stored_"
IMAGE_OUTPUTS = ("patches", "image_tokens", "image")
TEXT_OUTPUTS = ("text", "phrase")
# Of patches and image tokens; global embeddings are small, and float32 whatever is chosen.
DTYPES: dict[str, Any] = {
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "float32": np.float32,
}
_FIXED_TRANSFORMS = ("squash", "center_crop", "center_crop_floor")


def stored_outputs(config: ConfigDict, trainable: Collection[str]) -> tuple[str, ...]:
    """Names of the outputs that a run stores: those that it reads of its frozen towers.

    Args:
      config: of a single run.
      trainable: paths of the parameters that are not frozen.
    """
    wanted = objective.needs(config.objective.to_dict())
    wanted = {"patches" if name == "patch_emb" else name for name in wanted}
    known = IMAGE_OUTPUTS if _trains("text", trainable) else IMAGE_OUTPUTS + TEXT_OUTPUTS
    return tuple(name for name in known if name in wanted)


def check(config: ConfigDict, trainable: Collection[str]) -> None:
    """Checks `config.tower_store` against the rest of the config.

    Args:
      config: of a single run that has a store.
      trainable: paths of the parameters that are not frozen.

    Raises:
      ValueError: naming the field that does not fit and what to change.
    """
    store = config.tower_store
    without = "or leave config.tower_store.folder empty to train from pixels"
    if _trains("image", trainable):
        raise ValueError(
            "config.tower_store.folder is set, but the image tower is trained, so its outputs "
            f"change: set config.optimizer.frozen = 'towers' or 'image', {without}"
        )
    if config.data.transform not in _FIXED_TRANSFORMS:
        raise ValueError(
            f"config.data.transform = {config.data.transform!r} makes another image every epoch, "
            f"which cannot be stored: use one of {', '.join(_FIXED_TRANSFORMS)}, {without}"
        )
    if config.model.patch_dropout:
        raise ValueError(
            f"config.model.patch_dropout = {config.model.patch_dropout} draws other patches every "
            f"step, which cannot be stored: set it to 0, {without}"
        )
    if store.dtype not in DTYPES:
        raise ValueError(
            f"config.tower_store.dtype = {store.dtype!r}; use one of {', '.join(DTYPES)}"
        )
    for name in ("batch_size", "images_per_shard"):
        if store[name] < 1:
            raise ValueError(f"config.tower_store.{name} = {store[name]}; it must be at least 1")


def image_outputs(
    config: ConfigDict, model: TwoTowers, names: Collection[str]
) -> Callable[[Any, UInt8[Array, "b h w 3"]], dict[str, Array]]:
    """`(params, image) -> {name: output}`: the names of `IMAGE_OUTPUTS` among `names`.

    Args:
      config: of a single run.
      model: the towers.
      names: of `stored_outputs`.
    """
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    dtype = DTYPES[config.tower_store.dtype]

    def run(towers: TwoTowers, image):
        features = towers.image_tower(
            normalize_image(image, mean, std),
            tokens="image_tokens" in names,
            execution=towers.execution,
        )
        found = {}
        if "patches" in names:
            found["patches"] = features.patches.astype(dtype)
        if "image_tokens" in names:
            found["image_tokens"] = losses.unit(features.tokens.astype(jnp.float32)).astype(dtype)
        if "image" in names:
            found["image"] = losses.unit(features.pooled.astype(jnp.float32))
        return found

    return lambda params, image: model.apply({"params": params}, image, method=run)


def text_output(model: TwoTowers) -> Callable[[Any, Int[Array, "n t"]], Array]:
    """`(params, token ids) -> (n, e)` float32 embeddings of captions or phrases."""
    return lambda params, text: model.apply({"params": params}, text=text).text


def create_forward(
    config: ConfigDict, model: TwoTowers
) -> Callable[[Any, Mapping[str, Array], Int[Array, ""]], Embeddings]:
    """`(params, batch, step) -> Embeddings`, as `forward.create_forward`, of a batch from a store.

    Args:
      config: of a single run.
      model: the towers.
    """
    wanted = objective.needs(config.objective.to_dict())
    size = config.train.micro_batch or config.data.batch_size

    def embed(params, inputs):
        variables = {"params": params}
        live = model.apply(
            variables, text=inputs.get("text"), phrase_text=inputs.get("phrase_text")
        )
        found = {}
        for name in wanted:
            if name == "patch_emb":
                patches = inputs[PREFIX + "patches"]
                found[name] = model.apply(variables, patches, method=_patch_embeddings)
            elif PREFIX + name in inputs:
                found[name] = inputs[PREFIX + name].astype(jnp.float32)
            else:
                found[name] = getattr(live, name)
        return found

    embed_all = losses.micro_batched(embed, config.data.batch_size // size)

    def apply(params, batch, step) -> Embeddings:
        del step  # nothing is drawn
        inputs = {name: x for name, x in batch.items() if name.startswith(PREFIX)}
        # Texts whose tower is trained come as tokens.
        for name, key in (("text", "text"), ("phrase", "phrase_text")):
            if name in wanted and PREFIX + name not in batch:
                inputs[key] = batch[key]
        return model.apply({"params": params}).replace(**embed_all(params, inputs))

    return apply


def _patch_embeddings(towers: TwoTowers, patches):
    return towers.embedder(patches)


def _trains(tower: str, trainable: Collection[str]) -> bool:
    return any(re.match(rf"(lora/)?{tower}_tower/", path) for path in trainable)

"""The forward pass of a training step: what the objective reads, from a batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int, Shaped
from ml_collections import ConfigDict

from ccl_jax import losses
from ccl_jax.models.layers import Execution
from ccl_jax.models.two_towers import Embeddings, TwoTowers, normalize_image
from ccl_jax.training import objective
from ccl_jax.training.sharding import batch_devices, sharded

Batch = Mapping[str, Array]
_PATCHES = 0x9A7C  # the stream of random numbers of patch dropout


def create_forward(
    config: ConfigDict, model: TwoTowers, mesh: Mesh
) -> Callable[[Any, Batch, Int[Array, ""]], Embeddings]:
    """`(params, batch, step) -> Embeddings`, the fields that `config.objective` reads.

    With `config.train.micro_batch` the towers see so many images at a time, with the phrases
    and captions that go with them in number, forward and backward (`losses.micro_batched`);
    the objective still sees the whole batch. Patches are dropped at random, as a function of
    `config.seed` and `step` alone: the same for any number of devices, in micro-batches or
    not, and after a resumption.

    Args:
      config: of a single run.
      model: the towers.
      mesh: the devices that share a batch.
    """
    wanted = objective.needs(config.objective.to_dict())
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    # What a batch holds -> the argument of the model that it becomes.
    sources = {"image": "image"}
    sources |= {"text": "text"} if "text" in wanted else {}
    sources |= {"phrase_text": "phrase_text"} if "phrase" in wanted else {}
    size = config.train.micro_batch or config.data.batch_size

    devices = batch_devices(mesh)
    model = model.clone(states=sharded(mesh) if mesh.size > 1 else None)

    def embed(params, inputs):
        inputs = inputs | {"image": normalize_image(inputs["image"], mean, std)}
        texts = [inputs[name] for name in ("text", "phrase_text") if name in inputs]
        joined = len(texts) == 2 and texts[0].shape[1] == texts[1].shape[1]
        if joined:
            # One pass of the tower: its weights are gathered, and its gradients summed, once.
            del inputs["phrase_text"]
            inputs["text"] = _join(texts, devices)
        out = model.apply(
            {"params": params},
            **inputs,
            image_tokens="image_tokens" in wanted,
            patch_emb="patch_emb" in wanted,
        )
        if joined:
            text, phrase = _part(out.text, len(texts[0]), devices)
            out = out.replace(text=text, phrase=phrase)
        return {name: getattr(out, name) for name in wanted}

    embed_all = losses.micro_batched(embed, config.data.batch_size // size)

    def apply(params, batch: Batch, step) -> Embeddings:
        inputs = {argument: batch[key] for key, argument in sources.items()}
        key = jax.random.fold_in(jax.random.key(config.seed), _PATCHES)
        kept = model.draw_patches(jax.random.fold_in(key, step), len(batch["image"]))
        if kept is not None:
            inputs["kept_patches"] = jax.lax.with_sharding_constraint(kept, sharded(mesh))
        return model.apply({"params": params}).replace(**embed_all(params, inputs))

    return apply


def _join(arrays: Sequence[Shaped[Array, "_ *shape"]], devices: int) -> Shaped[Array, "_ *shape"]:
    """Rows of all arrays, those of a device beside each other, so that none has to move."""
    parts = [x.reshape(devices, -1, *x.shape[1:]) for x in arrays]
    return jnp.concatenate(parts, axis=1).reshape(-1, *arrays[0].shape[1:])


def _part(
    joined: Shaped[Array, "n *shape"], rows: int, devices: int
) -> tuple[Shaped[Array, "rows *shape"], Shaped[Array, "_ *shape"]]:
    """Undoes `_join` of two arrays, of which the first has `rows` rows."""
    parts = joined.reshape(devices, -1, *joined.shape[1:])
    split = jnp.split(parts, [rows // devices], axis=1)
    return tuple(x.reshape(-1, *joined.shape[1:]) for x in split)


def check(config: ConfigDict, devices: int = 1) -> None:
    """Checks `config.train.micro_batch` and the fields that say how towers run.

    Args:
      config: of a single run.
      devices: number of devices that share a batch.

    Raises:
      ValueError: naming the field that does not fit and what to change.
    """
    model = config.model
    Execution(model.remat, model.scan_layers, model.attention).check()
    if not 0 <= model.patch_dropout < 1:
        raise ValueError(
            f"config.model.patch_dropout = {model.patch_dropout}; it is a share of the patches: "
            "0 for none, below 1"
        )
    size, batch, group = config.train.micro_batch, config.data.batch_size, config.data.phrase_group
    if size and (size < 0 or batch % size or size % (devices * group)):
        raise ValueError(
            f"config.train.micro_batch = {size} must divide config.data.batch_size = {batch} and "
            f"be a multiple of {devices * group} ({devices} devices x config.data.phrase_group); "
            "0 for the whole batch at once"
        )

"""A trained model as the evaluators see it: pixels and strings in, embeddings out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, UInt8

import ccl_jax
from ccl_jax.data.text import Tokenizer
from ccl_jax.models.image_tower import patch_grid
from ccl_jax.models.two_towers import Embeddings, TwoTowers, normalize_image

TOKEN_KINDS = ("image_tokens", "patch_emb")


class Predictor:
    """Embeds images and texts in batches of one size, so that each compiles once.

    A batch is split over all devices of this process, and the next one is on its way before the
    last one has come back.

    Attributes:
      params: the model's parameters; set it to evaluate others without a new compilation.
      model: the towers.
      tokenizer: of the model's texts.
      image_size: side of the images in pixels.
      transform: how images are brought to that size, a name in `images.TRANSFORMS`.
      image_options: all that `transform_image` needs to know to do so.
      grid: rows and columns of the patch tokens.
      batch_size: images or texts in one call of the model, rounded up to the devices.
      normalisation: (mean, std) of pixels in [0, 1], per channel.
    """

    def __init__(
        self,
        model: TwoTowers,
        params,
        tokenizer: Tokenizer,
        *,
        transform: str = "squash",
        resample: str = "bicubic",
        crop_share: float = 1.0,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        batch_size: int = 256,
    ):
        """Wraps a model.

        Args:
          model: the towers.
          params: their parameters.
          tokenizer: of the model's texts.
          transform: a name in `images.TRANSFORMS`.
          resample: a name in `images.RESAMPLE`.
          crop_share: side of a centre crop, as a share of the shortest edge.
          mean: per channel, subtracted from pixels in [0, 1].
          std: per channel, divides them after that.
          batch_size: images or texts in one call of the model.
        """
        self.params = params
        self.model = model
        self.tokenizer = tokenizer
        self.image_size = model.image["image_size"]
        self.transform = transform
        self.image_options = {
            "size": self.image_size,
            "transform": transform,
            "resample": resample,
            "crop_share": crop_share,
        }
        self.batch_size = batch_size
        self.normalisation = (tuple(map(float, mean)), tuple(map(float, std)))
        image = model.image
        side = patch_grid(image["image_size"], image["patch_size"], image.get("patch_stride"))
        self.grid = (side, side)
        self._length = model.text["length"]

        def embed_images(params, image, **wanted) -> Embeddings:
            image = normalize_image(image, mean, std)
            return model.apply({"params": params}, image=image, **wanted)

        def tokens(name):
            return jax.jit(lambda p, x: _unit(getattr(embed_images(p, x, **{name: True}), name)))

        self._image = jax.jit(lambda p, x: embed_images(p, x).image)
        self._tokens = {name: tokens(name) for name in TOKEN_KINDS}
        self._text = jax.jit(lambda p, x: model.apply({"params": p}, text=x).text)

    def images(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d"]:
        """L2-normalised global embeddings, float32."""
        return self._batched(self._image, images)

    def image_tokens(
        self, images: UInt8[np.ndarray, "n h w 3"], kind: str | None = None
    ) -> Float[np.ndarray, "n l d"]:
        """L2-normalised patch tokens, float32, row by row of `grid`.

        Args:
          images: as `images` takes them.
          kind: "patch_emb" (PACL's patch embedder) or "image_tokens" (the patches in the space
            of the global embedding). None: the former where the model has it.

        Raises:
          ValueError: an unknown kind, or "patch_emb" of a model without a patch embedder.
        """
        # PACL's own tokens are those that it trained.
        kind = kind or ("patch_emb" if self.model.patch_embedder else "image_tokens")
        if kind not in TOKEN_KINDS:
            raise ValueError(f"kind must be one of {', '.join(TOKEN_KINDS)}; got {kind!r}")
        if kind == "patch_emb" and not self.model.patch_embedder:
            raise ValueError(
                "the model has no patch embedder, so no PACL tokens; take kind='image_tokens' or "
                "a model trained with config.model.patch_embedder = True"
            )
        return self._batched(self._tokens[kind], images)

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """L2-normalised text embeddings, float32."""
        return self._batched(self._text, self.tokenizer(texts, self._length))

    def fingerprint(self) -> str:
        """A name for everything that embeddings depend on: weights, sizes, images, tokenizer.

        Equal for equal models wherever their files lie, and computed anew at each call, as
        `params` may be set.
        """
        return _fingerprint(self)

    def _batched(self, function: Callable, inputs: np.ndarray) -> np.ndarray:
        if not len(inputs):
            raise ValueError("there is nothing to embed")
        outputs, waiting = [], None
        place, parts = self._placement()
        size = -(-self.batch_size // parts) * parts
        for chunk, count in _padded(inputs, size):
            found = function(self.params, place(chunk))
            if waiting is not None:
                outputs.append(_fetch(*waiting))
            waiting = (found, count)
        outputs.append(_fetch(*waiting))
        return np.concatenate(outputs)

    def _placement(self) -> tuple[Callable, int]:
        """(how to put a batch onto the parameters' devices, or all of them; parts of a batch)."""
        sharding = getattr(jax.tree.leaves(self.params)[0], "sharding", None)
        if sharding is not None and not sharding.is_fully_addressable:
            return lambda batch: batch, 1  # every process calls this, and holds the whole batch
        if isinstance(sharding, NamedSharding) and len(sharding.device_set) > 1:
            mesh = sharding.mesh
        elif sharding is None or sharding.device_set == set(jax.local_devices()[:1]):
            mesh = Mesh(np.asarray(jax.local_devices()), ("data",))
            if mesh.size > 1 or sharding is None:
                self.params = jax.device_put(self.params, NamedSharding(mesh, PartitionSpec()))
        else:
            return lambda batch: batch, 1
        split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        return lambda batch: jax.device_put(batch, split), mesh.size


def _padded(inputs: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """(chunk of `size` rows, how many of them are inputs)."""
    for start in range(0, len(inputs), size):
        chunk = inputs[start : start + size]
        missing = size - len(chunk)
        padded = np.pad(chunk, [(0, missing)] + [(0, 0)] * (chunk.ndim - 1)) if missing else chunk
        yield padded, len(chunk)


def _fetch(found: jax.Array, count: int) -> np.ndarray:
    return np.asarray(found)[:count]


def _unit(tokens):
    return tokens / jax.numpy.linalg.norm(tokens, axis=-1, keepdims=True).clip(1e-12)


def _fingerprint(predictor: Predictor) -> str:
    model, tokenizer = predictor.model, predictor.tokenizer
    encoder = getattr(tokenizer, "encoder", None)
    described = {
        "version": ccl_jax.__version__,
        "model": {
            field.name: _plain(getattr(model, field.name))
            for field in dataclasses.fields(model)
            if field.name not in ("parent", "name")
        },
        "images": predictor.image_options,
        "normalisation": predictor.normalisation,
        "tokenizer": {
            name: getattr(tokenizer, name, None)
            for name in ("family", "cleaning", "start_id", "eot_id", "pad_id")
        },
    }
    digest = hashlib.blake2b(digest_size=12)
    digest.update(json.dumps(described, sort_keys=True, default=str).encode())
    if encoder is not None:
        # What it is pickled from is its whole content.
        digest.update(repr(encoder.__reduce__()[1]).encode())
    leaves, _ = jax.tree_util.tree_flatten_with_path(predictor.params)
    for path, leaf in leaves:
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _plain(value):
    return {k: _plain(v) for k, v in value.items()} if hasattr(value, "items") else str(value)

"""A trained model as the evaluators see it: pixels and strings in, embeddings out."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Float, UInt8

from ccl_jax.data.text import Tokenizer
from ccl_jax.models.image_tower import patch_grid
from ccl_jax.models.two_towers import Embeddings, TwoTowers, normalize_image


class Predictor:
    """Embeds images and texts in batches of one size, so that each compiles once.

    Attributes:
      params: the model's parameters; set it to evaluate others without a new compilation.
      image_size: side of the images in pixels.
      transform: how images are brought to that size, a name in `images.TRANSFORMS`.
      image_options: all that `transform_image` needs to know to do so.
      grid: rows and columns of the patch tokens.
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
        self.image_size = model.image["image_size"]
        self.transform = transform
        self.image_options = {
            "size": self.image_size,
            "transform": transform,
            "resample": resample,
            "crop_share": crop_share,
        }
        image = model.image
        side = patch_grid(image["image_size"], image["patch_size"], image.get("patch_stride"))
        self.grid = (side, side)
        self._tokenizer = tokenizer
        self._length = model.text["length"]
        self._batch_size = batch_size
        # PACL's own tokens are those that it trained.
        token_name = "patch_emb" if model.patch_embedder else "image_tokens"

        def embed_images(params, image, **wanted) -> Embeddings:
            image = normalize_image(image, mean, std)
            return model.apply({"params": params}, image=image, **wanted)

        self._image = jax.jit(lambda p, x: embed_images(p, x).image)
        self._tokens = jax.jit(
            lambda p, x: _unit(getattr(embed_images(p, x, **{token_name: True}), token_name))
        )
        self._text = jax.jit(lambda p, x: model.apply({"params": p}, text=x).text)

    def images(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d"]:
        """L2-normalised global embeddings, float32."""
        return self._batched(self._image, images)

    def image_tokens(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n l d"]:
        """L2-normalised patch tokens, float32, row by row of `grid`."""
        return self._batched(self._tokens, images)

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """L2-normalised text embeddings, float32."""
        return self._batched(self._text, self._tokenizer(texts, self._length))

    def _batched(self, function: Callable, inputs: np.ndarray) -> np.ndarray:
        outputs = []
        for start in range(0, len(inputs), self._batch_size):
            chunk = inputs[start : start + self._batch_size]
            missing = self._batch_size - len(chunk)
            padded = np.pad(chunk, [(0, missing)] + [(0, 0)] * (chunk.ndim - 1))
            outputs.append(np.asarray(function(self.params, padded))[: len(chunk)])
        return np.concatenate(outputs)


def _unit(tokens):
    return tokens / jax.numpy.linalg.norm(tokens, axis=-1, keepdims=True).clip(1e-12)

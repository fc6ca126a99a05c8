"""A named model whose embeddings are computed once."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

from ccl_jax.data.images import decode_image, transform_image
from ccl_jax.data.records import BadRecord
from ccl_jax.evaluation.cache import EmbeddingCache, collection_fingerprint, digest
from ccl_jax.evaluation.classification import class_embeddings
from ccl_jax.evaluation.pixel_cache import PixelCache
from ccl_jax.evaluation.reading import in_threads
from ccl_jax.evaluation.results import Image

if TYPE_CHECKING:
    from ccl_jax.evaluation.embeddings import Predictor


@dataclasses.dataclass(frozen=True)
class EmbeddedImages:
    """Images through a model.

    Attributes:
      rows: f32 (readable images, d).
      row_of: int (images,), the row of each image; -1 for one that could not be read.
      bad: name of each image that could not be read -> why.
      fingerprint: of the collection of images.
    """

    rows: np.ndarray
    row_of: np.ndarray
    bad: dict[str, str]
    fingerprint: str


class EvaluatedModel:
    """A predictor with a name and a cache; the face that benchmarks see.

    Attributes:
      name: for tables.
      predictor: the model.
      pixels: decoded images that are kept; None for none.
    """

    def __init__(
        self,
        name: str,
        predictor: Predictor,
        cache: EmbeddingCache | None = None,
        *,
        restride: Callable[[int], Predictor] | None = None,
        pixels: PixelCache | None = None,
    ):
        """Wraps a predictor.

        Args:
          name: for tables.
          predictor: the model.
          cache: of its embeddings; None for one in memory.
          restride: gives the same model with another patch stride, for dense maps; None if
            there is no such thing.
          pixels: of decoded images, for a model that is evaluated again and again.
        """
        self.name = name
        self.predictor = predictor
        self.pixels = pixels
        self._cache = EmbeddingCache() if cache is None else cache
        self._restride = restride

    def images(self, images: Sequence[Image]) -> EmbeddedImages:
        """Embeds images, each distinct one once; those that cannot be read are named."""
        digests = [digest(image.identity) for image in images]
        missing = self._cache.missing("image", digests)
        bad: dict[str, str] = {}
        batch = getattr(self.predictor, "batch_size", 256)
        try:
            options = self.predictor.image_options
            asked = [images[i] for i in missing]
            for pixels, found in decoded(asked, options, batch, bad, self.pixels):
                keys = [digests[missing[k]] for k in found]
                self._cache.put("image", keys, self.predictor.images(pixels))
        finally:
            self._cache.flush()
        rows = self._cache.get("image", digests)
        row_of = np.full(len(images), -1)
        present = [i for i, row in enumerate(rows) if row is not None]
        row_of[present] = np.arange(len(present))
        # An image that is bad in another model's format was never asked for here.
        stacked = np.stack([rows[i] for i in present]) if present else np.zeros((0, 1), np.float32)
        return EmbeddedImages(stacked, row_of, bad, collection_fingerprint(digests))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts, each distinct one once: f32 (n, d)."""
        digests = [digest(text) for text in texts]
        missing = self._cache.missing("text", digests)
        try:
            for start in range(0, len(missing), 4096):
                chosen = missing[start : start + 4096]
                rows = self.predictor.texts([texts[i] for i in chosen])
                self._cache.put("text", [digests[i] for i in chosen], rows)
        finally:
            self._cache.flush()
        return np.stack(self._cache.get("text", digests))

    def classes(self, names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
        """Embeds classes as `classification.class_embeddings` does: f32 (classes, d)."""
        digests = [digest(name, *templates) for name in names]
        missing = self._cache.missing("class", digests)
        if missing:
            rows = class_embeddings(self.predictor, [names[i] for i in missing], templates)
            self._cache.put("class", [digests[i] for i in missing], rows)
            self._cache.flush()
        return np.stack(self._cache.get("class", digests))

    def dense(self, stride: int | None) -> Predictor:
        """The predictor, with another patch stride if one is given.

        Raises:
          ValueError: if the model cannot be had with another stride.
        """
        if stride is None:
            return self.predictor
        if self._restride is None:
            raise ValueError(f"{self.name} cannot be had with another patch stride")
        return self._restride(stride)


def decoded(
    images: Sequence[Image],
    options: dict,
    batch: int,
    bad: dict[str, str],
    kept: PixelCache | None = None,
) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Decodes images in threads, a batch ahead of what is asked for.

    Args:
      images: what to decode.
      options: of `transform_image`.
      batch: images in what is given at once.
      bad: names of images that cannot be read are added, with the reason.
      kept: decoded images, looked up before and added to.

    Yields:
      (pixels, positions): uint8 (n, size, size, 3) and where they stand in `images`, n >= 1.
    """

    def read(image: Image):
        return transform_image(image.read(), image.name, **options)

    def load(image: Image):
        try:
            return read(image) if kept is None else kept.of(image, options, read)
        except BadRecord as error:
            return error

    ready: list[np.ndarray] = []
    positions: list[int] = []
    for index, found in enumerate(in_threads(load, images, 2 * batch)):
        if isinstance(found, BadRecord):
            logging.warning("Left out an image: %s", found)
            bad[images[index].name] = found.reason
            continue
        ready.append(found)
        positions.append(index)
        if len(ready) == batch:
            yield np.stack(ready), positions
            ready, positions = [], []
    if ready:
        yield np.stack(ready), positions


def cropped(image: Image, box: tuple[int, int, int, int]) -> Image:
    """An image cut to (left, top, right, bottom) pixels; beyond its edges it is black.

    The cut is what `PIL.Image.crop` does, before any resizing.
    """

    def read() -> bytes:
        whole = decode_image(image.read(), image.name)
        left, top, right, bottom = box
        if right <= left or bottom <= top:
            raise BadRecord(image.name, "empty crop", f"box {box}")
        file = io.BytesIO()
        whole.crop(box).save(file, "BMP")  # without loss, and quick
        return file.getvalue()

    return Image(f"{image.name} {list(box)}", f"{image.identity} {box}", read)

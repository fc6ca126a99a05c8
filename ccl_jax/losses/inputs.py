"""Checks of what the losses are given, and the texts of a batch as columns of its logits."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ccl_jax.losses import collectives, kernels
from ccl_jax.losses.blocks import ChunkSize, Spec
from ccl_jax.losses.collectives import AxisName
from ccl_jax.losses.kernels import Pooling
from ccl_jax.losses.targets import Duplicates, Pairing, pair


class Columns(NamedTuple):
    """The texts of one device: captions or phrases, then hard negatives.

    Attributes:
      emb: (n, d) embeddings, 0 where padding.
      image: (n,) row of the global batch that a text belongs to; -1 for none.
      real: (n,) False for padding.
      ids: (n, t) token ids; None where duplicates do not matter.
    """

    emb: Float[Array, "n d"]
    image: Int[Array, " n"]
    real: Bool[Array, " n"]
    ids: Int[Array, "n t"] | None


class Gathered(NamedTuple):
    """The texts of all devices, as the loss of one device meets them.

    Attributes:
      own: the texts of this device.
      emb: (n, d) embeddings of all; of its own alone where they go round a ring.
      pairing: what the texts of all belong to.
    """

    own: Columns
    emb: Float[Array, "n d"]
    pairing: Pairing

    def count(self, axis_name: AxisName | None) -> Float[Array, ""]:
        """Number of texts of the global batch that belong to an image."""
        dtype = kernels.accumulate(self.emb).dtype
        return collectives.add(jnp.sum(self.own.image >= 0, dtype=dtype), axis_name)


def gather(own: Columns, axis_name: AxisName | None, *, ring: bool = False) -> Gathered:
    """Brings the texts of all devices together; their gradient is scattered back.

    Losses that share texts share the result, so that texts and gradients travel once.
    """
    emb = own.emb if ring else collectives.gather(own.emb, axis_name)
    return Gathered(own, emb, pair(*collectives.gather(own[1:], axis_name)))


def make_spec(
    duplicates: Duplicates,
    label_smoothing: float,
    chunk_size: ChunkSize,
    pooling: Pooling | None = None,
) -> Spec:
    """The static options.

    Raises:
      ValueError: for one out of its range.
    """
    if duplicates not in ("negative", "ignore", "positive"):
        raise ValueError(
            f"duplicates={duplicates!r}: use 'negative' (as published), 'ignore' or 'positive'"
        )
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing!r}: use a number in [0, 1)")
    right = chunk_size > 0 if isinstance(chunk_size, int) else chunk_size in ("auto", None)
    if not right:
        raise ValueError(
            f"chunk_size={chunk_size!r}: use a number of images, 'auto', or None for dense"
        )
    return Spec(pooling, duplicates, label_smoothing, chunk_size)


def check_embeddings(name: str, x: Any, letters: str) -> None:
    """Checks type and number of axes of an array of embeddings.

    Raises:
      ValueError: naming the array.
    """
    shape = getattr(x, "shape", None)
    if shape is None or len(shape) != len(letters.split()) or 0 in shape:
        raise ValueError(f"{name} must have shape ({', '.join(letters.split())}); got {shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} must be of a floating type; got {x.dtype}")


def check_images(images: Array, texts: Array, image_where: Array | None, names: str) -> None:
    """Checks that images and texts have one width, and the mask of the images its shape.

    Raises:
      ValueError: if not.
    """
    if images.shape[-1] != texts.shape[-1]:
        raise ValueError(
            f"{names} have widths {images.shape[-1]} and {texts.shape[-1]}; project both to "
            "the same width"
        )
    if image_where is not None:
        check_integers("image_where", image_where, images.shape[:1], "bool")


def check_integers(name: str, x: Any, shape: tuple[int, ...], kind: str = "integer") -> None:
    """Checks type and shape of indices ("integer") or of a mask ("bool").

    Raises:
      ValueError: naming the array.
    """
    right = jnp.bool_ if kind == "bool" else jnp.integer
    if getattr(x, "shape", None) != shape or not jnp.issubdtype(x.dtype, right):
        got = f"{getattr(x, 'dtype', type(x).__name__)} {getattr(x, 'shape', '')}"
        raise ValueError(f"{name} must have shape {shape} and {kind} type; got {got}")


def columns(
    kind: str,
    emb: Float[Array, "n d"],
    image: Int[Array, " n"] | None,
    *,
    images: int = 0,
    where: Bool[Array, " n"] | None = None,
    ids: Int[Array, "n t"] | None = None,
    duplicates: Duplicates = "negative",
    hard_emb: Float[Array, "h d"] | None = None,
    hard_where: Bool[Array, " h"] | None = None,
    axis_name: AxisName | None = None,
) -> Columns:
    """Puts the texts of a device together and checks them.

    Args:
      kind: "text" or "phrase", as in the names of the arguments.
      emb: embeddings.
      image: row of the global batch that each belongs to, -1 for padding; None if text i
        belongs to image i.
      images: number of images of this device; needed where `image` is None.
      where: texts that count.
      ids: token ids, needed unless `duplicates` is "negative".
      duplicates: see `targets.block_targets`.
      hard_emb: texts that belong to no image.
      hard_where: those of them that count.
      axis_name: mapped axis over which the batch is split.

    Raises:
      ValueError: for shapes and types that do not fit.
    """
    collectives.check_axis(axis_name)
    n = emb.shape[0]
    if image is None:
        if n != images:
            raise ValueError(
                f"{n} captions for {images} images: pass text_image (n,), the row of the image "
                "that each caption belongs to"
            )
        first = collectives.first_row(n, axis_name)
        image = first + jnp.arange(n, dtype=jnp.int32)
    else:
        check_integers(f"{kind}_image", image, (n,))
    real = image >= 0
    if where is not None:
        check_integers("where", where, (n,), "bool")
        real = real & where
    if duplicates == "negative":
        ids = None
    elif ids is None:
        raise ValueError(f"duplicates={duplicates!r} compares texts: pass {kind}_ids (n, t)")
    else:
        check_integers(f"{kind}_ids", ids, (n, *ids.shape[1:2]))
    image = jnp.where(real, image, -1)
    if hard_emb is not None:
        check_embeddings("hard_text_emb", hard_emb, "h d")
        if hard_emb.shape[1] != emb.shape[1] or hard_emb.dtype != emb.dtype:
            raise ValueError(
                f"hard_text_emb {hard_emb.dtype} {hard_emb.shape} must have type and width of "
                f"text_emb {emb.dtype} {emb.shape}"
            )
        h = hard_emb.shape[0]
        if hard_where is None:
            hard_where = jnp.ones(h, bool)
        check_integers("hard_where", hard_where, (h,), "bool")
        emb = jnp.concatenate([emb, hard_emb])
        image = jnp.concatenate([image, jnp.full(h, -1, image.dtype)])
        real = jnp.concatenate([real, hard_where])
        if ids is not None:
            ids = jnp.concatenate([ids, jnp.full((h, ids.shape[1]), -1, ids.dtype)])
    # A masked text may hold anything, NaN included: it reaches neither value nor gradient.
    emb = jnp.where(real[:, None], emb, 0)
    return Columns(emb, image, jnp.asarray(real), None if ids is None else jnp.asarray(ids))

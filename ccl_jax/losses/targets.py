"""Which image-text pairs are positive, and which count at all."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ccl_jax.losses import collectives

Duplicates = Literal["negative", "ignore", "positive"]


class Pairing(NamedTuple):
    """What the texts of the global batch belong to; no embeddings, a few integers a text.

    Attributes:
      image: (n,) row of the global batch that a text belongs to; -1 for none (padding, or
        a hard negative).
      real: (n,) False for padding.
      ids: (n, t) token ids, equal rows being the same text; None where duplicates do not
        matter.
      order: (n,) the texts sorted by image, those of no image last; None with `ids`.
      sorted_image: (n,) their images; None with `ids`.
    """

    image: Int[Array, " n"]
    real: Bool[Array, " n"]
    ids: Int[Array, "n t"] | None = None
    order: Int[Array, " n"] | None = None
    sorted_image: Int[Array, " n"] | None = None


def pair(
    image: Int[Array, " n"], real: Bool[Array, " n"], ids: Int[Array, "n t"] | None = None
) -> Pairing:
    """The pairing of the texts of a global batch; with `ids` duplicates can be found."""
    image = jnp.where(real, image, -1)
    if ids is None:
        return Pairing(image, real)
    last = jnp.iinfo(image.dtype).max
    key = jnp.where(image >= 0, image, last)
    order = jnp.argsort(key)
    return Pairing(image, real, ids, order, key[order])


def block_targets(
    pairing: Pairing,
    rows: Int[Array, " c"],
    start: Int[Array, ""] | int,
    size: int,
    duplicates: Duplicates,
) -> tuple[Bool[Array, "c size"], Bool[Array, "c size"]]:
    """Positive pairs, and pairs that count, of some images and consecutive texts.

    Args:
      pairing: of the global batch.
      rows: the images, as rows of the global batch.
      start: first of the texts.
      size: number of texts.
      duplicates: what an image's pair with a foreign text is when the image has the same
        text of its own: "negative", "ignore" (does not count) or "positive".
    """
    image = jax.lax.dynamic_slice_in_dim(pairing.image, start, size)
    real = jax.lax.dynamic_slice_in_dim(pairing.real, start, size)
    own = image[None, :] == rows[:, None].astype(image.dtype)
    where = jnp.broadcast_to(real[None, :], own.shape)
    if duplicates == "negative":
        return own, where
    shared = _says_it_too(pairing, rows, start, size) & where
    if duplicates == "positive":
        return own | shared, where
    return own, where & (own | ~shared)


def _says_it_too(pairing, rows, start, size):
    """(c, size): whether one of an image's own texts reads as the given one does.

    Goes through the first text of every image, then the second, and so on: a comparison of
    token ids per step, and no array over pairs of texts.
    """
    ids = jax.lax.dynamic_slice_in_dim(pairing.ids, start, size)
    rows = rows.astype(pairing.sorted_image.dtype)
    first = jnp.searchsorted(pairing.sorted_image, rows, side="left")
    end = jnp.searchsorted(pairing.sorted_image, rows, side="right")

    def step(carry):
        j, found = carry
        text = pairing.order[jnp.minimum(first + j, pairing.order.shape[0] - 1)]
        same = jnp.all(pairing.ids[text][:, None, :] == ids[None, :, :], axis=-1)
        return j + 1, found | (same & (first + j < end)[:, None])

    most = jnp.max(end - first, initial=0)
    begin = collectives.like((jnp.int32(0), jnp.zeros((rows.shape[0], size), bool)), ids)
    return jax.lax.while_loop(lambda carry: carry[0] < most, step, begin)[1]

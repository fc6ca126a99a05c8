"""Going over all pairs of images and texts in blocks, so that nothing big is kept.

What `sigmoid.py` and `softmax.py` share: the images of one device, the texts of all, which
of them belong together, and loops over blocks of them.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int

from ccl_jax.losses import kernels
from ccl_jax.losses.kernels import Pooling
from ccl_jax.losses.targets import Duplicates, Pairing, block_targets

# Elements of the largest arrays of a block, images x tokens x texts: 2 MB in float32, which the
# caches of a CPU hold.
BLOCK_ELEMENTS = 1 << 19
# And of its tokens, images x tokens x width. All texts and their gradient are read and written
# for every block of images: a TPU's memory wants large ones. Both in docs/performance.md.
TOKEN_ELEMENTS = 1 << 21


ChunkSize = int | Literal["auto"] | None


class Spec(NamedTuple):
    """Static options; hashable, as custom derivatives need them.

    Attributes:
      pooling: of the similarities; None for plain products.
      duplicates: see `targets.block_targets`.
      label_smoothing: share of a target given to its opposite, or to all texts.
      chunk_size: images of a block; "auto" for as many as `TOKEN_ELEMENTS` allows, None for
        dense.
    """

    pooling: Pooling | None
    duplicates: Duplicates
    label_smoothing: float
    chunk_size: ChunkSize


class Side(NamedTuple):
    """The images of one device, and how the texts of all belong to them.

    Attributes:
      rows: (b,) the images as rows of the global batch.
      tokens_where: (b, l) tokens that count; None for all, and for global embeddings.
      where: (b,) images that count; None for all.
      pairing: of the texts of the global batch.
    """

    rows: Int[Array, " b"]
    tokens_where: Bool[Array, "b l"] | None
    where: Bool[Array, " b"] | None
    pairing: Pairing

    def targets(
        self,
        spec: Spec,
        first_image: Int[Array, ""] | int,
        images: int,
        first_text: Int[Array, ""] | int,
        texts: int,
    ) -> tuple[Bool[Array, "images texts"], Bool[Array, "images texts"]]:
        """Positive pairs, and pairs that count, of a block; see `targets.block_targets`."""
        rows = jax.lax.dynamic_slice_in_dim(self.rows, first_image, images)
        positive, where = block_targets(self.pairing, rows, first_text, texts, spec.duplicates)
        if self.where is None:
            return positive, where
        where = where & jax.lax.dynamic_slice_in_dim(self.where, first_image, images)[:, None]
        return positive & where, where


def resolve(spec: Spec, images: Float[Array, "b *l d"]) -> Spec:
    """`spec` with a number in place of "auto"."""
    if spec.chunk_size != "auto":
        return spec
    b, width = images.shape[0], images.shape[-1]
    most = TOKEN_ELEMENTS // (_tokens(images) * width)
    most = min(max(most, 1), b)
    # A last block of another size would be compiled by itself, and the batch is often even.
    even = next(size for size in range(most, 0, -1) if b % size == 0)
    return spec._replace(chunk_size=even if 2 * even > most else most)


def for_blocks(total: int, size: int, body: Callable[[Any, int, Any], Any], carry: Any) -> Any:
    """`carry = body(start, size, carry)` over consecutive blocks, the last one shorter."""
    size = min(size, total)
    whole = total // size
    if whole == 1:
        carry = body(0, size, carry)
    else:
        carry = jax.lax.fori_loop(0, whole, lambda i, c: body(i * size, size, c), carry)
    if total > whole * size:
        carry = body(whole * size, total - whole * size, carry)
    return carry


def similarities(
    pooling: Pooling | None, images: Float[Array, "b *l d"], where, texts: Float[Array, "n d"]
) -> tuple[Float[Array, "b n"], Float[Array, "b n"] | None]:
    """All similarities at once, for automatic differentiation; see `kernels.forward`."""
    texts = kernels.accumulate(texts)
    prepared = kernels.prepare(pooling, images, where, texts.shape[0])
    similarity, effective, _ = kernels.forward(pooling, prepared, texts)
    return similarity, effective


def prepare(
    spec: Spec,
    images: Float[Array, "b *l d"],
    side: Side,
    start: Int[Array, ""] | int,
    rows: int,
    texts: int,
) -> kernels.Prepared:
    """`kernels.prepare` for `rows` images from row `start` on."""
    block = jax.lax.dynamic_slice_in_dim(images, start, rows)
    where = side.tokens_where
    if where is not None:
        where = jax.lax.dynamic_slice_in_dim(where, start, rows)
    return kernels.prepare(spec.pooling, block, where, texts)


def text_block(images: Float[Array, "b *l d"], rows: int) -> int:
    """Texts of a block of `rows` images, so that its largest arrays have about BLOCK_ELEMENTS."""
    return max(128, BLOCK_ELEMENTS // (rows * _tokens(images)))


def add_at(
    x: Float[Array, "n *d"], block: Float[Array, "size *d"], start: Int[Array, ""] | int
) -> Float[Array, "n *d"]:
    """`x` with `block` added to its rows from `start` on."""
    old = jax.lax.dynamic_slice_in_dim(x, start, block.shape[0])
    return jax.lax.dynamic_update_slice_in_dim(x, old + block, start, 0)


def put_at(
    x: Float[Array, "n *d"], block: Float[Array, "size *d"], start: Int[Array, ""] | int
) -> Float[Array, "n *d"]:
    """`x` with `block` in place of its rows from `start` on."""
    return jax.lax.dynamic_update_slice_in_dim(x, block, start, 0)


def _tokens(images):
    return images.shape[1] if images.ndim == 3 else 1

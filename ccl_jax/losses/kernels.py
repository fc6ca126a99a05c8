"""Similarities of a block of images with a block of texts, and their gradient by hand.

The block forms of every loss are built on these: `prepare` once for a block of images, then
`forward` and `backward` for each block of texts, then `finish`. The plain products of global
embeddings and the pooled similarity share the four steps; `pooling` is None for the first.

The gradient of the pooled similarity, in the notation of `similarity.pooled_similarity` with
S = V q, a = softmax(s S), P = G a, G = V V^T, and g the gradient of sim = <a, S> / |p|:

    da = g (S / |p| - sim P / |p|^2)        <a, da> = 0, for sim does not change with |a|
    dS = g a / |p| + s a da                 dq = V^T dS
    dV = dS q^T + M V                       M = -A diag(g sim / |p|^2) A^T
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Stands for -inf where arithmetic has to stay finite.
FLOOR = -1e30


class Pooling(NamedTuple):
    """Options of the pooled similarity; static, see `similarity.pooled_similarity`."""

    sharpness: float = 1.0
    scores: Literal["dot", "cosine"] = "dot"
    values: Literal["raw", "normalized"] = "raw"


class Prepared(NamedTuple):
    """What texts have in common when they meet a block of c images.

    Attributes:
      x: (c, d) embeddings, or (c, l, d) tokens as they are summed.
      inverse: (c, l) inverse norms of the tokens as given; None if no option needs them.
      gram: (c, l, l) products of the tokens; None where pooled vectors are cheaper.
      where: (c, l) tokens that count, or None for all.
    """

    x: Float[Array, "c *l d"]
    inverse: Float[Array, "c l"] | None = None
    gram: Float[Array, "c l l"] | None = None
    where: Bool[Array, "c l"] | None = None


def prepare(
    pooling: Pooling | None,
    images: Float[Array, "c *l d"],
    where: Bool[Array, "c l"] | None,
    texts: int,
) -> Prepared:
    """Casts a block of images and takes what does not depend on the texts.

    Args:
      pooling: options of the pooled similarity, or None for plain products.
      images: global embeddings (c, d), or with `pooling` tokens (c, l, d).
      where: tokens that count.
      texts: how many texts the block will meet in all.
    """
    x = accumulate(images)
    if pooling is None:
        return Prepared(x)
    if where is not None:
        x = jnp.where(where[..., None], x, 0.0)
    inverse = None
    if "cosine" in pooling.scores or pooling.values == "normalized":
        inverse = inverse_norm(jnp.sum(x * x, axis=-1))
    if pooling.values == "normalized":
        x = x * inverse[..., None]
    tokens, width = x.shape[1:]
    # Multiply-adds per image, forward and backward: through the (l, l) products of the
    # tokens 2 l^2 (d + n), through the pooled vectors 3 l n d.
    gram = None
    if 2 * tokens * (width + texts) < 3 * texts * width:
        gram = jnp.einsum("cld,ckd->clk", x, x)
    return Prepared(x, inverse, gram, where)


def forward(
    pooling: Pooling | None, prepared: Prepared, texts: Float[Array, "n d"]
) -> tuple[Float[Array, "c n"], Float[Array, "c n"] | None, Any]:
    """Similarities of the block with `texts`.

    Returns:
      The similarities; the effective number of patches attended (exp of the attention's
      entropy), None without `pooling`; and what `backward` needs.
    """
    if pooling is None:
        return prepared.x @ texts.T, None, None
    x, inverse, gram, where = prepared
    c, length, d = x.shape
    products = (x.reshape(c * length, d) @ texts.T).reshape(c, length, -1)
    seen = pooling.sharpness * products
    weight = _score_weight(pooling, inverse)
    if weight is not None:
        seen = seen * weight
    if where is not None:
        seen = jnp.where(where[..., None], seen, FLOOR)
    top = jnp.max(seen, axis=1, keepdims=True)
    raised = jnp.exp(seen - top)
    total = jnp.sum(raised, axis=1, keepdims=True)
    attention = raised / total
    dot = jnp.sum(attention * products, axis=1)
    pooled = None
    if gram is None:
        pooled = jnp.einsum("cln,cld->cnd", attention, x)
        onto = jnp.einsum("cld,cnd->cln", x, pooled)
    else:
        onto = jnp.einsum("clk,ckn->cln", gram, attention)
    inverse_pooled = inverse_norm(jnp.sum(attention * onto, axis=1))
    similarity = dot * inverse_pooled
    mean = pooling.sharpness * dot if weight is None else jnp.sum(attention * seen, axis=1)
    effective = jnp.exp(jnp.log(total[:, 0]) + top[:, 0] - mean)
    saved = (texts, products, attention, onto, pooled, inverse_pooled, similarity)
    return similarity, effective, saved


def zeros(pooling: Pooling | None, prepared: Prepared) -> tuple[Array, ...]:
    """Where `backward` adds up the gradient of the block of images."""
    if pooling is None:
        return (jnp.zeros_like(prepared.x),)
    shape = prepared.x.shape
    gram = None if prepared.gram is None else jnp.zeros_like(prepared.gram)
    weight = None
    if _score_weight(pooling, prepared.inverse) is not None:
        weight = jnp.zeros(shape[:2], prepared.x.dtype)
    return jnp.zeros_like(prepared.x), gram, weight


def backward(
    pooling: Pooling | None,
    prepared: Prepared,
    texts: Float[Array, "n d"],
    saved: Any,
    gradient: Float[Array, "c n"],
    sums: tuple[Array, ...],
) -> tuple[Float[Array, "n d"], tuple[Array, ...]]:
    """Gradient of sum(gradient * similarity) in the texts; that in the images into `sums`."""
    if pooling is None:
        return gradient.T @ prepared.x, (sums[0] + gradient @ texts,)
    x = prepared.x
    c, length, d = x.shape
    texts, products, attention, onto, pooled, inverse_pooled, similarity = saved
    of_dot = (gradient * inverse_pooled)[:, None]
    of_square = (-gradient * similarity * inverse_pooled**2)[:, None]
    of_seen = pooling.sharpness * attention * (of_dot * products + of_square * onto)
    of_products, of_weight = of_seen, None
    weight = _score_weight(pooling, prepared.inverse)
    if weight is not None:
        of_weight = sums[2] + jnp.sum(of_seen * products, axis=2)
        of_products = of_seen * weight
    of_products = (of_products + attention * of_dot).reshape(c * length, -1)
    of_texts = of_products.T @ x.reshape(c * length, d)
    of_x = sums[0] + (of_products @ texts).reshape(c, length, d)
    if pooled is not None:
        return of_texts, (
            of_x + jnp.einsum("cln,cnd->cld", attention * of_square, pooled),
            None,
            of_weight,
        )
    of_gram = sums[1] + jnp.einsum("cln,ckn->clk", attention * of_square, attention)
    return of_texts, (of_x, of_gram, of_weight)


def finish(
    pooling: Pooling | None, prepared: Prepared, sums: tuple[Array, ...]
) -> Float[Array, "c *l d"]:
    """The gradient in the block of images as given."""
    if pooling is None:
        return sums[0]
    x, inverse = prepared.x, prepared.inverse
    of_x, of_gram, of_weight = sums
    if of_gram is not None:
        of_x = of_x + jnp.einsum("clk,ckd->cld", of_gram, x)
    if of_weight is not None:
        of_x = of_x - (of_weight * inverse**3)[..., None] * x
    if pooling.values == "normalized":
        along = jnp.sum(x * of_x, axis=-1, keepdims=True)
        of_x = (of_x - along * x) * inverse[..., None]
    if prepared.where is not None:
        of_x = jnp.where(prepared.where[..., None], of_x, 0.0)
    return of_x


def accumulate(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Casts to the accumulation type: float32, or float64 where the input has it."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def inverse_norm(square: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """1 / sqrt(square), whose gradient float32 can hold; 0, with gradient 0, below 1e-24."""
    some = square > 1e-24
    # The inner choice keeps the gradient of the branch not taken finite.
    return jnp.where(some, jax.lax.rsqrt(jnp.where(some, square, 1.0)), 0.0)


def _score_weight(pooling, inverse):
    # Scores of unit tokens are cosines already.
    if pooling.scores == "cosine" and pooling.values == "raw":
        return inverse[..., None]
    return None

"""The one primitive: similarity of a text query and an image pooled under its attention.

XAC uses it with phrases (concept centric learning), PACL with captions (patch aligned
contrastive learning), the evaluators read heat maps from the same scores.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def pooled_similarity(
    image_tokens: Float[Array, "b l d"],
    text_emb: Float[Array, "n d"],
    *,
    sharpness: float | Float[Array, ""] = 1.0,
    scores: Literal["dot", "cosine"] = "dot",
    values: Literal["raw", "normalized"] = "raw",
) -> Float[Array, "b n"]:
    """Similarity of every text with every image, pooled as that text attends to it.

    For image m with tokens V and text n with embedding q::

        a = softmax_l(sharpness * <V_l, q>)      p = sum_l a_l V_l      sim_mn = <p, q> / |p|

    The pooled (b, n, d) vectors are never formed: <p, q> = sum_l a_l <V_l, q> and
    |p|^2 = a^T (V V^T) a. Gradients flow into both arguments, attention included.

    Args:
      image_tokens: patch tokens.
      text_emb: queries, L2-normalised by the caller. They are not normalised again here, so
        their gradient is that of the formula above.
      sharpness: factor on the scores before the softmax; 1 is nearly flat for unit vectors.
      scores: `cosine` divides each score by the token's norm before the softmax.
      values: `normalized` pools unit tokens instead of the tokens as given.

    Returns:
      (b, n) similarities in float32, or float64 for float64 inputs; each in [-1, 1].

    Raises:
      ValueError: for shapes that do not fit or an unknown option.

    Reference: Pham et al., "No Hard Negatives Required" (CVPR 2026), cross-modal attention
    pooling; Mukhoti et al., "Patch Aligned Contrastive Learning" (CVPR 2023), section 3.

    >>> import jax.numpy as jnp
    >>> tokens = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
    >>> similarity = pooled_similarity(tokens, jnp.array([[1.0, 0.0]]), sharpness=jnp.log(3.0))
    >>> round(float(similarity[0, 0]), 4)
    0.9487
    """
    if image_tokens.ndim != 3 or text_emb.ndim != 2:
        raise ValueError(
            "pooled_similarity takes image_tokens (b, l, d) and text_emb (n, d); got shapes "
            f"{image_tokens.shape} and {text_emb.shape}"
        )
    if image_tokens.shape[-1] != text_emb.shape[-1]:
        raise ValueError(
            f"image_tokens have width {image_tokens.shape[-1]} and text_emb "
            f"{text_emb.shape[-1]}; project both to the same width"
        )
    if scores not in ("dot", "cosine") or values not in ("raw", "normalized"):
        raise ValueError(
            f"scores={scores!r}, values={values!r}: use scores='dot' or 'cosine' and "
            "values='raw' or 'normalized'"
        )
    tokens, queries = accumulate(image_tokens), accumulate(text_emb)
    if values == "normalized":
        tokens = unit(tokens)
    # Tokens before texts: every product below is then a plain matrix product per image, and
    # the softmax runs over whole rows of texts at a time.
    products = jnp.einsum("bld,nd->bln", tokens, queries)
    attended = products
    if scores == "cosine":
        attended = products * _inverse_norm(jnp.sum(tokens * tokens, axis=-1, keepdims=True))
    attention = jax.nn.softmax(sharpness * attended, axis=1)
    gram = jnp.einsum("bld,bkd->blk", tokens, tokens)
    dot = jnp.sum(attention * products, axis=1)
    square = jnp.sum(attention * jnp.einsum("blk,bkn->bln", gram, attention), axis=1)
    return dot * _inverse_norm(square)


def accumulate(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Casts to the accumulation type: float32, or float64 where the input has it."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def unit(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """`x` scaled to norm 1 over the last axis; zero stays zero, with a finite gradient.

    >>> import jax.numpy as jnp
    >>> unit(jnp.array([3.0, 4.0]))
    Array([0.6, 0.8], dtype=float32)
    """
    return x * _inverse_norm(jnp.sum(x * x, axis=-1, keepdims=True))


def _inverse_norm(square: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """1 / sqrt(square), whose gradient float32 can hold; 0, with gradient 0, below 1e-24."""
    some = square > 1e-24
    # The inner choice keeps the gradient of the branch not taken finite.
    return jnp.where(some, jax.lax.rsqrt(jnp.where(some, square, 1.0)), 0.0)

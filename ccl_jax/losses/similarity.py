"""The one primitive: similarity of a text query and an image pooled under its attention.

XAC uses it with phrases (concept centric learning), PACL with captions (patch aligned
contrastive learning), the evaluators read heat maps from the same scores.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ccl_jax.losses import blocks, collectives, inputs, kernels
from ccl_jax.losses.blocks import ChunkSize, Side, Spec
from ccl_jax.losses.kernels import Pooling


def pooled_similarity(
    image_tokens: Float[Array, "b l d"],
    text_emb: Float[Array, "n d"],
    *,
    sharpness: float = 1.0,
    scores: Literal["dot", "cosine"] = "dot",
    values: Literal["raw", "normalized"] = "raw",
    token_where: Bool[Array, "b l"] | None = None,
    chunk_size: ChunkSize = None,
) -> Float[Array, "b n"]:
    """Similarity of every text with every image, pooled as that text attends to it.

    For image m with tokens V and text n with embedding q::

        a = softmax_l(sharpness * <V_l, q>)      p = sum_l a_l V_l      sim_mn = <p, q> / |p|

    The pooled (b, n, d) vectors need not be formed: <p, q> = sum_l a_l <V_l, q> and
    |p|^2 = a^T (V V^T) a. They are where texts are so few that this is cheaper. Gradients
    flow into both arguments, attention included.

    Args:
      image_tokens: patch tokens.
      text_emb: queries, L2-normalised by the caller. They are not normalised again here, so
        their gradient is that of the formula above.
      sharpness: factor on the scores before the softmax; 1 is nearly flat for unit vectors.
      scores: `cosine` divides each score by the token's norm before the softmax.
      values: `normalized` pools unit tokens instead of the tokens as given.
      token_where: tokens that count, all by default. An image without any has similarity 0.
      chunk_size: images of a block, whose intermediate values alone are kept; "auto" for as
        many as fit caches, None for all at once. The result is the same. In blocks only
        reverse differentiation works.

    Returns:
      (b, n) similarities in float32, or float64 for float64 inputs; each in [-1, 1].

    Raises:
      ValueError: for shapes or types that do not fit, or an unknown option.

    Reference: Pham et al., "No Hard Negatives Required" (CVPR 2026), cross-modal attention
    pooling; Mukhoti et al., "Patch Aligned Contrastive Learning" (CVPR 2023), section 3.

    >>> import jax.numpy as jnp
    >>> tokens = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
    >>> similarity = pooled_similarity(tokens, jnp.array([[1.0, 0.0]]), sharpness=jnp.log(3.0))
    >>> round(float(similarity[0, 0]), 4)
    0.9487
    """
    pooling = check_pooling(
        image_tokens, "text_emb", text_emb, sharpness, scores, values, token_where, chunk_size
    )
    spec = inputs.make_spec("negative", 0.0, chunk_size, pooling)
    if chunk_size is None:
        return blocks.similarities(pooling, image_tokens, token_where, text_emb)[0]
    spec = blocks.resolve(spec, image_tokens)
    return _in_blocks(spec, *collectives.unify(image_tokens, text_emb, token_where))


def check_pooling(
    image_tokens: Float[Array, "b l d"],
    name: str,
    texts: Float[Array, "n d"],
    sharpness: float,
    scores: Literal["dot", "cosine"],
    values: Literal["raw", "normalized"],
    token_where: Bool[Array, "b l"] | None,
    chunk_size: ChunkSize,
) -> Pooling:
    """Checks tokens, texts and options of a pooled similarity, and puts the options together.

    Raises:
      ValueError: for shapes or types that do not fit, or an unknown option.
    """
    inputs.check_embeddings("image_tokens", image_tokens, "b l d")
    inputs.check_embeddings(name, texts, "n d")
    inputs.check_images(image_tokens, texts, None, f"image_tokens and {name}")
    if scores not in ("dot", "cosine") or values not in ("raw", "normalized"):
        raise ValueError(
            f"scores={scores!r}, values={values!r}: use scores='dot' or 'cosine' and "
            "values='raw' or 'normalized'"
        )
    if token_where is not None:
        inputs.check_integers("token_where", token_where, image_tokens.shape[:2], "bool")
    if chunk_size is not None and isinstance(sharpness, jax.Array):
        raise ValueError(
            "sharpness must be a Python number when chunk_size is given; leave chunk_size out "
            "to learn it"
        )
    return Pooling(sharpness, scores, values)


def unit(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """`x` scaled to norm 1 over the last axis; zero stays zero, with a finite gradient.

    >>> import jax.numpy as jnp
    >>> unit(jnp.array([3.0, 4.0]))
    Array([0.6, 0.8], dtype=float32)
    """
    return x * kernels.inverse_norm(jnp.sum(x * x, axis=-1, keepdims=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_blocks(spec: Spec, images, texts, where):
    texts = kernels.accumulate(texts)
    b, n = images.shape[0], texts.shape[0]
    side = Side(None, where, None, None)

    def image_block(i, rows, found):
        prepared = blocks.prepare(spec, images, side, i, rows, n)

        def text_block(j, size, found):
            block = jax.lax.dynamic_slice_in_dim(texts, j, size)
            similarity, _, _ = kernels.forward(spec.pooling, prepared, block)
            return jax.lax.dynamic_update_slice(found, similarity, (i, j))

        return blocks.for_blocks(n, blocks.text_block(images, rows), text_block, found)

    start = collectives.like(jnp.zeros((b, n), texts.dtype), images)
    return blocks.for_blocks(b, spec.chunk_size, image_block, start)


def _in_blocks_forward(spec, images, texts, where):
    return _in_blocks(spec, images, texts, where), (images, texts, where)


def _in_blocks_backward(spec, saved, gradient):
    images, given_texts, where = saved
    texts = kernels.accumulate(given_texts)
    b, n = images.shape[0], texts.shape[0]
    side = Side(None, where, None, None)

    def image_block(i, rows, carry):
        of_images, of_texts = carry
        prepared = blocks.prepare(spec, images, side, i, rows, n)

        def text_block(j, size, carry):
            of_texts, sums = carry
            block = jax.lax.dynamic_slice_in_dim(texts, j, size)
            _, _, kept = kernels.forward(spec.pooling, prepared, block)
            slope = jax.lax.dynamic_slice(gradient, (i, j), (rows, size))
            of_block, sums = kernels.backward(spec.pooling, prepared, block, kept, slope, sums)
            return blocks.add_at(of_texts, of_block, j), sums

        sums = collectives.like(kernels.zeros(spec.pooling, prepared), images)
        of_texts, sums = blocks.for_blocks(
            n, blocks.text_block(images, rows), text_block, (of_texts, sums)
        )
        of_block = kernels.finish(spec.pooling, prepared, sums).astype(images.dtype)
        return blocks.put_at(of_images, of_block, i), of_texts

    start = collectives.like((jnp.zeros_like(images), jnp.zeros_like(texts)), images)
    of_images, of_texts = blocks.for_blocks(b, spec.chunk_size, image_block, start)
    return of_images, of_texts.astype(given_texts.dtype), None


_in_blocks.defvjp(_in_blocks_forward, _in_blocks_backward)

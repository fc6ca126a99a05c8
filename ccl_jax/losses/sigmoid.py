"""Sigmoid losses over all pairs: dense, in blocks, gathered over devices or round a ring.

What SigLIP, NPC and XAC share. A sum over pairs has its gradient taken in the forward pass,
block by block, so that nothing is computed twice and nothing of the size images x texts is
kept.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ccl_jax.losses import blocks, collectives, diagnostics, kernels
from ccl_jax.losses.blocks import Side, Spec
from ccl_jax.losses.collectives import AxisName
from ccl_jax.losses.inputs import Gathered


def sigmoid_loss(
    spec: Spec,
    images: Float[Array, "b *l d"],
    texts: Gathered,
    *,
    scale: float | Float[Array, ""],
    bias: float | Float[Array, ""],
    tokens_where: Bool[Array, "b l"] | None = None,
    image_where: Bool[Array, " b"] | None = None,
    axis_name: AxisName | None = None,
    ring: bool = False,
) -> tuple[Float[Array, ""], diagnostics.Metrics]:
    """Sum of `sigmoid_terms` over the pairs of the global batch, by its number of texts.

    Hard negatives are columns, but not counted. Without any text the loss is 0.

    Args:
      spec: static options.
      images: of this device; embeddings, or tokens where `spec.pooling` says how.
      texts: those of all devices, gathered unless they go round a ring.
      scale: multiplier of the similarities.
      bias: of the logits.
      tokens_where: tokens that count.
      image_where: images that count.
      axis_name: mapped axis over which the batch is split.
      ring: whether the embeddings of texts go from device to device.
    """
    rows = collectives.first_row(images.shape[0], axis_name) + jnp.arange(
        images.shape[0], dtype=jnp.int32
    )
    side = Side(rows, tokens_where, image_where, texts.pairing)
    dtype = kernels.accumulate(texts.emb).dtype
    scalars = jnp.asarray(scale, dtype), jnp.asarray(bias, dtype)
    spec = blocks.resolve(spec, images)
    arguments = collectives.unify(images, texts.emb, *scalars, side)
    if ring:
        total, counts = _ring(spec, axis_name, *arguments)
    else:
        total, counts = _sigmoid_sum(spec, *arguments)
    total = collectives.add(total, axis_name)
    counts = diagnostics.over_devices(counts, axis_name)
    return total / jnp.maximum(texts.count(axis_name), 1), diagnostics.summarize(counts)


def sigmoid_terms(
    logits: Float[Array, "b n"], positive: Bool[Array, "b n"], label_smoothing: float = 0.0
) -> Float[Array, "b n"]:
    """-log sigmoid(y * logits) per pair, y = 1 where `positive`, else -1.

    With label smoothing e the target is 1 - e / 2 for a positive and e / 2 for a negative.
    """
    signed = jnp.where(positive, logits, -logits)
    terms = jax.nn.softplus(-signed)
    return terms + label_smoothing / 2 * signed if label_smoothing else terms


def _sigmoid_sum(
    spec: Spec,
    images: Float[Array, "b *l d"],
    texts: Float[Array, "n d"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    side: Side,
) -> tuple[Float[Array, ""], diagnostics.Counts]:
    """Sum of `sigmoid_terms` over the pairs that count, and their counts."""
    if spec.chunk_size is not None:
        return _sigmoid_blocks(spec, images, texts, scale, bias, side)
    similarity, effective = blocks.similarities(spec.pooling, images, side.tokens_where, texts)
    logits = scale * similarity + bias
    positive, where = side.targets(spec, 0, images.shape[0], 0, texts.shape[0])
    terms = sigmoid_terms(logits, positive, spec.label_smoothing)
    counts = diagnostics.count(logits, positive, where, effective)
    return jnp.sum(terms, where=where), counts


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sigmoid_blocks(spec, images, texts, scale, bias, side):
    found = _scan(spec, images, texts, scale, bias, side, 0, gradient=False)
    return found.total, found.counts


def _sigmoid_blocks_forward(spec, images, texts, scale, bias, side):
    found = _scan(spec, images, texts, scale, bias, side, 0, gradient=True)
    of_texts = found.of_texts.astype(texts.dtype)
    gradient = (found.of_images, of_texts, found.of_scale, found.of_bias)
    return (found.total, found.counts), gradient


def _sigmoid_blocks_backward(spec, gradient, cotangents):
    del spec
    factor, _ = cotangents
    return *(_scaled(factor, g) for g in gradient), None


_sigmoid_blocks.defvjp(_sigmoid_blocks_forward, _sigmoid_blocks_backward)


def _scaled(factor: Float[Array, ""], x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """factor * x in the type of `x`."""
    return (factor * x.astype(factor.dtype)).astype(x.dtype)


class _Scan(NamedTuple):
    """Sum of terms, counts, and the gradient of the sum; None where it is not wanted."""

    total: Float[Array, ""]
    counts: diagnostics.Counts
    of_images: Float[Array, "b *l d"] | None = None
    of_texts: Float[Array, "n d"] | None = None
    of_scale: Float[Array, ""] | None = None
    of_bias: Float[Array, ""] | None = None


def _scan(
    spec: Spec,
    images: Float[Array, "b *l d"],
    texts: Float[Array, "n d"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    side: Side,
    first_text: Int[Array, ""] | int,
    *,
    gradient: bool,
) -> _Scan:
    """The sum over pairs in blocks of images, and of texts inside.

    Args:
      spec: options; a chunk of None takes all images as one block.
      images: of this device.
      texts: consecutive texts of the global batch, from text `first_text` on.
      scale: multiplier of the similarities.
      bias: of the logits.
      side: how they belong together.
      first_text: place of the first of `texts` in `side.pairing`.
      gradient: whether to take the gradient as well. `of_texts` is in the accumulation
        type, `of_images` in that of the images.
    """
    texts = kernels.accumulate(texts)
    dtype, b, n = texts.dtype, images.shape[0], texts.shape[0]
    zero = jnp.zeros((), dtype)
    start = _Scan(zero, diagnostics.nothing(dtype, spec.pooling is not None))
    if gradient:
        start = _Scan(*start[:2], jnp.zeros_like(images), jnp.zeros_like(texts), zero, zero)

    def image_block(i, rows, carry):
        prepared = blocks.prepare(spec, images, side, i, rows, n)

        def text_block(j, size, carry):
            found, sums = carry
            block = jax.lax.dynamic_slice_in_dim(texts, j, size)
            similarity, effective, saved = kernels.forward(spec.pooling, prepared, block)
            logits = scale * similarity + bias
            positive, where = side.targets(spec, i, rows, first_text + j, size)
            signed = jnp.where(positive, logits, -logits)
            terms = sigmoid_terms(logits, positive, spec.label_smoothing)
            counts = diagnostics.count(logits, positive, where, effective)
            found = found._replace(
                total=found.total + jnp.sum(terms, where=where),
                counts=diagnostics.merge(found.counts, counts),
            )
            if not gradient:
                return found, sums
            slope = spec.label_smoothing / 2 - jax.nn.sigmoid(-signed)
            slope = jnp.where(where, jnp.where(positive, slope, -slope), 0)
            of_block, sums = kernels.backward(
                spec.pooling, prepared, block, saved, scale * slope, sums
            )
            found = found._replace(
                of_texts=blocks.add_at(found.of_texts, of_block, j),
                of_scale=found.of_scale + jnp.sum(slope * similarity),
                of_bias=found.of_bias + jnp.sum(slope),
            )
            return found, sums

        sums = kernels.zeros(spec.pooling, prepared) if gradient else ()
        sums = collectives.like(sums, images)
        found, sums = blocks.for_blocks(
            n, blocks.text_block(images, rows), text_block, (carry, sums)
        )
        if not gradient:
            return found
        of_block = kernels.finish(spec.pooling, prepared, sums).astype(images.dtype)
        return found._replace(of_images=blocks.put_at(found.of_images, of_block, i))

    chunk = b if spec.chunk_size is None else spec.chunk_size
    return blocks.for_blocks(b, chunk, image_block, collectives.like(start, images))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ring(spec, axis_name, images, texts, scale, bias, side):
    """`_sigmoid_sum` of this device's images and all texts, which come by share after share."""

    def step(source, texts, carry):
        first = source * texts.shape[0]
        found = _scan(spec, images, texts, scale, bias, side, first, gradient=False)
        total, counts = carry
        return texts, (total + found.total, diagnostics.merge(counts, found.counts))

    start = (jnp.zeros_like(scale), diagnostics.nothing(scale.dtype, spec.pooling is not None))
    return _round(axis_name, step, texts, collectives.like(start, images))[1]


def _ring_forward(spec, axis_name, *arguments):
    return _ring(spec, axis_name, *arguments), arguments


def _ring_backward(spec, axis_name, saved, cotangents):
    given_images, given_texts, scale, bias, side = saved
    factor, _ = cotangents
    images, texts = kernels.accumulate(given_images), kernels.accumulate(given_texts)

    # The gradient of the texts travels with them; one step more and it is home.
    def step(source, visitor, carry):
        texts, of_texts = visitor
        first = source * texts.shape[0]
        found = _scan(spec, images, texts, scale, bias, side, first, gradient=True)
        carry = jax.tree.map(jnp.add, carry, (found.of_images, found.of_scale, found.of_bias))
        return (texts, of_texts + factor * found.of_texts), carry

    start = (jnp.zeros_like(images), jnp.zeros_like(scale), jnp.zeros_like(scale))
    visitor = (texts, collectives.like(jnp.zeros_like(texts), images))
    (_, of_texts), carry = _round(axis_name, step, visitor, collectives.like(start, images))
    of_texts = collectives.shift(of_texts, axis_name)
    of_images, of_scale, of_bias = (factor * x for x in carry)
    return (
        of_images.astype(given_images.dtype),
        of_texts.astype(given_texts.dtype),
        of_scale,
        of_bias,
        None,
    )


_ring.defvjp(_ring_forward, _ring_backward)


def _round(axis_name, step, visitor, carry):
    """`visitor, carry = step(source, visitor, carry)` while every device's visitor comes by."""
    devices, here = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)

    def stop(k, state):
        visitor, carry = step((here - k) % devices, *state)
        return collectives.shift(visitor, axis_name), carry

    state = jax.lax.fori_loop(0, devices - 1, stop, (visitor, carry))
    return step((here + 1) % devices, *state)

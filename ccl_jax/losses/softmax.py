"""Symmetric softmax losses over all pairs: dense, in blocks, over devices.

What CLIP and PACL share. Cross-entropies are made of log-sum-exps of rows and columns of
the logits; a device has the rows of its images, and the log-sum-exps of columns are put
together from those of all devices, so that no logit crosses the network. In blocks the
logits are computed anew for the gradient.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ccl_jax.losses import blocks, collectives, diagnostics, kernels
from ccl_jax.losses.blocks import Side, Spec
from ccl_jax.losses.collectives import AxisName
from ccl_jax.losses.inputs import Gathered


def softmax_loss(
    spec: Spec,
    images: Float[Array, "b *l d"],
    texts: Gathered,
    *,
    scale: float | Float[Array, ""],
    tokens_where: Bool[Array, "b l"] | None = None,
    image_where: Bool[Array, " b"] | None = None,
    axis_name: AxisName | None = None,
) -> tuple[Float[Array, ""], diagnostics.Metrics]:
    """Mean of the cross-entropies of images over texts and of texts over images.

    An image with several positive texts, or the reverse, has the mean of their log
    probabilities (Khosla et al., "Supervised Contrastive Learning" (2020), L_out). With
    label smoothing e, the target of a row is 1 - e on its positives and e on all that count.
    Rows and columns without a positive (hard negatives) are not answers, but choices.

    Args:
      spec: static options.
      images: of this device; embeddings, or tokens where `spec.pooling` says how.
      texts: those of all devices.
      scale: multiplier of the similarities.
      tokens_where: tokens that count.
      image_where: images that count.
      axis_name: mapped axis over which the batch is split.
    """
    rows = collectives.first_row(images.shape[0], axis_name) + jnp.arange(
        images.shape[0], dtype=jnp.int32
    )
    side = Side(rows, tokens_where, image_where, texts.pairing)
    scale = jnp.asarray(scale, kernels.accumulate(texts.emb).dtype)
    spec = blocks.resolve(spec, images)
    arguments = collectives.unify(images, texts.emb, scale, side)
    sums, pairs, counts = _softmax_sums(spec, *arguments)
    of_rows = _mean_cross_entropy(spec.label_smoothing, *sums[:3], *pairs[:2], axis_name=axis_name)
    column_lse = collectives.logsumexp(sums.column_lse, axis_name)
    of_all = collectives.add((sums[4:], pairs[2:]), axis_name)
    of_columns = _mean_cross_entropy(
        spec.label_smoothing, column_lse, *of_all[0], *of_all[1], axis_name=None
    )
    counts = diagnostics.over_devices(counts, axis_name)
    return (of_rows + of_columns) / 2, diagnostics.summarize(counts)


def _mean_cross_entropy(smoothing, lse, of_positive, of_all, positives, everything, *, axis_name):
    answer = positives > 0
    target = (1 - smoothing) * of_positive / jnp.maximum(positives, 1)
    if smoothing:
        target = target + smoothing * of_all / jnp.maximum(everything, 1)
    total = jnp.sum(lse - target, where=answer)
    total, answers = collectives.add((total, jnp.sum(answer, dtype=lse.dtype)), axis_name)
    return total / jnp.maximum(answers, 1)


class SoftmaxSums(NamedTuple):
    """Log-sum-exps and sums of logits, of rows (images) and columns (texts).

    Attributes:
      row_lse: (b,) over the texts that count; `kernels.FLOOR` where none does.
      row_positive: (b,) sum of the logits of positive pairs.
      row_all: (b,) sum of all logits that count.
      column_lse: (n,) over the images of this device that count.
      column_positive: (n,) as for rows.
      column_all: (n,) as for rows.
    """

    row_lse: Float[Array, " b"]
    row_positive: Float[Array, " b"]
    row_all: Float[Array, " b"]
    column_lse: Float[Array, " n"]
    column_positive: Float[Array, " n"]
    column_all: Float[Array, " n"]


class PairCounts(NamedTuple):
    """Numbers of positive pairs and of pairs that count, by row and column; as floats."""

    row_positive: Float[Array, " b"]
    row_all: Float[Array, " b"]
    column_positive: Float[Array, " n"]
    column_all: Float[Array, " n"]


def _softmax_sums(
    spec: Spec,
    images: Float[Array, "b *l d"],
    texts: Float[Array, "n d"],
    scale: Float[Array, ""],
    side: Side,
) -> tuple[SoftmaxSums, PairCounts, diagnostics.Counts]:
    """The sums that symmetric cross-entropy is made of, for the images of one device."""
    if spec.chunk_size is not None:
        return _softmax_blocks(spec, images, texts, scale, side)
    similarity, effective = blocks.similarities(spec.pooling, images, side.tokens_where, texts)
    logits = scale * similarity
    positive, where = side.targets(spec, 0, images.shape[0], 0, texts.shape[0])
    masked = jnp.where(where, logits, kernels.FLOOR)
    lse = jax.nn.logsumexp
    total = functools.partial(jnp.sum, logits)
    sums = SoftmaxSums(
        lse(masked, axis=1),
        total(axis=1, where=positive),
        total(axis=1, where=where),
        lse(masked, axis=0),
        total(axis=0, where=positive),
        total(axis=0, where=where),
    )
    counts = diagnostics.count(logits, positive, where, effective)
    return sums, _pair_counts(positive, where, logits.dtype), counts


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax_blocks(spec, images, texts, scale, side):
    return _scan_softmax(spec, images, texts, scale, side)


def _softmax_blocks_forward(spec, images, texts, scale, side):
    found = _scan_softmax(spec, images, texts, scale, side)
    return found, (images, texts, scale, side, found[0].row_lse, found[0].column_lse)


def _scan_softmax(spec, images, texts, scale, side):
    texts = kernels.accumulate(texts)
    dtype, b, n = texts.dtype, images.shape[0], texts.shape[0]
    rows, columns = jnp.zeros(b, dtype), jnp.zeros(n, dtype)
    sums = SoftmaxSums(rows + kernels.FLOOR, rows, rows, columns + kernels.FLOOR, columns, columns)
    pairs = PairCounts(rows, rows, columns, columns)
    start = (sums, pairs, diagnostics.nothing(dtype, spec.pooling is not None))

    def image_block(i, count, carry):
        prepared = blocks.prepare(spec, images, side, i, count, n)

        def text_block(j, size, carry):
            sums, pairs, counts = carry
            block = jax.lax.dynamic_slice_in_dim(texts, j, size)
            similarity, effective, _ = kernels.forward(spec.pooling, prepared, block)
            logits = scale * similarity
            positive, where = side.targets(spec, i, count, j, size)
            masked = jnp.where(where, logits, kernels.FLOOR)
            of_positive = jnp.where(positive, logits, 0)
            of_all = jnp.where(where, logits, 0)
            found = []
            for axis, at in ((1, i), (0, j)):
                lse = sums.row_lse if axis else sums.column_lse
                positives = sums.row_positive if axis else sums.column_positive
                every = sums.row_all if axis else sums.column_all
                found += [
                    _lse_at(lse, masked, axis, at),
                    blocks.add_at(positives, jnp.sum(of_positive, axis), at),
                    blocks.add_at(every, jnp.sum(of_all, axis), at),
                ]
            more = _pair_counts(positive, where, dtype)
            pairs = PairCounts(
                *(
                    blocks.add_at(old, new, at)
                    for old, new, at in zip(pairs, more, (i, i, j, j), strict=True)
                )
            )
            more = diagnostics.count(logits, positive, where, effective)
            return SoftmaxSums(*found), pairs, diagnostics.merge(counts, more)

        return blocks.for_blocks(n, blocks.text_block(images, count), text_block, carry)

    return blocks.for_blocks(b, spec.chunk_size, image_block, collectives.like(start, images))


def _softmax_blocks_backward(spec, saved, cotangents):
    images, given_texts, scale, side, row_lse, column_lse = saved
    of_sums: SoftmaxSums = cotangents[0]
    texts = kernels.accumulate(given_texts)
    b, n = images.shape[0], texts.shape[0]
    start = (jnp.zeros_like(images), jnp.zeros_like(texts), jnp.zeros((), texts.dtype))

    def image_block(i, count, carry):
        prepared = blocks.prepare(spec, images, side, i, count, n)
        row = lambda x: jax.lax.dynamic_slice_in_dim(x, i, count)[:, None]  # noqa: E731

        def text_block(j, size, carry):
            of_texts, of_scale, sums = carry
            block = jax.lax.dynamic_slice_in_dim(texts, j, size)
            column = lambda x: jax.lax.dynamic_slice_in_dim(x, j, size)[None, :]  # noqa: E731
            similarity, _, kept = kernels.forward(spec.pooling, prepared, block)
            logits = scale * similarity
            positive, where = side.targets(spec, i, count, j, size)
            slope = (
                row(of_sums.row_lse) * jnp.exp(logits - row(row_lse))
                + column(of_sums.column_lse) * jnp.exp(logits - column(column_lse))
                + row(of_sums.row_all)
                + column(of_sums.column_all)
            )
            slope = jnp.where(where, slope, 0)
            slope = slope + jnp.where(
                positive, row(of_sums.row_positive) + column(of_sums.column_positive), 0
            )
            of_block, sums = kernels.backward(
                spec.pooling, prepared, block, kept, scale * slope, sums
            )
            of_scale = of_scale + jnp.sum(slope * similarity)
            return blocks.add_at(of_texts, of_block, j), of_scale, sums

        of_images, of_texts, of_scale = carry
        sums = collectives.like(kernels.zeros(spec.pooling, prepared), images)
        of_texts, of_scale, sums = blocks.for_blocks(
            n, blocks.text_block(images, count), text_block, (of_texts, of_scale, sums)
        )
        of_block = kernels.finish(spec.pooling, prepared, sums).astype(images.dtype)
        return blocks.put_at(of_images, of_block, i), of_texts, of_scale

    of_images, of_texts, of_scale = blocks.for_blocks(
        b, spec.chunk_size, image_block, collectives.like(start, images)
    )
    return of_images, of_texts.astype(given_texts.dtype), of_scale, None


_softmax_blocks.defvjp(_softmax_blocks_forward, _softmax_blocks_backward)


def _pair_counts(positive, where, dtype):
    return PairCounts(
        *(jnp.sum(x, axis, dtype=dtype) for axis in (1, 0) for x in (positive, where))
    )


def _lse_at(x, logits, axis, start):
    size = logits.shape[1 - axis]
    old = jax.lax.dynamic_slice_in_dim(x, start, size)
    new = jnp.logaddexp(old, jax.nn.logsumexp(logits, axis=axis))
    return jax.lax.dynamic_update_slice_in_dim(x, new, start, 0)

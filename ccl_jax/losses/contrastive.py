"""Losses on global embeddings: CLIP's softmax and SigLIP's sigmoid."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ccl_jax.losses import diagnostics, inputs
from ccl_jax.losses.blocks import ChunkSize
from ccl_jax.losses.collectives import AxisName
from ccl_jax.losses.diagnostics import Metrics
from ccl_jax.losses.sigmoid import sigmoid_loss
from ccl_jax.losses.softmax import softmax_loss
from ccl_jax.losses.targets import Duplicates

Scalar = float | Float[Array, ""]
Exchange = Literal["gather", "ring"]


def clip_loss(
    image_emb: Float[Array, "b d"],
    text_emb: Float[Array, "n d"],
    *,
    scale: Scalar,
    text_image: Int[Array, " n"] | None = None,
    where: Bool[Array, " n"] | None = None,
    image_where: Bool[Array, " b"] | None = None,
    text_ids: Int[Array, "n t"] | None = None,
    duplicates: Duplicates = "negative",
    hard_text_emb: Float[Array, "h d"] | None = None,
    hard_where: Bool[Array, " h"] | None = None,
    label_smoothing: float = 0.0,
    chunk_size: ChunkSize = None,
    axis_name: AxisName | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Symmetric softmax contrastive loss (InfoNCE), averaged over images and captions.

    logits_ij = scale <v_i, u_j>; the loss is the mean of the cross-entropies of rows (image
    to text: a mean over images) and of columns (text to image: a mean over captions), the
    positive pairs being the right answers. Several positives of a row share it evenly::

        L = (mean_i [lse_j logits_ij - mean_{j in P(i)} logits_ij]
             + mean_j [lse_i logits_ij - mean_{i in P(j)} logits_ij]) / 2

    Gradients flow into both embeddings and into `scale` where it is an array (a Python
    number is a fixed temperature).

    Args:
      image_emb: L2-normalised image embeddings.
      text_emb: L2-normalised caption embeddings.
      scale: multiplier of the cosines, exp(log_scale); not a temperature.
      text_image: row of the global batch that each caption belongs to, -1 for padding; by
        default caption i belongs to image i. Several captions may belong to one image.
      where: captions that count, all by default.
      image_where: images that count; the captions of others must not count either.
      text_ids: the captions' token ids; needed unless `duplicates` is "negative".
      duplicates: what an image's pair with a foreign caption is when the image has the same
        caption of its own: "negative" (as published), "ignore" (left out) or "positive".
      hard_text_emb: captions that are wrong for every image (NegCLIP): further choices of
        the images, never an answer.
      hard_where: hard captions that count, all by default.
      label_smoothing: share of a target that goes evenly to all choices.
      chunk_size: images of a block, or "auto" for as many as fit caches. None keeps all
        logits; in blocks they are computed twice and nothing of the size b x n is kept. Same
        value and gradient.
      axis_name: axis of `jax.shard_map` over which images and captions are split; the loss is
        that of the global batch. Embeddings, owners and ids of captions are gathered: n d + n
        (t + 2) numbers for n captions, and n d in the backward pass; of images, nothing.

    Returns:
      The loss, and metrics: those of `logit_metrics`, `image_norm` and `text_norm`.

    Raises:
      ValueError: for shapes, types or options that do not fit, or an unknown `axis_name`.

    References: Radford et al., "Learning Transferable Visual Models" (2021), figure 3;
    Khosla et al., "Supervised Contrastive Learning" (2020), equation 2; Yuksekgonul et al.,
    "When and why vision-language models behave like bags-of-words" (2023), section 4.

    >>> import jax.numpy as jnp
    >>> loss, _ = clip_loss(jnp.eye(2), jnp.eye(2), scale=1.0)
    >>> round(float(loss), 4)
    0.3133
    """
    spec = inputs.make_spec(duplicates, label_smoothing, chunk_size)
    _check(image_emb, text_emb, image_where)
    columns = inputs.columns(
        "text",
        text_emb,
        text_image,
        images=image_emb.shape[0],
        where=where,
        ids=text_ids,
        duplicates=duplicates,
        hard_emb=hard_text_emb,
        hard_where=hard_where,
        axis_name=axis_name,
    )
    image_emb = _masked(image_emb, image_where)
    texts = inputs.gather(columns, axis_name)
    loss, metrics = softmax_loss(
        spec, image_emb, texts, scale=scale, image_where=image_where, axis_name=axis_name
    )
    return loss, metrics | _norms(image_emb, image_where, columns, axis_name)


def siglip_loss(
    image_emb: Float[Array, "b d"],
    text_emb: Float[Array, "n d"],
    *,
    scale: Scalar,
    bias: Scalar,
    text_image: Int[Array, " n"] | None = None,
    where: Bool[Array, " n"] | None = None,
    image_where: Bool[Array, " b"] | None = None,
    text_ids: Int[Array, "n t"] | None = None,
    duplicates: Duplicates = "negative",
    hard_text_emb: Float[Array, "h d"] | None = None,
    hard_where: Bool[Array, " h"] | None = None,
    label_smoothing: float = 0.0,
    chunk_size: ChunkSize = None,
    axis_name: AxisName | None = None,
    exchange: Exchange = "gather",
) -> tuple[Float[Array, ""], Metrics]:
    """Sigmoid contrastive loss: every image-caption pair is a binary decision.

    L = -(1/n) sum_ij log sigmoid(y_ij (scale <v_i, u_j> + bias)), y_ij = 1 for the positive
    pairs, else -1. The divisor is the number of captions (with one for each image, that of
    images), not of pairs. Gradients flow into both embeddings, `scale` and `bias`.

    Args:
      image_emb: L2-normalised image embeddings.
      text_emb: L2-normalised caption embeddings.
      scale: multiplier of the cosines, exp(log_scale).
      bias: added to every logit; about -log(b) balances positives and negatives.
      text_image: as in `clip_loss`.
      where: as in `clip_loss`.
      image_where: as in `clip_loss`.
      text_ids: as in `clip_loss`.
      duplicates: as in `clip_loss`.
      hard_text_emb: captions that are wrong for every image; not in the divisor.
      hard_where: as in `clip_loss`.
      label_smoothing: e moves the targets from 1 and 0 to 1 - e / 2 and e / 2.
      chunk_size: images of a block, or "auto" for as many as fit caches. None keeps all
        logits; in blocks nothing of the size b x n is kept and nothing computed twice. Same
        value and gradient.
      axis_name: as in `clip_loss`.
      exchange: how captions come to the other devices, over `axis_name`. With n captions in
        all and W devices, a device receives in float32, forward and backward together:
        "gather": 8 n d (W - 1) / W bytes, and holds all n captions;
        "ring": 4 n d (3 - 2 / W) bytes in 3 W - 2 messages, and never holds more than two
        shares. Computes the logits twice. Choose "gather" unless n d floats do not fit.

    Returns:
      The loss, and metrics: those of `logit_metrics`, `image_norm` and `text_norm`.

    Raises:
      ValueError: for shapes, types or options that do not fit, or an unknown `axis_name`.

    Reference: Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (2023), eq. 1;
    its section 3.3 describes the ring.

    >>> import jax.numpy as jnp
    >>> loss, _ = siglip_loss(jnp.eye(2), jnp.eye(2), scale=1.0, bias=0.0)
    >>> round(float(loss), 4)
    1.0064
    """
    if exchange not in ("gather", "ring"):
        raise ValueError(f"exchange={exchange!r}: use 'gather' or 'ring'")
    ring = exchange == "ring" and axis_name is not None
    spec = inputs.make_spec(duplicates, label_smoothing, chunk_size)
    _check(image_emb, text_emb, image_where)
    columns = inputs.columns(
        "text",
        text_emb,
        text_image,
        images=image_emb.shape[0],
        where=where,
        ids=text_ids,
        duplicates=duplicates,
        hard_emb=hard_text_emb,
        hard_where=hard_where,
        axis_name=axis_name,
    )
    image_emb = _masked(image_emb, image_where)
    loss, metrics = sigmoid_loss(
        spec,
        image_emb,
        inputs.gather(columns, axis_name, ring=ring),
        scale=scale,
        bias=bias,
        image_where=image_where,
        axis_name=axis_name,
        ring=ring,
    )
    return loss, metrics | _norms(image_emb, image_where, columns, axis_name)


def _check(image_emb, text_emb, image_where):
    inputs.check_embeddings("image_emb", image_emb, "b d")
    inputs.check_embeddings("text_emb", text_emb, "n d")
    inputs.check_images(image_emb, text_emb, image_where, "image_emb and text_emb")


def _masked(image_emb, image_where):
    return image_emb if image_where is None else jnp.where(image_where[:, None], image_emb, 0)


def _norms(image_emb, image_where, columns, axis_name):
    return {
        "image_norm": diagnostics.mean_norm(image_emb, image_where, axis_name),
        "text_norm": diagnostics.mean_norm(columns.emb, columns.real, axis_name),
    }

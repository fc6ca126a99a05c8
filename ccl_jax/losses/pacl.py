"""Patch aligned contrastive learning: the pooled similarity as compatibility of a pair.

Mukhoti, Lin, Poursaeed, Wang, Shah, Torr, Lim: "Open Vocabulary Semantic Segmentation with
Patch Aligned Contrastive Learning" (CVPR 2023, arXiv 2212.04994).
"""

from typing import Literal

from jaxtyping import Array, Bool, Float, Int

from ccl_jax.losses import diagnostics, inputs
from ccl_jax.losses.blocks import ChunkSize
from ccl_jax.losses.collectives import AxisName
from ccl_jax.losses.contrastive import Scalar
from ccl_jax.losses.diagnostics import Metrics
from ccl_jax.losses.similarity import check_pooling
from ccl_jax.losses.softmax import softmax_loss
from ccl_jax.losses.targets import Duplicates


def pacl_loss(
    image_tokens: Float[Array, "b l d"],
    text_emb: Float[Array, "n d"],
    *,
    scale: Scalar,
    sharpness: float = 10.0,
    scores: Literal["dot", "cosine"] = "cosine",
    values: Literal["raw", "normalized"] = "raw",
    token_where: Bool[Array, "b l"] | None = None,
    text_image: Int[Array, " n"] | None = None,
    where: Bool[Array, " n"] | None = None,
    text_ids: Int[Array, "n t"] | None = None,
    duplicates: Duplicates = "negative",
    hard_text_emb: Float[Array, "h d"] | None = None,
    hard_where: Bool[Array, " h"] | None = None,
    label_smoothing: float = 0.0,
    chunk_size: ChunkSize = None,
    axis_name: AxisName | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Symmetric InfoNCE over the compatibilities phi(image i, caption j) of all pairs.

    phi is the `pooled_similarity`: image i is pooled anew for every caption j. (Pooling it
    with its own caption alone, as other code does, leaks the caption into the image.) The
    loss is that of `clip_loss` with scale phi_ij as logits: a mean over images and a mean
    over captions, halved. Gradients flow into both arguments, through the attention too.

    Args:
      image_tokens: patch tokens from the patch embedder, not normalised.
      text_emb: L2-normalised caption embeddings.
      scale: multiplier of the compatibilities, exp(log_scale).
      sharpness: of the softmax over patches; the paper does not state it, 1 is as written.
      scores: what the softmax over patches sees.
      values: what is summed under it.
      token_where: tokens that count, all by default.
      text_image: as in `clip_loss`.
      where: as in `clip_loss`.
      text_ids: as in `clip_loss`.
      duplicates: as in `clip_loss`.
      hard_text_emb: as in `clip_loss`.
      hard_where: as in `clip_loss`.
      label_smoothing: as in `clip_loss`.
      chunk_size: as in `clip_loss`.
      axis_name: as in `clip_loss`; image tokens never leave their device.

    Returns:
      The loss, and metrics: those of `logit_metrics`, `effective_patches` (of positive
      pairs: exp of the entropy of the attention), `token_norm` and `text_norm`.

    Raises:
      ValueError: for shapes, types or options that do not fit, or an unknown `axis_name`.

    >>> import jax.numpy as jnp
    >>> loss, _ = pacl_loss(jnp.eye(2)[:, None, :], jnp.eye(2), scale=1.0)
    >>> round(float(loss), 4)
    0.3133
    """
    pooling = check_pooling(
        image_tokens, "text_emb", text_emb, sharpness, scores, values, token_where, chunk_size
    )
    spec = inputs.make_spec(duplicates, label_smoothing, chunk_size, pooling)
    columns = inputs.columns(
        "text",
        text_emb,
        text_image,
        images=image_tokens.shape[0],
        where=where,
        ids=text_ids,
        duplicates=duplicates,
        hard_emb=hard_text_emb,
        hard_where=hard_where,
        axis_name=axis_name,
    )
    texts = inputs.gather(columns, axis_name)
    loss, metrics = softmax_loss(
        spec, image_tokens, texts, scale=scale, tokens_where=token_where, axis_name=axis_name
    )
    return loss, metrics | {
        "token_norm": diagnostics.mean_norm(image_tokens, token_where, axis_name),
        "text_norm": diagnostics.mean_norm(columns.emb, columns.real, axis_name),
    }

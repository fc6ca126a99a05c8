"""Patch aligned contrastive learning: the pooled similarity as compatibility of a pair.

Mukhoti, Lin, Poursaeed, Wang, Shah, Torr, Lim: "Open Vocabulary Semantic Segmentation with
Patch Aligned Contrastive Learning" (CVPR 2023, arXiv 2212.04994).
"""

from typing import Literal

from jaxtyping import Array, Float

from ccl_jax.losses.contrastive import Metrics, Scalar, softmax_contrastive
from ccl_jax.losses.similarity import pooled_similarity


def pacl_loss(
    image_tokens: Float[Array, "b l d"],
    text_emb: Float[Array, "b d"],
    *,
    scale: Scalar,
    sharpness: Scalar = 10.0,
    scores: Literal["dot", "cosine"] = "cosine",
    values: Literal["raw", "normalized"] = "raw",
) -> tuple[Float[Array, ""], Metrics]:
    """Symmetric InfoNCE over the compatibilities phi(image i, caption j) of all pairs.

    phi is the `pooled_similarity`: image i is pooled anew for every caption j. (Pooling it
    with its own caption alone, as other code does, leaks the caption into the image.)

    Args:
      image_tokens: patch tokens from the patch embedder, not normalised.
      text_emb: L2-normalised caption embeddings, row i belongs to image i.
      scale: multiplier of the compatibilities, exp(log_scale).
      sharpness: of the softmax over patches; the paper does not state it, 1 is as written.
      scores: what the softmax over patches sees.
      values: what is summed under it.

    Returns:
      The loss, and the metrics of `logit_metrics`.

    Raises:
      ValueError: for shapes that do not fit.

    >>> import jax.numpy as jnp
    >>> loss, _ = pacl_loss(jnp.eye(2)[:, None, :], jnp.eye(2), scale=1.0)
    >>> round(float(loss), 4)
    0.3133
    """
    if image_tokens.ndim != 3 or image_tokens.shape[0] != text_emb.shape[0]:
        raise ValueError(
            "pacl_loss takes image_tokens (b, l, d) and text_emb (b, d), row i of one "
            f"belonging to row i of the other; got {image_tokens.shape} and {text_emb.shape}"
        )
    similarity = pooled_similarity(
        image_tokens, text_emb, sharpness=sharpness, scores=scores, values=values
    )
    return softmax_contrastive(scale * similarity)

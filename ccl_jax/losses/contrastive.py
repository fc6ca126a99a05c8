"""Losses on global embeddings: CLIP's softmax and SigLIP's sigmoid."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ccl_jax.losses.similarity import accumulate

Metrics = dict[str, Float[Array, ""]]
Scalar = float | Float[Array, ""]


def clip_loss(
    image_emb: Float[Array, "b d"], text_emb: Float[Array, "b d"], *, scale: Scalar
) -> tuple[Float[Array, ""], Metrics]:
    """Symmetric softmax contrastive loss (InfoNCE), averaged over images and captions.

    logits_ij = scale <v_i, u_j>; the loss is the mean of the cross-entropies of rows
    (image to text) and of columns (text to image), the diagonal being the right answer.

    Args:
      image_emb: L2-normalised image embeddings.
      text_emb: L2-normalised caption embeddings, row i belongs to image i.
      scale: multiplier of the cosines, exp(log_scale); not a temperature.

    Returns:
      The loss, and the metrics of `logit_metrics`.

    Raises:
      ValueError: if the shapes differ.

    Reference: Radford et al., "Learning Transferable Visual Models" (2021), figure 3.

    >>> import jax.numpy as jnp
    >>> loss, _ = clip_loss(jnp.eye(2), jnp.eye(2), scale=1.0)
    >>> round(float(loss), 4)
    0.3133
    """
    logits = scale * _cosines(image_emb, text_emb)
    return softmax_contrastive(logits)


def siglip_loss(
    image_emb: Float[Array, "b d"],
    text_emb: Float[Array, "b d"],
    *,
    scale: Scalar,
    bias: Scalar,
) -> tuple[Float[Array, ""], Metrics]:
    """Sigmoid contrastive loss: every image-caption pair is a binary decision.

    L = -(1/b) sum_ij log sigmoid(y_ij (scale <v_i, u_j> + bias)), y_ii = 1, else -1. The
    divisor is the number of images, not of pairs.

    Args:
      image_emb: L2-normalised image embeddings.
      text_emb: L2-normalised caption embeddings, row i belongs to image i.
      scale: multiplier of the cosines, exp(log_scale).
      bias: added to every logit; about -log(b) balances positives and negatives.

    Returns:
      The loss, and the metrics of `logit_metrics`.

    Raises:
      ValueError: if the shapes differ.

    Reference: Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (2023), eq. 1.

    >>> import jax.numpy as jnp
    >>> loss, _ = siglip_loss(jnp.eye(2), jnp.eye(2), scale=1.0, bias=0.0)
    >>> round(float(loss), 4)
    1.0064
    """
    logits = scale * _cosines(image_emb, text_emb) + bias
    positive = jnp.eye(logits.shape[0], dtype=bool)
    loss = sigmoid_terms(logits, positive).sum() / logits.shape[0]
    return loss, logit_metrics(logits, positive)


def softmax_contrastive(logits: Float[Array, "b b"]) -> tuple[Float[Array, ""], Metrics]:
    """Symmetric cross-entropy of a square logit matrix whose diagonal is right."""
    right = jnp.diagonal(logits)
    rows = jax.nn.logsumexp(logits, axis=1) - right
    columns = jax.nn.logsumexp(logits, axis=0) - right
    positive = jnp.eye(logits.shape[0], dtype=bool)
    return (jnp.mean(rows) + jnp.mean(columns)) / 2, logit_metrics(logits, positive)


def sigmoid_terms(
    logits: Float[Array, "b n"], positive: Bool[Array, "b n"]
) -> Float[Array, "b n"]:
    """-log sigmoid(y * logits) per pair, y = 1 where `positive`, else -1."""
    return jax.nn.softplus(jnp.where(positive, -logits, logits))


def logit_metrics(
    logits: Float[Array, "b n"],
    positive: Bool[Array, "b n"],
    where: Bool[Array, "b n"] | None = None,
) -> Metrics:
    """Mean, minimum and maximum of positive and negative logits, over pairs in `where`.

    One sees a contrastive run go wrong here first. Not differentiated. An empty set of
    pairs gives 0.
    """
    logits = jax.lax.stop_gradient(logits)
    where = jnp.ones_like(positive) if where is None else where
    metrics = {}
    for name, chosen in (("positive", positive & where), ("negative", ~positive & where)):
        some = jnp.any(chosen)
        count = jnp.maximum(jnp.sum(chosen), 1).astype(logits.dtype)
        mean = jnp.sum(logits, where=chosen) / count
        low = jnp.min(logits, where=chosen, initial=jnp.inf)
        high = jnp.max(logits, where=chosen, initial=-jnp.inf)
        metrics[f"{name}_logit_mean"] = mean
        metrics[f"{name}_logit_min"] = jnp.where(some, low, 0.0)
        metrics[f"{name}_logit_max"] = jnp.where(some, high, 0.0)
    return metrics


def _cosines(image_emb, text_emb):
    if image_emb.ndim != 2 or image_emb.shape != text_emb.shape:
        raise ValueError(
            "the loss takes image_emb and text_emb of one shape (b, d), row i of one "
            f"belonging to row i of the other; got {image_emb.shape} and {text_emb.shape}"
        )
    return accumulate(image_emb) @ accumulate(text_emb).T

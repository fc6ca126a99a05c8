"""Concept centric learning: the noun phrases of captions as further positives.

Pham, Hoffmann, Guerrero, Martinez: "No Hard Negatives Required: Concept Centric Learning
Leads to Compositionality without Degrading Zero-shot Capabilities of Contrastive Models"
(CVPR 2026, arXiv 2603.25722).
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ccl_jax.losses.contrastive import (
    Metrics,
    Scalar,
    logit_metrics,
    siglip_loss,
    sigmoid_terms,
)
from ccl_jax.losses.similarity import accumulate, pooled_similarity

Duplicates = Literal["negative", "ignore", "positive"]


def npc_loss(
    image_emb: Float[Array, "b d"],
    phrase_emb: Float[Array, "n d"],
    phrase_image: Int[Array, " n"],
    *,
    scale: Scalar,
    bias: Scalar,
    phrase_ids: Int[Array, "n t"] | None = None,
    duplicates: Duplicates = "negative",
) -> tuple[Float[Array, ""], Metrics]:
    """Noun-phrase contrast (NPC): each phrase against the global embedding of every image.

    L = -(1/N) sum_in log sigmoid(y_in (scale <v_i, c_n> + bias)), y_in = 1 iff phrase n is
    of image i. The divisor N is the number of real phrases; without any the loss is 0.

    Args:
      image_emb: L2-normalised image embeddings.
      phrase_emb: L2-normalised phrase embeddings.
      phrase_image: row of the image each phrase belongs to, -1 for padding.
      scale: multiplier of the cosines, shared with the contrastive term.
      bias: added to every logit, shared with the contrastive term.
      phrase_ids: the phrases' token ids; needed unless `duplicates` is "negative".
      duplicates: what an image's pair with a foreign phrase is when the image has the same
        phrase of its own: "negative" (as published), "ignore" (left out) or "positive".

    Returns:
      The loss, and the metrics of `logit_metrics`.

    Raises:
      ValueError: for shapes that do not fit, or `duplicates` without `phrase_ids`.

    >>> import jax.numpy as jnp
    >>> loss, _ = npc_loss(jnp.eye(2), jnp.eye(2), jnp.array([0, -1]), scale=1.0, bias=0.0)
    >>> round(float(loss), 4)
    1.0064
    """
    if image_emb.ndim != 2 or phrase_emb.ndim != 2 or image_emb.shape[1] != phrase_emb.shape[1]:
        raise ValueError(
            "npc_loss takes image_emb (b, d) and phrase_emb (n, d) of one width; got "
            f"{image_emb.shape} and {phrase_emb.shape}"
        )
    similarity = accumulate(image_emb) @ accumulate(phrase_emb).T
    return _concept_loss(
        similarity, phrase_image, scale, bias, phrase_ids=phrase_ids, duplicates=duplicates
    )


def xac_loss(
    image_tokens: Float[Array, "b l d"],
    phrase_emb: Float[Array, "n d"],
    phrase_image: Int[Array, " n"],
    *,
    scale: Scalar,
    bias: Scalar,
    sharpness: Scalar = 1.0,
    phrase_ids: Int[Array, "n t"] | None = None,
    duplicates: Duplicates = "negative",
) -> tuple[Float[Array, ""], Metrics]:
    """Cross-modal attention contrast (XAC): each phrase against its own view of every image.

    L = -(1/N) sum_mn log sigmoid(y_mn (scale sim_mn + bias)) with sim the
    `pooled_similarity` of the tokens of image m under the attention of phrase n.

    Args:
      image_tokens: L2-normalised patch tokens.
      phrase_emb: L2-normalised phrase embeddings.
      phrase_image: row of the image each phrase belongs to, -1 for padding.
      scale: multiplier of the similarities, shared with the contrastive term.
      bias: added to every logit, shared with the contrastive term.
      sharpness: of the attention; 1 as published, higher localises.
      phrase_ids: as in `npc_loss`.
      duplicates: as in `npc_loss`.

    Returns:
      The loss, and the metrics of `logit_metrics`.

    Raises:
      ValueError: for shapes that do not fit, or `duplicates` without `phrase_ids`.

    >>> import jax.numpy as jnp
    >>> tokens = jnp.eye(2)[:, None, :]
    >>> loss, _ = xac_loss(tokens, jnp.eye(2), jnp.array([0, 1]), scale=1.0, bias=0.0)
    >>> round(float(loss), 4)
    1.0064
    """
    similarity = pooled_similarity(image_tokens, phrase_emb, sharpness=sharpness)
    return _concept_loss(
        similarity, phrase_image, scale, bias, phrase_ids=phrase_ids, duplicates=duplicates
    )


def ccl_loss(
    image_emb: Float[Array, "b d"],
    text_emb: Float[Array, "b d"],
    image_tokens: Float[Array, "b l d"],
    phrase_emb: Float[Array, "n d"],
    phrase_image: Int[Array, " n"],
    *,
    scale: Scalar,
    bias: Scalar,
    npc_weight: float = 1.0,
    xac_weight: float = 0.01,
    sharpness: Scalar = 1.0,
    phrase_ids: Int[Array, "n t"] | None = None,
    duplicates: Duplicates = "negative",
) -> tuple[Float[Array, ""], Metrics]:
    """The whole objective: SigLIP + npc_weight NPC + xac_weight XAC, as published.

    Args:
      image_emb: L2-normalised image embeddings.
      text_emb: L2-normalised caption embeddings, row i belongs to image i.
      image_tokens: L2-normalised patch tokens.
      phrase_emb: L2-normalised phrase embeddings.
      phrase_image: row of the image each phrase belongs to, -1 for padding.
      scale: multiplier shared by the three terms.
      bias: bias shared by the three terms.
      npc_weight: weight of the noun-phrase contrast.
      xac_weight: weight of the cross-modal attention contrast.
      sharpness: as in `xac_loss`.
      phrase_ids: as in `npc_loss`.
      duplicates: as in `npc_loss`.

    Returns:
      The weighted sum, and the unweighted parts as `contrastive`, `npc` and `xac`.

    Raises:
      ValueError: as the parts do.
    """
    concept = {"scale": scale, "bias": bias, "phrase_ids": phrase_ids, "duplicates": duplicates}
    contrastive, _ = siglip_loss(image_emb, text_emb, scale=scale, bias=bias)
    npc, _ = npc_loss(image_emb, phrase_emb, phrase_image, **concept)
    xac, _ = xac_loss(image_tokens, phrase_emb, phrase_image, sharpness=sharpness, **concept)
    total = contrastive + npc_weight * npc + xac_weight * xac
    return total, {"contrastive": contrastive, "npc": npc, "xac": xac}


def concept_targets(
    phrase_image: Int[Array, " n"],
    images: int,
    *,
    phrase_ids: Int[Array, "n t"] | None = None,
    duplicates: Duplicates = "negative",
) -> tuple[Bool[Array, "b n"], Bool[Array, "b n"]]:
    """Which image-phrase pairs are positive, and which count at all.

    Args:
      phrase_image: row of the image each phrase belongs to, -1 for padding.
      images: number of images b.
      phrase_ids: the phrases' token ids, equal rows being the same phrase.
      duplicates: as in `npc_loss`.

    Returns:
      `positive` and `where`, both (b, n).
    """
    if duplicates not in ("negative", "ignore", "positive"):
        raise ValueError(
            f"duplicates={duplicates!r}: use 'negative' (as published), 'ignore' or 'positive'"
        )
    own = phrase_image[None, :] == jnp.arange(images, dtype=phrase_image.dtype)[:, None]
    where = jnp.broadcast_to(phrase_image >= 0, own.shape)
    if duplicates == "negative":
        return own, where
    if phrase_ids is None:
        raise ValueError(f"duplicates={duplicates!r} compares phrases: pass phrase_ids (n, t)")
    same = jnp.all(phrase_ids[:, None, :] == phrase_ids[None, :, :], axis=-1)
    # Image i has phrase n if one of its own phrases reads the same.
    shared = jnp.matmul(own.astype(jnp.float32), same.astype(jnp.float32)) > 0
    if duplicates == "positive":
        return (own | shared) & where, where
    return own, where & (own | ~shared)


def _concept_loss(similarity, phrase_image, scale, bias, *, phrase_ids, duplicates):
    images, phrases = similarity.shape
    if phrase_image.shape != (phrases,):
        raise ValueError(
            f"phrase_image must have shape ({phrases},), one row index for each phrase; got "
            f"{phrase_image.shape}"
        )
    positive, where = concept_targets(
        phrase_image, images, phrase_ids=phrase_ids, duplicates=duplicates
    )
    logits = scale * similarity + bias
    terms = jnp.where(where, sigmoid_terms(logits, positive), 0.0)
    count = jnp.maximum(jnp.sum(phrase_image >= 0), 1).astype(terms.dtype)
    return terms.sum() / count, logit_metrics(logits, positive, where)

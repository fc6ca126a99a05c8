"""Concept centric learning: the noun phrases of captions as further positives.

Pham, Hoffmann, Guerrero, Martinez: "No Hard Negatives Required: Concept Centric Learning
Leads to Compositionality without Degrading Zero-shot Capabilities of Contrastive Models"
(CVPR 2026, arXiv 2603.25722).
"""

from typing import Literal

from jaxtyping import Array, Bool, Float, Int

from ccl_jax.losses import diagnostics, inputs
from ccl_jax.losses.blocks import ChunkSize
from ccl_jax.losses.collectives import AxisName
from ccl_jax.losses.contrastive import Scalar, siglip_loss
from ccl_jax.losses.diagnostics import Metrics
from ccl_jax.losses.inputs import Gathered
from ccl_jax.losses.sigmoid import sigmoid_loss
from ccl_jax.losses.similarity import check_pooling
from ccl_jax.losses.targets import Duplicates, Pairing


def gather_phrases(
    phrase_emb: Float[Array, "n d"],
    phrase_image: Int[Array, " n"],
    *,
    phrase_ids: Int[Array, "n t"] | None = None,
    axis_name: AxisName | None = None,
) -> Gathered:
    """The phrases of all devices, for `npc_loss` and `xac_loss` in place of `phrase_emb`.

    Given to both terms they travel once, and so does the sum of their gradients. Where each
    term gathers for itself, XLA merges what is gathered, but not the gradients.

    Args:
      phrase_emb: L2-normalised phrase embeddings of this device.
      phrase_image: row of the image each phrase belongs to, -1 for padding.
      phrase_ids: the phrases' token ids, if a term has `duplicates` other than "negative".
      axis_name: as in `npc_loss`.

    Raises:
      ValueError: for shapes or types that do not fit, or an unknown `axis_name`.

    >>> import jax.numpy as jnp
    >>> phrases = gather_phrases(jnp.eye(2), jnp.array([0, -1]))
    >>> round(float(npc_loss(jnp.eye(2), phrases, scale=1.0, bias=0.0)[0]), 4)
    1.0064
    """
    inputs.check_embeddings("phrase_emb", phrase_emb, "n d")
    columns = inputs.columns(
        "phrase",
        phrase_emb,
        phrase_image,
        ids=phrase_ids,
        duplicates="negative" if phrase_ids is None else "ignore",
        axis_name=axis_name,
    )
    return inputs.gather(columns, axis_name)


def npc_loss(
    image_emb: Float[Array, "b d"],
    phrase_emb: Float[Array, "n d"] | Gathered,
    phrase_image: Int[Array, " n"] | None = None,
    *,
    scale: Scalar,
    bias: Scalar,
    phrase_ids: Int[Array, "n t"] | None = None,
    duplicates: Duplicates = "negative",
    label_smoothing: float = 0.0,
    chunk_size: ChunkSize = None,
    axis_name: AxisName | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Noun-phrase contrast (NPC): each phrase against the global embedding of every image.

    L = -(1/N) sum_in log sigmoid(y_in (scale <v_i, c_n> + bias)), y_in = 1 iff phrase n is
    of image i. The divisor N is the number of real phrases; without any the loss is 0.

    Args:
      image_emb: L2-normalised image embeddings.
      phrase_emb: L2-normalised phrase embeddings; or `gather_phrases` of them, which has
        `phrase_image` and `phrase_ids` in it.
      phrase_image: row of the image each phrase belongs to, -1 for padding.
      scale: multiplier of the cosines, shared with the contrastive term.
      bias: added to every logit, shared with the contrastive term.
      phrase_ids: the phrases' token ids; needed unless `duplicates` is "negative".
      duplicates: what an image's pair with a foreign phrase is when the image has the same
        phrase of its own: "negative" (as published), "ignore" (left out) or "positive".
      label_smoothing: as in `siglip_loss`.
      chunk_size: as in `siglip_loss`.
      axis_name: axis of `jax.shard_map` over which images and phrases are split, each as it
        likes: `phrase_image` is a row of the global batch. Phrases, their owners and ids are
        gathered: p d + p (t + 2) numbers for p phrases, and p d in the backward pass.

    Returns:
      The loss, and metrics: those of `logit_metrics`, `image_norm` and `phrase_norm`.

    Raises:
      ValueError: for shapes, types or options that do not fit, or an unknown `axis_name`.

    Reference: Pham et al. (2026); divisor and signs as in the released code.

    >>> import jax.numpy as jnp
    >>> loss, _ = npc_loss(jnp.eye(2), jnp.eye(2), jnp.array([0, -1]), scale=1.0, bias=0.0)
    >>> round(float(loss), 4)
    1.0064
    """
    spec = inputs.make_spec(duplicates, label_smoothing, chunk_size)
    inputs.check_embeddings("image_emb", image_emb, "b d")
    phrases = _phrases(phrase_emb, phrase_image, phrase_ids, duplicates, axis_name)
    _check_widths(image_emb, phrases)
    return _npc(spec, image_emb, phrases, scale, bias, axis_name)


def xac_loss(
    image_tokens: Float[Array, "b l d"],
    phrase_emb: Float[Array, "n d"] | Gathered,
    phrase_image: Int[Array, " n"] | None = None,
    *,
    scale: Scalar,
    bias: Scalar,
    sharpness: float = 1.0,
    scores: Literal["dot", "cosine"] = "dot",
    values: Literal["raw", "normalized"] = "raw",
    token_where: Bool[Array, "b l"] | None = None,
    phrase_ids: Int[Array, "n t"] | None = None,
    duplicates: Duplicates = "negative",
    label_smoothing: float = 0.0,
    chunk_size: ChunkSize = None,
    axis_name: AxisName | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Cross-modal attention contrast (XAC): each phrase against its own view of every image.

    L = -(1/N) sum_mn log sigmoid(y_mn (scale sim_mn + bias)) with sim the
    `pooled_similarity` of the tokens of image m under the attention of phrase n.

    Args:
      image_tokens: L2-normalised patch tokens.
      phrase_emb: L2-normalised phrase embeddings; or `gather_phrases` of them, which has
        `phrase_image` and `phrase_ids` in it.
      phrase_image: row of the image each phrase belongs to, -1 for padding.
      scale: multiplier of the similarities, shared with the contrastive term.
      bias: added to every logit, shared with the contrastive term.
      sharpness: of the attention; 1 as published, higher localises.
      scores: what the softmax over patches sees; see `pooled_similarity`.
      values: what is summed under it.
      token_where: tokens that count, all by default.
      phrase_ids: as in `npc_loss`.
      duplicates: as in `npc_loss`.
      label_smoothing: as in `siglip_loss`.
      chunk_size: as in `siglip_loss`.
      axis_name: as in `npc_loss`; image tokens never leave their device.

    Returns:
      The loss, and metrics: those of `logit_metrics`, `effective_patches` (of positive
      pairs: exp of the entropy of the attention), `token_norm` and `phrase_norm`.

    Raises:
      ValueError: for shapes, types or options that do not fit, or an unknown `axis_name`.

    Reference: Pham et al. (2026); divisor and signs as in the released code.

    >>> import jax.numpy as jnp
    >>> tokens = jnp.eye(2)[:, None, :]
    >>> loss, _ = xac_loss(tokens, jnp.eye(2), jnp.array([0, 1]), scale=1.0, bias=0.0)
    >>> round(float(loss), 4)
    1.0064
    """
    own = phrase_emb.own.emb if isinstance(phrase_emb, Gathered) else phrase_emb
    pooling = check_pooling(
        image_tokens, "phrase_emb", own, sharpness, scores, values, token_where, chunk_size
    )
    spec = inputs.make_spec(duplicates, label_smoothing, chunk_size, pooling)
    phrases = _phrases(phrase_emb, phrase_image, phrase_ids, duplicates, axis_name)
    return _xac(spec, image_tokens, token_where, phrases, scale, bias, axis_name)


def ccl_loss(
    image_emb: Float[Array, "b d"],
    text_emb: Float[Array, "n d"],
    image_tokens: Float[Array, "b l d"],
    phrase_emb: Float[Array, "p d"],
    phrase_image: Int[Array, " p"],
    *,
    scale: Scalar,
    bias: Scalar,
    text_image: Int[Array, " n"] | None = None,
    where: Bool[Array, " n"] | None = None,
    npc_weight: float = 1.0,
    xac_weight: float = 0.01,
    sharpness: float = 1.0,
    scores: Literal["dot", "cosine"] = "dot",
    values: Literal["raw", "normalized"] = "raw",
    token_where: Bool[Array, "b l"] | None = None,
    phrase_ids: Int[Array, "p t"] | None = None,
    duplicates: Duplicates = "negative",
    label_smoothing: float = 0.0,
    chunk_size: ChunkSize = None,
    axis_name: AxisName | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """The whole objective: SigLIP + npc_weight NPC + xac_weight XAC, as published.

    Args:
      image_emb: L2-normalised image embeddings.
      text_emb: L2-normalised caption embeddings.
      image_tokens: L2-normalised patch tokens.
      phrase_emb: L2-normalised phrase embeddings.
      phrase_image: row of the image each phrase belongs to, -1 for padding.
      scale: multiplier shared by the three terms.
      bias: bias shared by the three terms.
      text_image: of the captions, as in `clip_loss`.
      where: of the captions, as in `clip_loss`.
      npc_weight: weight of the noun-phrase contrast.
      xac_weight: weight of the cross-modal attention contrast.
      sharpness: as in `xac_loss`.
      scores: as in `xac_loss`.
      values: as in `xac_loss`.
      token_where: as in `xac_loss`.
      phrase_ids: as in `npc_loss`.
      duplicates: as in `npc_loss`; of phrases, captions are negatives as published.
      label_smoothing: as in `siglip_loss`, for all three terms.
      chunk_size: as in `siglip_loss`, for all three terms.
      axis_name: as in `clip_loss`. Captions and phrases are gathered, (n + p) d numbers and
        as many in the backward pass; image tokens never leave their device.

    Returns:
      The weighted sum, and metrics: the unweighted parts as `contrastive`, `npc` and `xac`,
      and what they report themselves as `contrastive/...`, `npc/...` and `xac/...`.

    Raises:
      ValueError: as the parts do.

    Reference: Pham et al. (2026); weights and normalisation as in the released code.

    >>> import jax.numpy as jnp
    >>> x, owner = jnp.eye(2), jnp.array([0, 1])
    >>> loss, metrics = ccl_loss(x, x, x[:, None, :], x, owner, scale=1.0, bias=0.0)
    >>> round(float(loss), 4)  # 2.01 times the value of each part
    2.0229
    """
    spec = inputs.make_spec(duplicates, label_smoothing, chunk_size)
    pooling = check_pooling(
        image_tokens, "phrase_emb", phrase_emb, sharpness, scores, values, token_where, chunk_size
    )
    inputs.check_embeddings("image_emb", image_emb, "b d")
    phrases = _phrases(phrase_emb, phrase_image, phrase_ids, duplicates, axis_name)
    _check_widths(image_emb, phrases)
    parts = {
        "contrastive": siglip_loss(
            image_emb,
            text_emb,
            scale=scale,
            bias=bias,
            text_image=text_image,
            where=where,
            label_smoothing=label_smoothing,
            chunk_size=chunk_size,
            axis_name=axis_name,
        ),
        "npc": _npc(spec, image_emb, phrases, scale, bias, axis_name),
        "xac": _xac(
            spec._replace(pooling=pooling),
            image_tokens,
            token_where,
            phrases,
            scale,
            bias,
            axis_name,
        ),
    }
    weights = {"contrastive": 1.0, "npc": npc_weight, "xac": xac_weight}
    total = sum(weights[name] * loss for name, (loss, _) in parts.items())
    metrics = {name: loss for name, (loss, _) in parts.items()}
    for name, (_, details) in parts.items():
        metrics |= {f"{name}/{key}": value for key, value in details.items()}
    return total, metrics


def _check_widths(image_emb, phrases):
    inputs.check_images(image_emb, phrases.own.emb, None, "image_emb and phrase_emb")


def _phrases(phrase_emb, phrase_image, phrase_ids, duplicates, axis_name):
    if not isinstance(phrase_emb, Gathered):
        if phrase_image is None:
            raise ValueError("pass phrase_image (n,), the row of the image of each phrase")
        ids = None if duplicates == "negative" else phrase_ids
        phrases = gather_phrases(phrase_emb, phrase_image, phrase_ids=ids, axis_name=axis_name)
    elif phrase_image is None and phrase_ids is None:
        phrases = phrase_emb
    else:
        raise ValueError(
            "what gather_phrases returns has images and ids of the phrases in it: leave "
            "phrase_image and phrase_ids out"
        )
    if duplicates == "negative":
        pairing = Pairing(phrases.pairing.image, phrases.pairing.real)
        return phrases._replace(pairing=pairing)
    if phrases.pairing.ids is None:
        raise ValueError(f"duplicates={duplicates!r} compares texts: pass phrase_ids (n, t)")
    return phrases


def _npc(spec, image_emb, phrases, scale, bias, axis_name):
    loss, metrics = sigmoid_loss(
        spec, image_emb, phrases, scale=scale, bias=bias, axis_name=axis_name
    )
    return loss, metrics | {
        "image_norm": diagnostics.mean_norm(image_emb, None, axis_name),
        "phrase_norm": diagnostics.mean_norm(phrases.own.emb, phrases.own.real, axis_name),
    }


def _xac(spec, image_tokens, token_where, phrases, scale, bias, axis_name):
    loss, metrics = sigmoid_loss(
        spec,
        image_tokens,
        phrases,
        scale=scale,
        bias=bias,
        tokens_where=token_where,
        axis_name=axis_name,
    )
    return loss, metrics | {
        "token_norm": diagnostics.mean_norm(image_tokens, token_where, axis_name),
        "phrase_norm": diagnostics.mean_norm(phrases.own.emb, phrases.own.real, axis_name),
    }

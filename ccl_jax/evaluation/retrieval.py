"""Image-text retrieval: recall at k in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

from ccl_jax.data.records import Source
from ccl_jax.evaluation.reading import embed_texts, iterate_images
from ccl_jax.evaluation.scoring import check_embeddings, cosine_scores, unbeaten_count

if TYPE_CHECKING:
    from ccl_jax.evaluation.embeddings import Predictor

_CAPTION_CHOICES = {
    "all": lambda captions: list(captions),
    "first": lambda captions: [captions[0]],
    "longest": lambda captions: [max(captions, key=len)],
}


def _caption_ranks(image_emb, text_emb, text_image, rows) -> np.ndarray:
    """(len(rows),): wrong captions that the best caption of each image does not beat."""
    right = text_image[None, :] == rows[:, None]
    scores = cosine_scores(image_emb[rows], text_emb)
    best = np.where(right, scores, -np.inf).max(axis=1)
    return unbeaten_count(best, scores, ~right)


def _image_ranks(image_emb, text_emb, text_image, rows) -> np.ndarray:
    """(len(rows),): wrong images that the image of each caption does not beat."""
    right = text_image[rows]
    scores = cosine_scores(text_emb[rows], image_emb)
    best = scores[np.arange(len(rows)), right]
    return unbeaten_count(best, scores, np.arange(len(image_emb)) != right[:, None])


def retrieval_recall(
    image_emb: np.ndarray,
    text_emb: np.ndarray,
    text_image: np.ndarray,
    ks: Sequence[int] = (1, 5, 10),
    *,
    block_scores: int = 1 << 24,
) -> dict[str, float]:
    """Recall at k, image to text and text to image.

    An image counts when any of its captions is within the top k, a caption when its image
    is. A rank is the number of wrong candidates that score at least as high as the best
    right one, so ties count against the model: two images with the very same caption cost
    each other, and a constant scorer gets 0 (as long as there are k wrong candidates).

    Args:
      image_emb: float (n_images, d), L2-normalised.
      text_emb: float (n_texts, d), L2-normalised.
      text_image: int (n_texts,), the row of `image_emb` that each text describes.
      ks: the cut-offs, each at least 1.
      block_scores: scores held in memory at once; it bounds memory, not the result.

    Returns:
      {"image_to_text_recall@K": percent, "text_to_image_recall@K": percent} for K in `ks`.

    Raises:
      ValueError: empty or ill-shaped arrays, a row out of range, an image without text, or
        a cut-off below 1.
    """
    check_embeddings(image_emb=image_emb, text_emb=text_emb)
    n_images, n_texts = len(image_emb), len(text_emb)
    text_image = np.asarray(text_image)
    if text_image.shape != (n_texts,):
        raise ValueError(f"text_image must have shape ({n_texts},); got {text_image.shape}")
    if text_image.min() < 0 or text_image.max() >= n_images:
        raise ValueError(f"text_image must hold rows in [0, {n_images})")
    without = np.setdiff1d(np.arange(n_images), text_image)
    if without.size:
        raise ValueError(f"every image needs a text; rows {without[:5].tolist()} have none")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be cut-offs of at least 1; got {tuple(ks)}")

    result = {}
    for direction, ranks_of, queries, candidates in (
        ("image_to_text", _caption_ranks, n_images, n_texts),
        ("text_to_image", _image_ranks, n_texts, n_images),
    ):
        step = max(1, block_scores // candidates)
        ranks = np.concatenate(
            [
                ranks_of(image_emb, text_emb, text_image, np.arange(i, min(i + step, queries)))
                for i in range(0, queries, step)
            ]
        )
        result.update({f"{direction}_recall@{k}": 100.0 * float(np.mean(ranks < k)) for k in ks})
    return result


def run(
    predictor: Predictor, source: Source, *, limit: int | None = None, captions: str = "all"
) -> dict[str, float]:
    """Recall at 1, 5 and 10 of a source's images and captions, in percent.

    Args:
      predictor: the model.
      source: records with captions.
      limit: look at no more than the first `limit` records.
      captions: which captions of an image are used: "all", "first" or "longest".

    Raises:
      ValueError: an unknown choice of captions, or nothing readable.
    """
    if captions not in _CAPTION_CHOICES:
        raise ValueError(f"captions must be one of {sorted(_CAPTION_CHOICES)}; got {captions!r}")
    choose = _CAPTION_CHOICES[captions]
    image_emb: list[np.ndarray] = []
    texts: list[str] = []
    text_image: list[int] = []
    row = 0
    for images, records in iterate_images(source, predictor, limit=limit):
        image_emb.append(predictor.images(images))
        for record in records:
            chosen = choose(record.captions)
            texts.extend(chosen)
            text_image.extend([row] * len(chosen))
            row += 1
    logging.info("Retrieval on %s: %d images, %d captions", source.name, row, len(texts))
    return retrieval_recall(
        np.concatenate(image_emb), embed_texts(predictor, texts), np.asarray(text_image)
    )

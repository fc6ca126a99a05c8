"""Image-text retrieval: recall at k in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

from ccl_jax.data.records import Source
from ccl_jax.evaluation.reading import embed_texts, iterate_images
from ccl_jax.evaluation.scoring import NearTies, check_embeddings, paired_scores

if TYPE_CHECKING:
    from ccl_jax.evaluation.embeddings import Predictor

DIRECTIONS = ("image_to_text", "text_to_image")

_CAPTION_CHOICES = {
    "all": lambda captions: list(captions),
    "first": lambda captions: [captions[0]],
    "longest": lambda captions: [max(captions, key=len)],
}


def retrieval_ranks(
    image_emb: np.ndarray,
    text_emb: np.ndarray,
    text_image: np.ndarray,
    *,
    block_scores: int = 1 << 24,
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of the best right text of each image, and of the image of each text.

    A rank is the number of wrong candidates that score at least as high as the best right one,
    so ties count against the model. What counts as a tie is decided in float64 rounded to
    float32, as `scoring.cosine_scores` does; but only pairs that float32 cannot tell apart are
    computed that way, so that a rank costs one float32 product.

    Args:
      image_emb: float (n_images, d), L2-normalised.
      text_emb: float (n_texts, d), L2-normalised.
      text_image: int (n_texts,), the row of `image_emb` that each text describes.
      block_scores: scores held in memory at once; it bounds memory, not the result.

    Returns:
      int64 (n_images,) and (n_texts,).

    Raises:
      ValueError: empty or ill-shaped arrays, a row out of range, or an image without text.
    """
    text_image = _checked_owners(image_emb, text_emb, text_image)
    # Exact scores of the right pairs, and of each image's best one; NaN wins no comparison.
    right = paired_scores(image_emb[text_image], text_emb)
    best = np.full(len(image_emb), -np.inf, np.float32)
    with np.errstate(invalid="ignore"):  # of NaN
        np.maximum.at(best, text_image, right)
    image_rank = np.zeros(len(image_emb), np.int64)
    text_rank = np.zeros(len(text_emb), np.int64)
    step = max(1, block_scores // len(text_emb))
    # Texts in the order of their images: those of a block of images are a slice.
    order = np.argsort(text_image, kind="stable")
    owners = text_image[order]
    texts = np.ascontiguousarray(text_emb[order])
    ordered_right = right[order]
    ordered_rank = np.zeros(len(texts), np.int64)
    compare = NearTies(image_emb, texts)
    for start in range(0, len(image_emb), step):
        rows = slice(start, min(start + step, len(image_emb)))
        scores = compare.scores(rows)
        first, last = np.searchsorted(owners, (rows.start, rows.stop))
        own = (owners[first:last] - start, np.arange(first, last))
        image_rank[rows] = compare.unbeaten(scores, best[rows], rows, own, axis=1)
        ordered_rank += compare.unbeaten(scores, ordered_right, rows, own, axis=0)
    text_rank[order] = ordered_rank
    return image_rank, text_rank


def _checked_owners(image_emb, text_emb, text_image) -> np.ndarray:
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
    return text_image


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
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be cut-offs of at least 1; got {tuple(ks)}")
    ranks = retrieval_ranks(image_emb, text_emb, text_image, block_scores=block_scores)
    return {
        f"{direction}_recall@{k}": 100.0 * float(np.mean(rank < k))
        for direction, rank in zip(DIRECTIONS, ranks, strict=True)
        for k in ks
    }


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

"""Hard negatives: does the right caption beat one with its words swapped or replaced?"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

from ccl_jax.data.records import Source
from ccl_jax.evaluation.reading import embed_texts, iterate_images
from ccl_jax.evaluation.scoring import check_embeddings, paired_scores

if TYPE_CHECKING:
    from ccl_jax.evaluation.embeddings import Predictor


def pair_accuracy(
    image_emb: np.ndarray, positive_emb: np.ndarray, negative_emb: np.ndarray
) -> np.ndarray:
    """Whether each image is strictly closer to its caption than to the negative one.

    Args:
      image_emb: float (n, d), L2-normalised; row i is the image of item i.
      positive_emb: float (n, d), the right captions.
      negative_emb: float (n, d), the negatives.

    Returns:
      bool (n,); false for a tie, so that a constant scorer gets 0.

    Raises:
      ValueError: empty arrays, or shapes that differ.
    """
    check_embeddings(image_emb=image_emb, positive_emb=positive_emb, negative_emb=negative_emb)
    if not len(image_emb) == len(positive_emb) == len(negative_emb):
        raise ValueError(
            "image_emb, positive_emb and negative_emb must have one row per item; got "
            f"{len(image_emb)}, {len(positive_emb)} and {len(negative_emb)} rows"
        )
    return paired_scores(image_emb, positive_emb) > paired_scores(image_emb, negative_emb)


def run(predictor: Predictor, source: Source, *, limit: int | None = None) -> dict[str, float]:
    """Accuracy on the (caption, negative caption) pairs of a source, in percent.

    Args:
      predictor: the model.
      source: records with `extra["pairs"]`, a tuple of (category, caption, negative caption);
        records without pairs are passed over. The numbers of items are logged.
      limit: look at no more than the first `limit` records.

    Returns:
      {category: percent, ..., "mean": percent}, the mean unweighted over the categories.

    Raises:
      ValueError: no record with pairs that can be read.
    """
    outcomes: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    for images, records in iterate_images(
        source, predictor, limit=limit, wanted=lambda record: bool(record.extra.get("pairs"))
    ):
        items = [(i, *pair) for i, record in enumerate(records) for pair in record.extra["pairs"]]
        rows, categories, positives, negatives = zip(*items, strict=True)
        texts = embed_texts(predictor, positives + negatives)
        right = pair_accuracy(
            predictor.images(images)[list(rows)], texts[: len(items)], texts[len(items) :]
        )
        for category in set(categories):
            outcomes[category].append(right[np.asarray(categories) == category])
    result = {}
    for category in sorted(outcomes):
        values = np.concatenate(outcomes[category])
        result[category] = 100.0 * float(values.mean())
        logging.info("Compositionality on %s: %s, %d items", source.name, category, len(values))
    result["mean"] = float(np.mean(list(result.values())))
    return result

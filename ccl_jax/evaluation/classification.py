"""Zero-shot classification with class names as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

from ccl_jax.data.records import Source
from ccl_jax.evaluation.reading import class_names_of, iterate_images, required_extra
from ccl_jax.evaluation.scoring import check_embeddings, cosine_scores, unbeaten_count

if TYPE_CHECKING:
    from ccl_jax.evaluation.embeddings import Predictor

# Texts of class prompts embedded at once.
_TEXTS = 4096


def class_ranks(image_emb: np.ndarray, class_emb: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rank of the right class of each image: wrong classes that score at least as high.

    Args:
      image_emb: float (n, d), L2-normalised.
      class_emb: float (classes, d), L2-normalised.
      labels: int (n,), the row of `class_emb` of each image.

    Returns:
      int64 (n,); an image counts for top-k where it is below k.

    Raises:
      ValueError: empty or ill-shaped arrays, or a label out of range.
    """
    check_embeddings(image_emb=image_emb, class_emb=class_emb)
    labels = np.asarray(labels)
    if labels.shape != (len(image_emb),):
        raise ValueError(f"labels must have shape ({len(image_emb)},); got {labels.shape}")
    classes = np.arange(len(class_emb))
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(
            f"labels must be rows of class_emb, in [0, {len(classes)}); "
            f"got values from {labels.min()} to {labels.max()}"
        )
    ranks = []
    for i in range(0, len(labels), 4096):
        right = labels[i : i + 4096]
        scores = cosine_scores(image_emb[i : i + 4096], class_emb)
        best = scores[np.arange(len(right)), right]
        ranks.append(unbeaten_count(best, scores, classes != right[:, None]))
    return np.concatenate(ranks)


def zero_shot_accuracy(
    image_emb: np.ndarray, class_emb: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Accuracy of the nearest class.

    An image counts for top-k when fewer than k wrong classes score at least as high as the
    right one, so ties count against the model and a constant scorer gets 0 (for top-5, from
    six classes on).

    Args:
      image_emb: float (n, d), L2-normalised.
      class_emb: float (classes, d), L2-normalised.
      labels: int (n,), the row of `class_emb` of each image.

    Returns:
      {"top1": percent, "top5": percent}.

    Raises:
      ValueError: as `class_ranks`.
    """
    rank = class_ranks(image_emb, class_emb, labels)
    return {f"top{k}": 100.0 * float(np.mean(rank < k)) for k in (1, 5)}


def _fill(template: str, name: str) -> str:
    article = "an" if name[:1].lower() in tuple("aeiou") else "a"
    return template.replace("{article}", article).replace("{}", name)


def class_embeddings(
    predictor: Predictor, class_names: Sequence[str], templates: Sequence[str]
) -> np.ndarray:
    """Text embedding of each class: the mean over the templates, normalised again.

    Args:
      predictor: the model.
      class_names: the classes.
      templates: sentences with `{}` where the class name goes, e.g. "a photo of a {}". Used to
        the letter, as published prompts are, except that `{article}` becomes the "a" or "an"
        that suits the name's first letter.

    Returns:
      f32 (classes, d), L2-normalised.

    Raises:
      ValueError: no class, no template, or a template without `{}`.
    """
    if not class_names:
        raise ValueError("class_names is empty; give at least one class")
    if isinstance(templates, str) or not templates:
        raise ValueError(f"templates must be a non-empty list of strings; got {templates!r}")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"template {template!r} has no {{}} for the class name")
    # A few templates at a time: ImageNet's 80 would be 80,000 texts at once.
    step = max(1, _TEXTS // len(class_names))
    total = np.float32(0)
    for start in range(0, len(templates), step):
        chosen = templates[start : start + step]
        texts = [_fill(template, name) for template in chosen for name in class_names]
        rows = predictor.texts(texts).astype(np.float32)
        total = total + rows.reshape(len(chosen), len(class_names), -1).sum(axis=0)
    norm = np.linalg.norm(total, axis=1, keepdims=True)
    return total / np.maximum(norm, np.finfo(np.float32).tiny)


def run(
    predictor: Predictor,
    source: Source,
    *,
    templates: Sequence[str] = ("{article} {}",),
    limit: int | None = None,
) -> dict[str, float]:
    """Zero-shot top-1 and top-5 accuracy of a labelled source, in percent.

    Args:
      predictor: the model.
      source: records with `extra["label"]`, an index into `source.class_names`.
      templates: as in `class_embeddings`.
      limit: look at no more than the first `limit` records.

    Raises:
      ValueError: a source without class names or labels, a bad template, nothing readable.
    """
    class_emb = class_embeddings(predictor, class_names_of(source), templates)
    image_emb: list[np.ndarray] = []
    labels: list[int] = []
    for images, records in iterate_images(source, predictor, limit=limit):
        image_emb.append(predictor.images(images))
        labels.extend(
            required_extra(record, "label", source, "choose a split of labelled images")
            for record in records
        )
    logging.info("Zero-shot on %s: %d images, %d classes", source.name, len(labels), len(class_emb))
    return zero_shot_accuracy(np.concatenate(image_emb), class_emb, np.asarray(labels))

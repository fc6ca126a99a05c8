"""Zero-shot segmentation and pointing, read off the patch tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

from ccl_jax.data.records import Record, Source
from ccl_jax.evaluation.classification import class_embeddings
from ccl_jax.evaluation.reading import (
    class_names_of,
    embed_texts,
    iterate_images,
    required_extra,
)
from ccl_jax.evaluation.scoring import cosine_scores

if TYPE_CHECKING:
    from ccl_jax.evaluation.embeddings import Predictor

IGNORE = -1
"""Ground truth of a pixel that no metric counts, and prediction where the top class is tied."""

# Scores of one block of output rows (16 MiB in f32), whatever the image and class counts.
_BLOCK_SCORES = 1 << 22


def _interpolate(values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Linear interpolation of `values` (n, ...) at fractional rows `positions` (m,)."""
    positions = np.clip(positions, 0, len(values) - 1)
    low = np.floor(positions).astype(np.int64)
    high = np.minimum(low + 1, len(values) - 1)
    weight = (positions - low).astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
    # In this form a constant stays exactly constant.
    return values[low] + (values[high] - values[low]) * weight


def _centres(size: int, cells: int) -> np.ndarray:
    """Where the centres of `size` pixels fall among the centres of `cells` patches."""
    return (np.arange(size) + 0.5) * cells / size - 0.5


def bilinear_upsample(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear interpolation with half-pixel centres, constant beyond the outer patches.

    Args:
      maps: float (rows, cols) or (rows, cols, c).
      size: (h, w) of the result.

    Returns:
      f32 (h, w) or (h, w, c).
    """
    maps = np.asarray(maps, np.float32)
    wide = _interpolate(maps.swapaxes(0, 1), _centres(size[1], maps.shape[1])).swapaxes(0, 1)
    return _interpolate(wide, _centres(size[0], maps.shape[0]))


def segment(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Class of each pixel: bilinear upsampling of patch scores, then the highest class.

    Args:
      scores: float (rows, cols, classes).
      size: (h, w) of the result.

    Returns:
      int64 (h, w); `IGNORE` where no single class is highest (a tie, or NaN).
    """
    scores = np.asarray(scores, np.float32)
    height, width = size
    wide = _interpolate(scores.swapaxes(0, 1), _centres(width, scores.shape[1])).swapaxes(0, 1)
    positions = np.clip(_centres(height, len(wide)), 0, len(wide) - 1)
    lows = np.floor(positions).astype(np.int64)
    classes = np.empty(size, np.int64)
    for low in np.unique(lows):
        strip = np.flatnonzero(lows == low)
        pair = wide[[low, min(low + 1, len(wide) - 1)]]
        # Of the rows between two patches, few classes can be the highest anywhere.
        able = (pair.max(axis=0) >= pair.min(axis=0).max(axis=-1, keepdims=True)).any(axis=0)
        able |= ~np.isfinite(pair).all()
        number = np.flatnonzero(able)
        pair = pair[..., number]
        step = max(1, _BLOCK_SCORES // (width * len(number)))
        for start in range(0, len(strip), step):
            rows = strip[start : start + step]
            block = _interpolate(pair, positions[rows] - low)
            winners = (block >= block.max(axis=-1, keepdims=True)).sum(axis=-1)
            best = number[block.argmax(axis=-1)]
            classes[rows] = np.where(winners == 1, best, IGNORE)
    return classes


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Counts pixels by true and predicted class.

    Args:
      truth: int, any shape; a class, or negative for a pixel to leave out.
      prediction: int, same shape; a class, or negative for no prediction (an error).
      classes: number of classes.

    Returns:
      int64 (classes, classes + 1): row = truth, column = prediction, last column = none.

    Raises:
      ValueError: shapes that differ, or a class out of range.
    """
    if truth.shape != prediction.shape:
        raise ValueError(
            f"truth and prediction must have one shape; got {truth.shape} and {prediction.shape}"
        )
    counted = truth >= 0
    truth = truth[counted].astype(np.int64)
    prediction = prediction[counted].astype(np.int64)
    if truth.size and max(truth.max(), prediction.max()) >= classes:
        raise ValueError(f"truth and prediction must hold classes below {classes}")
    cells = truth * (classes + 1) + np.where(prediction < 0, classes, prediction)
    return np.bincount(cells, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def mean_iou(confusion: np.ndarray) -> float:
    """Mean intersection over union over the classes present in the ground truth.

    Args:
      confusion: int (classes, classes + 1) from `confusion_matrix`, summed over images.

    Returns:
      A fraction in [0, 1].

    Raises:
      ValueError: no pixel counted.
    """
    true = confusion.sum(axis=1)
    if not true.any():
        raise ValueError("no labelled pixel: every pixel of every mask is background")
    hits = np.diagonal(confusion)
    union = true + confusion[:, :-1].sum(axis=0) - hits
    present = true > 0
    return float(np.mean(hits[present] / union[present]))


def patch_counts(mask: np.ndarray, grid: tuple[int, int], objects: int) -> np.ndarray:
    """Pixels of each object in each patch.

    Args:
      mask: int (h, w), 0 for background and k for object k.
      grid: (rows, cols) of the patches laid over the whole mask.
      objects: number of objects, at least the highest value of the mask.

    Returns:
      int64 (rows * cols, objects); object k is column k - 1.
    """
    rows, cols = grid
    row = np.arange(mask.shape[0]) * rows // mask.shape[0]
    col = np.arange(mask.shape[1]) * cols // mask.shape[1]
    cells = (row[:, None] * cols + col[None, :]) * (objects + 1) + mask
    counts = np.bincount(cells.ravel(), minlength=rows * cols * (objects + 1))
    return counts.reshape(rows * cols, objects + 1)[:, 1:]


def pointing_hit(similarity: np.ndarray, counts: np.ndarray, targets: Collection[int]) -> bool:
    """Whether the patch most similar to a phrase shows an object it names.

    Args:
      similarity: float (l,), patch similarities to the phrase.
      counts: int (l, objects) from `patch_counts`.
      targets: columns of `counts` that the phrase names; one, or several for duplicates.

    Returns:
      True if, in the single most similar patch, a target has a pixel and more pixels than
      every object that is no target. A tie for the top patch, or NaN, is a miss.
    """
    top = np.flatnonzero(similarity >= similarity.max())
    if len(top) != 1:
        return False
    pixels = counts[top[0]]
    is_target = np.isin(np.arange(len(pixels)), list(targets))
    return bool(pixels[is_target].max(initial=0) > pixels[~is_target].max(initial=0))


def _aligned_mask(record: Record, source: Source, image_options: dict) -> np.ndarray:
    """The instance mask of what the model saw: all of it, or its central square."""
    hint = "choose a source and a split with masks"
    mask = np.asarray(required_extra(record, "mask", source, hint)).astype(np.int64)
    labels = required_extra(record, "object_labels", source, hint)
    if mask.max() > len(labels):
        raise ValueError(
            f"mask of record {record.key!r} has object {mask.max()} but object_labels has "
            f"{len(labels)} entries; it needs one per object"
        )
    if image_options["transform"].startswith("center_crop"):
        height, width = mask.shape
        side = round(min(height, width) * image_options.get("crop_share", 1.0))
        top, left = (height - side) // 2, (width - side) // 2
        mask = mask[top : top + side, left : left + side]
    return mask


def _phrase_embeddings(predictor: Predictor, records: Sequence[Record]) -> dict[str, np.ndarray]:
    """{phrase: f32 (d,)} for the object phrases of some records."""
    phrases = sorted({p for r in records for p in r.extra.get("object_phrases", ())})
    return dict(zip(phrases, embed_texts(predictor, phrases), strict=True)) if phrases else {}


def _pointing_hits(
    tokens: np.ndarray, record: Record, counts: np.ndarray, phrase_emb: dict[str, np.ndarray]
) -> list[bool]:
    """One outcome for each object with a pixel in view, given tokens (l, d)."""
    phrases = record.extra.get("object_phrases", ())
    if phrases and len(phrases) != counts.shape[1]:
        raise ValueError(
            f"record {record.key!r} has {len(phrases)} object_phrases for {counts.shape[1]} "
            "object_labels; it needs one of each per object"
        )
    similarity = {p: cosine_scores(tokens, phrase_emb[p][None])[:, 0] for p in set(phrases)}
    return [
        pointing_hit(
            similarity[phrase], counts, [k for k, other in enumerate(phrases) if other == phrase]
        )
        for column, phrase in enumerate(phrases)
        if counts[:, column].any()
    ]


def run(
    predictor: Predictor,
    source: Source,
    *,
    templates: Sequence[str] = ("{article} {}",),
    limit: int | None = None,
) -> dict[str, float]:
    """Zero-shot segmentation of object pixels and pointing at phrases, in percent.

    Background pixels are left out, as in VOC-20. An object that no pixel shows (hidden, or
    cropped away) is not pointed at.

    Args:
      predictor: the model.
      source: records with `extra` "mask" (h, w; 0 background, k object k) and "object_labels"
        (index into `source.class_names` of object k at k - 1), and for pointing
        "object_phrases" (text of object k at k - 1).
      templates: sentences for the class names, as in `classification.class_embeddings`.
      limit: look at no more than the first `limit` records.

    Returns:
      {"miou", "pixel_accuracy", "pointing"}; no "pointing" if no record has object phrases.

    Raises:
      ValueError: a source without masks, labels or class names, a bad template, masks that
        show no object, or nothing readable.
    """
    class_emb = class_embeddings(predictor, class_names_of(source), templates)
    confusion = np.zeros((len(class_emb), len(class_emb) + 1), np.int64)
    hits: list[bool] = []
    for images, records in iterate_images(source, predictor, limit=limit, chunk_size=32):
        phrase_emb = _phrase_embeddings(predictor, records)
        for tokens, record in zip(predictor.image_tokens(images), records, strict=True):
            mask = _aligned_mask(record, source, predictor.image_options)
            labels = record.extra["object_labels"]
            scores = cosine_scores(tokens, class_emb).reshape(*predictor.grid, len(class_emb))
            truth = np.asarray([IGNORE, *labels])[mask]
            confusion += confusion_matrix(truth, segment(scores, mask.shape), len(class_emb))
            counts = patch_counts(mask, predictor.grid, len(labels))
            hits.extend(_pointing_hits(tokens, record, counts, phrase_emb))
    logging.info(
        "Segmentation on %s: %d pixels, %d objects to point at",
        source.name, confusion.sum(), len(hits),
    )  # fmt: skip
    result = {
        "miou": 100.0 * mean_iou(confusion),
        "pixel_accuracy": 100.0 * float(np.trace(confusion) / confusion.sum()),
    }
    if hits:
        result["pointing"] = 100.0 * float(np.mean(hits))
    return result

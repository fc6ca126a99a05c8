"""Zero-shot segmentation and pointing on every set of masks of the data folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from ccl_jax.data.records import BadRecord
from ccl_jax.evaluation.benchmarks.mask_sets import Masked, MaskSet, counted, find_mask_sets
from ccl_jax.evaluation.models import EvaluatedModel, decoded
from ccl_jax.evaluation.pixel_cache import PixelCache
from ccl_jax.evaluation.results import BenchmarkResult, Metric, ratio_metric
from ccl_jax.evaluation.scoring import cosine_scores
from ccl_jax.evaluation.segmentation import (
    bilinear_upsample,
    confusion_matrix,
    patch_counts,
    pointing_hit,
    segment,
)

# PACL's prompts (Mukhoti et al., 2023), seven of CLIP's that its authors found to matter.
TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
# PACL's rule: background where the entropy of the classes, in nats, exceeds this.
_MAX_ENTROPY = 1.5
# Multiplier of the cosines in that softmax; the paper does not say, CLIP's own ends at 100.
_ENTROPY_SCALE = 100.0
_CHUNK = 32
_KINDS = {"image_tokens": "patch", "patch_emb": "pacl"}


@dataclasses.dataclass
class _Tally:
    """Counts of one set and one kind of tokens, image by image."""

    hits: list[np.ndarray] = dataclasses.field(default_factory=list)
    unions: list[np.ndarray] = dataclasses.field(default_factory=list)
    truths: list[np.ndarray] = dataclasses.field(default_factory=list)
    with_background: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = dataclasses.field(
        default_factory=list
    )
    pointed: list[tuple[int, bool]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """Mean IoU, pixel accuracy and pointing from patch similarities to class names.

    The class of a pixel is the highest cosine of the patch tokens, upsampled bilinearly to the
    mask's own size (Mukhoti et al., "Open Vocabulary Semantic Segmentation with Patch Aligned
    Contrastive Learning", CVPR 2023). Images are squashed to the model's square, so that no pixel
    is cut away. Mean IoU is over the classes that occur; pixels without a class are ignored
    (VOC-20, Context-59). With VOC also 21 classes: background is where the entropy of the softmax
    over classes exceeds 1.5. Pointing: the patch most similar to a class present in the image
    lies on it (more of its pixels than of any other class).

    Attributes:
      name: in the registry and the tables.
      stride_share: patch stride as a share of the patch size, at most 1; below 1 patches
        overlap and the grid is finer (PACL: a quarter).
    """

    name: str
    stride_share: float = 1.0

    def open(self, data_dir: Path) -> list[MaskSet]:
        """The sets of masks; raises `MissingData` if there is none."""
        return find_mask_sets(data_dir)

    def bounded(self, sets: list[MaskSet], count: int) -> list[MaskSet]:
        """Some images of each set, at the model's own stride alone."""
        if self.stride_share < 1:
            raise ValueError(
                f"{self.name} is too slow for evaluations during training; take "
                f"{PLAIN.name!r}, or tools.evaluate after it"
            )
        for data in sets:
            if data.problem:
                raise ValueError(data.problem)
        return [data.bounded(max(1, count // len(sets))) for data in sets]

    def run(self, model: EvaluatedModel, sets: list[MaskSet]) -> BenchmarkResult:
        """Evaluates plain patch tokens, and PACL's where the model has them."""
        stride = None
        if self.stride_share < 1:
            stride = max(1, round(model.predictor.model.image["patch_size"] * self.stride_share))
        predictor = model.dense(stride)
        has_pacl = getattr(getattr(predictor, "model", None), "patch_embedder", False)
        kinds = ["patch_emb", "image_tokens"] if has_pacl else ["image_tokens"]
        metrics: dict[str, Metric] = {}
        left_out = {data.problem: [data.name] for data in sets if data.problem}
        for data in sets:
            if data.problem:
                continue
            class_emb = model.classes(data.classes, TEMPLATES)
            tallies = {kind: _Tally() for kind in kinds}
            for pixels, items in _chunks(data, predictor, model.pixels, left_out):
                for kind, tally in tallies.items():
                    tokens = predictor.image_tokens(pixels, kind)
                    for found, item in zip(tokens, items, strict=True):
                        scores = cosine_scores(found, class_emb)
                        _count(data, item, scores, predictor.grid, tally)
            for kind, tally in tallies.items():
                if tally.hits:
                    prefix = f"{data.name}/{_KINDS[kind]}"
                    metrics |= _metrics(prefix, tally, len(data.images))
        if not metrics:
            raise ValueError(f"no image with a mask can be read: {counted(left_out)}")
        settings = {
            "prompts": f"{len(TEMPLATES)} templates of PACL",
            "grid": "{} x {}".format(*predictor.grid),
            "images": "squashed to the model's size; masks at their own size",
        }
        if not has_pacl:
            settings["PACL's tokens"] = "none: the model has no patch embedder"
        frozen = {reason: tuple(names) for reason, names in left_out.items()}
        return BenchmarkResult(self.name, metrics, None, frozen, settings, next(iter(metrics)))


def _chunks(
    data: MaskSet, predictor, kept: PixelCache | None, left_out: dict[str, list[str]]
):  # fmt: skip
    """(pixels, [(item, truth)]) for images that can be read with their masks."""
    there = [item for item in data.images if item.image is not None]
    gone = [f"{data.name}/{item.name}" for item in data.images if item.image is None]
    if gone:
        left_out.setdefault("missing image", []).extend(gone)
    bad: dict[str, str] = {}
    options = predictor.image_options | {"transform": "squash"}
    for pixels, found in decoded([item.image for item in there], options, _CHUNK, bad, kept):
        rows, items = [], []
        for row, index in enumerate(found):
            try:
                items.append((there[index], data.truth(there[index])))
                rows.append(row)
            except BadRecord as error:
                left_out.setdefault(error.reason, []).append(f"{data.name}/{error.key}")
        if rows:
            yield pixels[rows], items
    for name, reason in bad.items():
        left_out.setdefault(reason, []).append(f"{data.name}/{name}")


def _count(
    data: MaskSet, item: tuple[Masked, np.ndarray], scores: np.ndarray, grid, tally: _Tally
) -> None:
    """Adds one image with patch scores (l, classes)."""
    masked, truth = item
    classes = scores.shape[1]
    maps = scores.reshape(*grid, classes)
    prediction = segment(maps, truth.shape)
    hits, unions, truths = _overlaps(truth, prediction, classes)
    tally.hits.append(hits)
    tally.unions.append(unions)
    tally.truths.append(truths)
    if data.background:
        nothing = _is_background(maps, truth.shape)
        prediction = np.where(nothing, classes, prediction)
        truth_with = np.where(data.is_background(masked), classes, truth)
        tally.with_background.append(_overlaps(truth_with, prediction, classes + 1))
    present = np.unique(truth[truth >= 0])
    number = np.zeros(classes + 1, np.int64)
    number[present] = np.arange(1, len(present) + 1)
    counts = patch_counts(number[truth], grid, len(present))
    image = len(tally.hits) - 1
    for column, label in enumerate(present):
        tally.pointed.append((image, pointing_hit(scores[:, label], counts, [column])))


def _overlaps(truth, prediction, classes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    confusion = confusion_matrix(truth, prediction, classes)
    hits, true = np.diagonal(confusion), confusion.sum(axis=1)
    return hits, true + confusion[:, :-1].sum(axis=0) - hits, true


def _is_background(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool (h, w): where the entropy of the patches' class distribution is above the limit."""
    logits = _ENTROPY_SCALE * maps
    logits = logits - logits.max(axis=-1, keepdims=True)
    share = np.exp(logits)
    total = share.sum(axis=-1, keepdims=True)
    entropy = np.log(total[..., 0]) - (share * logits).sum(axis=-1) / total[..., 0]
    return bilinear_upsample(entropy, size) > _MAX_ENTROPY


def _metrics(prefix: str, tally: _Tally, total: int) -> dict[str, Metric]:
    def iou(hits, unions, truths) -> Metric:
        present = np.sum(truths, axis=0) > 0
        return Metric(
            np.stack(hits)[:, present].astype(np.float64),
            np.stack(unions)[:, present].astype(np.float64),
            len(hits),
            total,
        )

    found = {f"{prefix}/miou": iou(tally.hits, tally.unions, tally.truths)}
    if tally.with_background:
        found[f"{prefix}/miou_with_background"] = iou(*zip(*tally.with_background, strict=True))
    pixels = np.stack(tally.truths).sum(axis=1, keepdims=True).astype(np.float64)
    right = np.stack(tally.hits).sum(axis=1, keepdims=True).astype(np.float64)
    found[f"{prefix}/pixel_accuracy"] = Metric(right, pixels, len(tally.hits), total)
    if tally.pointed:
        images, hits = zip(*tally.pointed, strict=True)
        # Phrases are of the images that could be read: those of others are not known.
        found[f"{prefix}/pointing"] = ratio_metric(
            np.array(hits, np.float64), np.array(images), total=len(hits)
        )
    return found


PLAIN = Segmentation("segmentation")
STRIDE = Segmentation("segmentation_stride", 0.25)

"""Image-text retrieval on COCO, Flickr30k and Flickr8k: recall at 1, 5 and 10, both directions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from ccl_jax.evaluation.benchmarks.files import MissingData
from ccl_jax.evaluation.benchmarks.karpathy import Captioned, Split, read_split
from ccl_jax.evaluation.benchmarks.subsets import spread
from ccl_jax.evaluation.models import EvaluatedModel
from ccl_jax.evaluation.results import BenchmarkResult, Items, ratio_metric
from ccl_jax.evaluation.retrieval import DIRECTIONS, retrieval_ranks

KS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class RetrievalBenchmark:
    """Retrieval over one split.

    Karpathy and Li, "Deep Visual-Semantic Alignments for Generating Image Descriptions" (CVPR
    2015): an image counts when any of its captions is within the top k, a caption when its image
    is. Ties count against the model. Captions of images that cannot be read compete no more: see
    the coverage.

    Attributes:
      name: in the registry and the tables.
      data: name of the data set, in `karpathy.NAMES`.
    """

    name: str
    data: str

    def open(self, data_dir: Path) -> Split:
        """The test split; raises `MissingData` without it, or without any of its images."""
        split = read_split(data_dir, self.data)
        if not any(item.image is not None and item.captions for item in split.images):
            raise MissingData(f"none of the {len(split.images)} images are in {data_dir}")
        return split

    def bounded(self, split: Split, count: int) -> Split:
        """Some images with all of their captions: fewer candidates, so a higher recall."""
        there = [item for item in split.images if item.image is not None and item.captions]
        return Split(tuple(spread(there, count, key=lambda item: item.name)), split.name)

    def run(self, model: EvaluatedModel, split: Split) -> BenchmarkResult:
        """Recall of a model; the ranks are among the items' scores."""
        left_out: dict[str, list[str]] = {}
        there = []
        for item in split.images:
            reason = "missing image" if item.image is None else None
            reason = "no caption" if not item.captions else reason
            if reason:
                left_out.setdefault(reason, []).append(item.name)
            else:
                there.append(item)
        embedded = model.images([item.image for item in there])
        for item, row in zip(there, embedded.row_of, strict=True):
            if row < 0:
                reason = embedded.bad.get(item.image.name, "unreadable image")
                left_out.setdefault(reason, []).append(item.name)
        kept = [item for item, row in zip(there, embedded.row_of, strict=True) if row >= 0]
        if not kept:
            raise ValueError(f"no image of {self.data} can be read: {left_out}")
        image_emb = embedded.rows[embedded.row_of[embedded.row_of >= 0]]
        owner = np.repeat(np.arange(len(kept)), [len(item.captions) for item in kept])
        texts = [text for item in kept for text in item.captions]
        ranks = retrieval_ranks(image_emb, model.texts(texts), owner)
        totals = (len(split.images), sum(len(item.captions) for item in split.images))
        clusters = (np.arange(len(kept)), owner)
        metrics = {
            f"{direction}_recall@{k}": ratio_metric(rank < k, cluster, total=total)
            for direction, rank, cluster, total in zip(
                DIRECTIONS, ranks, clusters, totals, strict=True
            )
            for k in KS
        }
        settings = {
            "split": split.name,
            "images": f"{embedded.fingerprint} ({len(kept):,})",
            "captions": f"{len(texts):,}",
        }
        return BenchmarkResult(
            self.name,
            metrics,
            _items(kept, ranks[0]),
            {reason: tuple(names) for reason, names in left_out.items()},
            settings,
            "image_to_text_recall@1",
            {f"{direction}_rank": rank for direction, rank in zip(DIRECTIONS, ranks, strict=True)},
        )


def _items(kept: list[Captioned], rank: np.ndarray) -> Items:
    """The images as queries; the margin is minus the number of captions ahead."""
    return Items(
        keys=tuple(item.name for item in kept),
        groups=("image_to_text",) * len(kept),
        images=tuple((item.image,) for item in kept),
        texts=tuple(item.captions for item in kept),
        clusters=np.arange(len(kept)),
        outcomes={f"recall@{k}": (rank < k).astype(np.float64) for k in KS},
        scores=[np.array([value], np.float32) for value in rank],
        margin=-rank.astype(np.float64),
    )


COCO = RetrievalBenchmark("coco_retrieval", "coco")
FLICKR30K = RetrievalBenchmark("flickr30k_retrieval", "flickr30k")
FLICKR8K = RetrievalBenchmark("flickr8k_retrieval", "flickr8k")

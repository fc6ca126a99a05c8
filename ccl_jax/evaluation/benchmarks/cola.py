"""Cola: attributes attached to the right objects, among two images or many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ccl_jax.evaluation.benchmarks.files import (
    ImageStore,
    MissingData,
    first_existing,
    read_annotations,
)
from ccl_jax.evaluation.benchmarks.matching import (
    Item,
    MatchingBenchmark,
    Outcomes,
    Scores,
    Table,
    pair_outcomes,
)
from ccl_jax.evaluation.benchmarks.subsets import spread
from ccl_jax.evaluation.models import EvaluatedModel
from ccl_jax.evaluation.results import BenchmarkResult, Image, Metric
from ccl_jax.evaluation.scoring import cosine_scores

_MULTI = "COLA_multiobjects_matching_benchmark.json"
_SINGLE = {
    kind.lower(): f"COLA_singleobjects_benchmark_{kind}.json" for kind in ("GQA", "CLEVR", "PACO")
}
_PLACES = ("cola", "cola/data", "COLA/data")


def _store(data_dir: Path, folder: Path) -> ImageStore:
    roots = (folder / "images", folder.parent / "images", data_dir / "gqa" / "images")
    genome = [data_dir / "vg" / name for name in ("VG_100K", "VG_100K_2", "")]
    return ImageStore([*roots, *(root.with_suffix(".tar") for root in roots), *genome])


def _read_multi(data_dir: Path) -> list[Item]:
    path = first_existing(
        data_dir, *(f"{place}/{_MULTI}" for place in _PLACES), what="Cola annotations"
    )
    store = _store(data_dir, path.parent)
    items = []
    for index, item in enumerate(read_annotations(path, list, "Cola")):
        if not isinstance(item, list) or len(item) != 4:
            raise ValueError(f"{path} has an item that is not [image, caption, image, caption]")
        names = tuple(link.rpartition("/")[2] for link in (item[0], item[2]))
        found = tuple(map(store.find, names))
        items.append(Item(str(index), "all", found, names, (item[1], item[3])))
    return items


def _multi_outcomes(scores: Scores) -> Outcomes:
    """Right where each caption prefers its image, strictly (the authors' `ColaMultiObjAcc`)."""
    return {"right": pair_outcomes(scores)["image"]}


def _multi_metrics(table: Table) -> dict[str, Metric]:
    """Accuracy over pairs of images: Ray et al., "Cola" (NeurIPS 2023), section 4.1."""
    return {"accuracy": table.accuracy("right", chance=25)}


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the precision-recall steps: the sum of (R_k - R_{k-1}) P_k over thresholds.

    Images of equal score enter together, so that their order does not matter and a constant
    scorer gets the share of positives.

    Args:
      scores: (n,) float; NaN counts as the lowest.
      labels: (n,) bool, with at least one true.
    """
    scores = np.where(np.isnan(scores), -np.inf, scores)
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(labels[order])
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    recall = hits[last] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * hits[last] / (last + 1)))


class SingleObjects:
    """The single-object setting: for each of many attributed objects, rank the hard images.

    Mean average precision over the labels, each on the images that are hard for it (Ray et al.,
    NeurIPS 2023, section 4.1, and the authors' `ColaSingleObjAP`); a label without a right image
    among them is left out.
    """

    name = "cola_single"

    def open(self, data_dir: Path) -> dict[str, Any]:
        """{subset: (labels, images, present, hard)}; raises `MissingData`."""
        found = {}
        for subset, file in _SINGLE.items():
            for place in _PLACES:
                path = data_dir / place / file
                if path.exists():
                    found[subset] = _read_single(path, _store(data_dir, path.parent))
                    break
        if not found:
            raise MissingData(f"no Cola: expected {_SINGLE['gqa']} in {data_dir / 'cola'}")
        if not any(image is not None for *_, images, _, _ in found.values() for _, image in images):
            raise MissingData(f"none of its images are in {data_dir}")
        return found

    def bounded(self, data: dict[str, Any], count: int) -> dict[str, Any]:
        """Some images of each subset, with every label that is left right for one of them."""
        found = {}
        for subset, (labels, images, present, hard) in data.items():
            there = [n for n, (_, image) in enumerate(images) if image is not None]
            rows = spread(there, max(1, count // len(data)), key=lambda n: images[n][0])
            found[subset] = labels, [images[n] for n in rows], present[rows], hard[rows]
        return found

    def run(self, model: EvaluatedModel, data: dict[str, Any]) -> BenchmarkResult:
        """Mean average precision of each subset."""
        metrics, left_out = {}, {}
        for subset, (labels, images, present, hard) in data.items():
            there = [(n, image) for n, (_, image) in enumerate(images) if image is not None]
            gone = [f"{subset}/{name}" for name, image in images if image is None]
            embedded = model.images([image for _, image in there])
            rows = np.array([n for (n, _), row in zip(there, embedded.row_of, strict=True)
                             if row >= 0], np.int64)  # fmt: skip
            left_out.setdefault("missing image", []).extend(gone)
            for name, reason in embedded.bad.items():
                left_out.setdefault(reason, []).append(f"{subset}/{name}")
            if not rows.size:
                continue
            image_emb = embedded.rows[embedded.row_of[embedded.row_of >= 0]]
            scores = cosine_scores(image_emb, model.texts(labels))
            precisions = [
                average_precision(scores[chosen, k], present[rows][chosen, k])
                for k in range(len(labels))
                if present[rows][chosen := hard[rows, k], k].any()
            ]
            # Labels are resampled: an image counts for many of them.
            values = np.array(precisions, np.float64)[:, None]
            metrics[f"map/{subset}"] = Metric(values, np.ones_like(values), len(rows), len(images))
        left_out = {reason: tuple(names) for reason, names in left_out.items() if names}
        if not metrics:
            raise ValueError(f"no image of {self.name} can be read")
        return BenchmarkResult(self.name, metrics, None, left_out, {}, next(iter(metrics)))


def _read_single(path: Path, store: ImageStore):
    content = read_annotations(path, (dict, list), "Cola")
    try:
        labels, data = (
            (content["labels"], content["data"]) if isinstance(content, dict) else content
        )
        names = [str(item[0]).rpartition("/")[2] for item in data]
        # The annotation of objects, which PACO lacks, stands between.
        present = np.array([item[-2] for item in data], bool)
        hard = np.array([item[-1] for item in data], bool)
        if present.shape != (len(data), len(labels)) or hard.shape != present.shape:
            raise ValueError(f"labels of shape {present.shape} for {len(labels)} classes")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} does not hold labels and [image, objects, label, hard] items ({error}); "
            "download it again"
        ) from error
    images: list[tuple[str, Image | None]] = [(name, store.find(name)) for name in names]
    return list(labels), images, present, hard


MULTI = MatchingBenchmark("cola", _read_multi, _multi_outcomes, _multi_metrics)
SINGLE = SingleObjects()

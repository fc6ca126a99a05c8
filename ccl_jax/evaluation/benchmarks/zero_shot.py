"""Zero-shot classification and linear probes on every labelled set of the data folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ccl_jax.evaluation import probing
from ccl_jax.evaluation.benchmarks.class_sets import ClassSet, find_class_sets, labels_of
from ccl_jax.evaluation.benchmarks.files import MissingData
from ccl_jax.evaluation.classification import class_ranks
from ccl_jax.evaluation.models import EmbeddedImages, EvaluatedModel
from ccl_jax.evaluation.results import BenchmarkResult, Items, Metric, ratio_metric
from ccl_jax.evaluation.scoring import cosine_scores

_TOP = (1, 5)
_SHOTS = (1, 4, 16)
_SEEDS = (0, 1, 2)


class ZeroShot:
    """Top-1 and top-5 accuracy with class names in prompts.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (ICML
    2021), section 3.1.4: a class is the mean of the embeddings of its prompts, normalised again.
    Accuracy is over images; ties count against the model.
    """

    name = "zero_shot"

    def open(self, data_dir: Path) -> list[ClassSet]:
        """The labelled sets; raises `MissingData` if there is none."""
        return find_class_sets(data_dir)

    def bounded(self, sets: list[ClassSet], count: int) -> list[ClassSet]:
        """Some test images of each set, from all classes; no class is left out."""
        return _bounded(sets, count)

    def run(self, model: EvaluatedModel, sets: list[ClassSet]) -> BenchmarkResult:
        """Accuracy on each set; the items are the images of all."""
        metrics: dict[str, Metric] = {}
        left_out = _problems(sets)
        settings: dict[str, str] = {}
        tables = []
        for data in sets:
            if data.problem:
                continue
            embedded = model.images([image for image, _ in data.test])
            kept = _readable(data.name, data.test, embedded, left_out)
            if not kept:
                continue
            labels = labels_of([data.test[i] for i in kept])
            image_emb = embedded.rows[embedded.row_of[kept]]
            class_emb = model.classes(data.classes, data.templates)
            rank = class_ranks(image_emb, class_emb, labels)
            clusters = np.arange(len(kept))
            for k in _TOP:
                if k == 1 or k < len(data.classes):
                    chance = 100 * k / len(data.classes)
                    metrics[f"{data.name}/top{k}"] = ratio_metric(
                        rank < k, clusters, total=len(data.test), chance=chance
                    )
            settings[f"prompts of {data.name}"] = data.prompts
            settings[f"images of {data.name}"] = embedded.fingerprint
            tables.append(_items(data, kept, labels, image_emb, class_emb, rank))
        if not metrics:
            raise ValueError(f"no labelled image can be read: {_counted(left_out)}")
        return BenchmarkResult(
            self.name, metrics, _joined(tables), _frozen(left_out), settings, next(iter(metrics))
        )


class Probe:
    """Logistic regression on the image embeddings: all training images, and a few of each class.

    Radford et al. (2021), section 3.2 and appendix A.3: L-BFGS, at most 1,000 iterations, the
    regularisation chosen on a part of the training images; few-shot draws are averaged over
    seeds with the C = 0.316 of the authors' example.
    """

    name = "linear_probe"

    def open(self, data_dir: Path) -> list[ClassSet]:
        """Labelled sets with training images; raises `MissingData` if there is none."""
        found = [d for d in find_class_sets(data_dir, train=True) if d.train or d.problem]
        if all(data.problem for data in found):
            reasons = "".join(f"; {data.problem}" for data in found)
            raise MissingData(f"no labelled set in {data_dir} has training images{reasons}")
        return found

    def bounded(self, sets: list[ClassSet], count: int) -> list[ClassSet]:
        """Some test images of each set, and as many of its training images."""
        return _bounded(sets, count)

    def run(self, model: EvaluatedModel, sets: list[ClassSet]) -> BenchmarkResult:
        """Accuracy on the test images of each set."""
        metrics: dict[str, Metric] = {}
        left_out = _problems(sets)
        settings: dict[str, str] = {"few shots": f"mean over seeds {_SEEDS}"}
        for data in sets:
            if data.problem:
                continue
            parts = []
            for rows in (data.train, data.test):
                embedded = model.images([image for image, _ in rows])
                kept = _readable(data.name, rows, embedded, left_out)
                parts.append((embedded.rows[embedded.row_of[kept]], labels_of(rows)[kept]))
            (train_emb, train_labels), (test_emb, test_labels) = parts
            if not len(train_labels) or not len(test_labels):
                continue
            clusters = np.arange(len(test_labels))
            chance, total = 100 / len(data.classes), len(data.test)
            smallest = np.bincount(train_labels, minlength=len(data.classes)).min()
            best, strength = probing.probe(
                train_emb, train_labels, test_emb, test_labels, len(data.classes)
            )
            metrics[f"{data.name}/linear"] = ratio_metric(
                best, clusters, total=total, chance=chance
            )
            settings[f"C of {data.name}"] = f"{strength:g}"
            for shots in _SHOTS:
                if shots <= smallest:
                    right = probing.few_shot(
                        train_emb, train_labels, test_emb, test_labels, len(data.classes),
                        shots=shots, seeds=_SEEDS,
                    )  # fmt: skip
                    metrics[f"{data.name}/{shots}_shot"] = ratio_metric(
                        right, clusters, total=total, chance=chance
                    )
        if not metrics:
            raise ValueError(f"no labelled image can be read: {_counted(left_out)}")
        return BenchmarkResult(
            self.name, metrics, None, _frozen(left_out), settings, next(iter(metrics))
        )


def _bounded(sets: list[ClassSet], count: int) -> list[ClassSet]:
    for data in sets:
        if data.problem:  # one of several, which a run had better do without from its start
            raise ValueError(data.problem)
    return [data.bounded(max(1, count // len(sets))) for data in sets]


def _problems(sets: list[ClassSet]) -> dict[str, list[str]]:
    """Reason -> sets that cannot be used for it."""
    return {data.problem: [data.name] for data in sets if data.problem}


def _readable(name, rows, embedded: EmbeddedImages, left_out: dict[str, list[str]]) -> list[int]:
    for (image, _), row in zip(rows, embedded.row_of, strict=True):
        if row < 0:
            reason = embedded.bad.get(image.name, "unreadable image")
            left_out.setdefault(reason, []).append(f"{name}/{image.name}")
    return np.flatnonzero(embedded.row_of >= 0).tolist()


def _items(data: ClassSet, kept, labels, image_emb, class_emb, rank) -> Items:
    right, wrong, best = [], [], []
    for i in range(0, len(labels), 4096):
        scores = cosine_scores(image_emb[i : i + 4096], class_emb)
        rows = np.arange(len(scores))
        right.append(scores[rows, labels[i : i + 4096]].copy())
        scores[rows, labels[i : i + 4096]] = -np.inf
        best.append(scores.argmax(axis=1))
        wrong.append(scores[rows, best[-1]])
    right, wrong, best = map(np.concatenate, (right, wrong, best))
    return Items(
        keys=tuple(f"{data.name}/{data.test[i][0].name}" for i in kept),
        groups=(data.name,) * len(kept),
        images=tuple((data.test[i][0],) for i in kept),
        texts=tuple(
            (data.classes[label], data.classes[other])
            for label, other in zip(labels, best, strict=True)
        ),
        clusters=np.arange(len(kept)),
        outcomes={f"top{k}": (rank < k).astype(np.float64) for k in _TOP},
        scores=list(np.stack([right, wrong], axis=1)),
        margin=(right - wrong).astype(np.float64),
    )


def _joined(tables: list[Items]) -> Items:
    starts = np.cumsum([0, *(len(table.keys) for table in tables)])
    return Items(
        *(
            tuple(value for table in tables for value in getattr(table, name))
            for name in ("keys", "groups", "images", "texts")
        ),
        clusters=np.concatenate(
            [table.clusters + start for table, start in zip(tables, starts, strict=False)]
        ),
        outcomes={
            name: np.concatenate([table.outcomes[name] for table in tables])
            for name in tables[0].outcomes
        },
        scores=[row for table in tables for row in table.scores],
        margin=np.concatenate([table.margin for table in tables]),
    )


def _frozen(left_out: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {reason: tuple(names) for reason, names in left_out.items()}


def _counted(left_out: dict[str, list[str]]) -> dict[str, int]:
    return {reason: len(names) for reason, names in left_out.items()}


ZERO_SHOT = ZeroShot()
LINEAR_PROBE = Probe()

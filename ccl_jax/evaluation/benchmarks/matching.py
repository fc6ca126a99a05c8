"""Caption matching: items of a few images and texts, scored all against all.

Most benchmarks of compositionality are of this form and differ in their files, in what counts as
right, and in how items are averaged. A benchmark module gives those three.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ccl_jax.evaluation.benchmarks.files import MissingData
from ccl_jax.evaluation.benchmarks.subsets import spread
from ccl_jax.evaluation.models import EvaluatedModel
from ccl_jax.evaluation.results import BenchmarkResult, Image, Items, Metric, ratio_metric
from ccl_jax.evaluation.scoring import paired_scores


@dataclasses.dataclass(frozen=True)
class Item:
    """An item as published.

    Attributes:
      key: unique within the benchmark.
      group: the subset it belongs to.
      images: its images; None for one that is not there.
      image_names: of all of them, for saying what is missing.
      texts: its texts.
      family: items that belong together beyond their images, such as one scene's; "" for none.
      mark: what tells it from the others of its family.
    """

    key: str
    group: str
    images: tuple[Image | None, ...]
    image_names: tuple[str, ...]
    texts: tuple[str, ...]
    family: str = ""
    mark: str = ""


@dataclasses.dataclass(frozen=True)
class Scores:
    """Cosines of the items' images and texts, padded with -inf to one shape.

    Attributes:
      image_text: f32 (n, images, texts).
      text_text: f32 (n, texts, texts).
    """

    image_text: np.ndarray
    text_text: np.ndarray


Outcomes = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Table:
    """Outcomes of one model with what metrics are made of.

    Attributes:
      groups: (n,) of the items evaluated.
      clusters: int (n,).
      outcomes: name -> (n,) of 1, 0 or NaN.
      families: (n,).
      marks: (n,).
      totals: items of each group as published, those left out included.
    """

    groups: np.ndarray
    clusters: np.ndarray
    outcomes: Outcomes
    families: np.ndarray
    marks: np.ndarray
    totals: Mapping[str, int]

    def accuracy(
        self,
        outcome: str,
        groups: Sequence[str] | None = None,
        *,
        macro: bool = False,
        chance: float | None = None,
    ) -> Metric:
        """Accuracy over the items of some groups (all if None), or the mean of theirs (macro)."""
        chosen = list(self.totals) if groups is None else list(groups)
        inside = np.isin(self.groups, chosen)
        values = np.where(inside, np.asarray(self.outcomes[outcome], np.float64), np.nan)
        parts = np.where(inside, self.groups, "") if macro else None
        total = sum(self.totals.get(group, 0) for group in chosen)
        return ratio_metric(values, self.clusters, total=total, parts=parts, chance=chance)


@dataclasses.dataclass(frozen=True)
class MatchingBenchmark:
    """A benchmark of caption matching; call it a file of its own.

    Attributes:
      name: in the registry and the tables.
      read: `data_dir -> items`; raises `MissingData`.
      outcomes: what counts as right, strictly.
      metrics: how items are averaged, the headline first.
      settings: for the reader of the table.
      positives: texts of an item that are right, the first ones.
    """

    name: str
    read: Callable[[Path], list[Item]]
    outcomes: Callable[[Scores], Outcomes]
    metrics: Callable[[Table], dict[str, Metric]]
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    positives: int = 1

    def open(self, data_dir: Path) -> list[Item]:
        """The items, of which at least one has all of its images.

        Raises:
          MissingData: if there are no annotations, or not one image.
          ValueError: annotations of another shape.
        """
        items = self.read(data_dir)
        if not items:
            raise MissingData(f"the annotations of {self.name} in {data_dir} are empty")
        if not any(all(image is not None for image in item.images) for item in items):
            names = sorted({name for item in items for name in item.image_names})
            raise MissingData(
                f"none of its {len(names)} images are in {data_dir}; the first is {names[0]}"
            )
        return items

    def bounded(self, items: Sequence[Item], count: int) -> list[Item]:
        """Some items with all of their images, from every group; families stay whole."""
        whole = [item for item in items if all(image is not None for image in item.images)]
        return spread(
            whole,
            count,
            key=lambda item: item.family or item.key,
            group=lambda item: item.group,
        )

    def run(self, model: EvaluatedModel, items: Sequence[Item]) -> BenchmarkResult:
        """Evaluates a model; items without an image are left out, counted and named."""
        left_out: dict[str, list[str]] = collections.defaultdict(list)
        whole = []
        for item in items:
            gone = [n for n, i in zip(item.image_names, item.images, strict=True) if i is None]
            if gone:
                left_out["missing image"].append(f"{item.key} ({', '.join(gone)})")
            else:
                whole.append(item)
        images = list(dict.fromkeys(image for item in whole for image in item.images))
        embedded = model.images(images)
        row = dict(zip((image.identity for image in images), embedded.row_of, strict=True))
        kept = []
        for item in whole:
            bad = [image.name for image in item.images if row[image.identity] < 0]
            if bad:
                left_out[embedded.bad.get(bad[0], "unreadable image")].append(
                    f"{item.key} ({', '.join(bad)})"
                )
            else:
                kept.append(item)
        if not kept:
            raise ValueError(
                f"no item of {self.name} has readable images: "
                f"{ {reason: len(keys) for reason, keys in left_out.items()} }"
            )
        scores = _scores(model, kept, embedded.rows, row)
        outcomes = {
            name: np.asarray(values, np.float64) for name, values in self.outcomes(scores).items()
        }
        table = Table(
            np.array([item.group for item in kept]),
            _clusters(kept),
            outcomes,
            np.array([item.family for item in kept]),
            np.array([item.mark for item in kept]),
            dict(collections.Counter(item.group for item in items)),
        )
        metrics = self.metrics(table)
        margin = _margin(scores.image_text, self.positives)
        # Such as texts that differ only beyond the model's length.
        ties = int((margin == 0).sum())
        settings = {
            **self.settings,
            "images": embedded.fingerprint,
            "ties": f"{ties:,} of {len(kept):,} items",
        }
        return BenchmarkResult(
            self.name,
            metrics,
            _items(kept, table, scores, margin),
            {reason: tuple(keys) for reason, keys in left_out.items()},
            settings,
            next(iter(metrics)),
        )


def _scores(model: EvaluatedModel, items: Sequence[Item], image_emb, row) -> Scores:
    texts = list(dict.fromkeys(text for item in items for text in item.texts))
    text_emb = model.texts(texts)
    text_row = {text: i for i, text in enumerate(texts)}
    most_images = max(len(item.images) for item in items)
    most_texts = max(len(item.texts) for item in items)
    image_text = np.full((len(items), most_images, most_texts), -np.inf, np.float32)
    text_text = np.full((len(items), most_texts, most_texts), -np.inf, np.float32)
    across, within = [], []  # (item, i, j, row, row)
    for n, item in enumerate(items):
        columns = [text_row[text] for text in item.texts]
        across += [
            (n, i, j, row[image.identity], column)
            for i, image in enumerate(item.images)
            for j, column in enumerate(columns)
        ]
        within += [
            (n, i, j, a, b) for i, a in enumerate(columns) for j, b in enumerate(columns) if i < j
        ]
    if across:
        n, i, j, a, b = np.array(across).T
        image_text[n, i, j] = _gathered(image_emb, a, text_emb, b)
    if within:
        n, i, j, a, b = np.array(within).T
        text_text[n, i, j] = text_text[n, j, i] = _gathered(text_emb, a, text_emb, b)
    return Scores(image_text, text_text)


def _gathered(left, left_rows, right, right_rows) -> np.ndarray:
    parts = [
        paired_scores(left[left_rows[k : k + 16_384]], right[right_rows[k : k + 16_384]])
        for k in range(0, len(left_rows), 16_384)
    ]
    return np.concatenate(parts)


def _clusters(items: Sequence[Item]) -> np.ndarray:
    """Numbers of the connected parts of items joined by an image or a family."""
    parent = list(range(len(items)))

    def root(i):
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    seen: dict[str, int] = {}
    for n, item in enumerate(items):
        marks = [image.identity for image in item.images]
        for mark in [*marks, *([f"family {item.family}"] if item.family else [])]:
            parent[root(n)] = root(seen.setdefault(mark, n))
    _, numbers = np.unique([root(n) for n in range(len(items))], return_inverse=True)
    return numbers


def _margin(image_text: np.ndarray, positives: int = 1) -> np.ndarray:
    """(n,) lowest right score minus the best wrong one; of pairs likewise over both images."""
    right = image_text[:, 0, :positives].min(axis=1)
    wrong = image_text[:, 0, positives:].max(axis=1, initial=-np.inf)
    if image_text.shape[1] > 1:
        right = np.minimum(right, image_text[:, 1, 1])
        wrong = np.maximum(image_text[:, 0, 1], image_text[:, 1, 0])
    return (right - wrong).astype(np.float64)


def _items(kept: Sequence[Item], table: Table, scores: Scores, margin: np.ndarray) -> Items:
    return Items(
        keys=tuple(item.key for item in kept),
        groups=tuple(item.group for item in kept),
        images=tuple(item.images for item in kept),
        texts=tuple(item.texts for item in kept),
        clusters=table.clusters,
        outcomes=table.outcomes,
        scores=[
            scores.image_text[n, : len(item.images), : len(item.texts)]
            for n, item in enumerate(kept)
        ],
        margin=margin,
    )


def first_beats_all(scores: Scores) -> Outcomes:
    """Right where the first text scores strictly above every other one for the first image."""
    s = scores.image_text[:, 0]
    return {"right": s[:, 0] > s[:, 1:].max(axis=1)}


def pair_outcomes(scores: Scores) -> Outcomes:
    """Text, image and group score of Winoground (Thrush et al., 2022, equations 1 to 3).

    Text i belongs to image i. "text": each image prefers its text; "image": each text prefers
    its image; "group": both. Every comparison is strict.
    """
    s = scores.image_text
    text = (s[:, 0, 0] > s[:, 0, 1]) & (s[:, 1, 1] > s[:, 1, 0])
    image = (s[:, 0, 0] > s[:, 1, 0]) & (s[:, 1, 1] > s[:, 0, 1])
    return {"text": text, "image": image, "group": text & image}

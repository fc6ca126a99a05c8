"""VL-CheckList: objects, attributes or relations replaced in captions of four data sets."""

from __future__ import annotations

import collections
from pathlib import Path

from ccl_jax.evaluation.benchmarks.files import (
    ImageStore,
    MissingData,
    first_existing,
    read_annotations,
)
from ccl_jax.evaluation.benchmarks.matching import (
    Item,
    MatchingBenchmark,
    Table,
    first_beats_all,
)
from ccl_jax.evaluation.results import Metric, ratio_metric

_KINDS = ("Object", "Attribute", "Relation")
# Part of an annotation file's path -> folder of its images; VAW's are Visual Genome's.
_IMAGES = (("hake", "hake"), ("swig", "swig"), ("vaw", "vg"), ("vg", "vg"))


def _read(data_dir: Path) -> list[Item]:
    folder = first_existing(
        data_dir, "vl_checklist/data", "VL-CheckList/data", "vl_checklist",
        what="VL-CheckList annotations",
    )  # fmt: skip
    stores = {
        name: ImageStore(
            [root / name for root in (folder.parent, folder.parent / "images", data_dir)]
        )
        for name in ("hake", "swig", "vg")
    }
    items = []
    for kind in _KINDS:
        for path in sorted((folder / kind).rglob("*.json")):
            corpus = path.relative_to(folder).with_suffix("").as_posix()
            # The file's own name tells more than its folders.
            words = corpus.lower().replace("/", "_").split("_")
            source = next((images for word, images in _IMAGES if word in words), None)
            if source is None:
                continue
            for index, item in enumerate(read_annotations(path, list, "VL-CheckList")):
                items.append(_item(item, f"{corpus}/{index}", corpus, stores[source], path))
    if not items:
        raise MissingData(f"no VL-CheckList: expected {folder}/Attribute/vg/color.json and others")
    return items


def _item(item, key: str, corpus: str, store: ImageStore, path: Path) -> Item:
    try:
        name, texts = item
        # The published evaluation takes the first text of each.
        right, wrong = texts["POS"][0], texts["NEG"][0]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f'{path} has an item that is not [image, {{"POS": [...], "NEG": [...]}}] ({error!r})'
        ) from error
    image = store.find(name, name.rpartition("/")[2])
    return Item(key, corpus, (image,), (name,), (right, wrong))


def _aspect(corpus: str) -> str:
    """Attribute/color of Attribute/vaw/color, Object/Size of Object/Size/hake_size/..."""
    parts = corpus.split("/")
    if parts[0] == "Object":
        return "/".join(parts[:2])
    return f"{parts[0]}/{parts[-1].rpartition('_')[2]}"


def _metrics(table: Table) -> dict[str, Metric]:
    """Accuracy of each aspect and of objects, attributes and relations.

    Zhao et al., "VL-CheckList: Evaluating Pre-trained Vision-Language Models with Objects,
    Attributes and Relations" (EMNLP 2022), section 3: an item counts if the positive text scores
    above the negative one, and the accuracy of a file is over its items. An aspect (location,
    size; action, colour, material, size, state; action, spatial) is the mean over its files, a
    kind the mean over its aspects, "mean" that over the three kinds.
    """
    corpora = [name for name in table.totals if (table.groups == name).any()]
    aspects = collections.Counter(_aspect(corpus) for corpus in corpora)
    per_kind = collections.Counter(aspect.split("/")[0] for aspect in aspects)

    def nested(chosen: list[str]) -> Metric:
        weights = {
            corpus: 1 / (aspects[_aspect(corpus)] * per_kind[corpus.split("/")[0]])
            for corpus in chosen
        }
        return _weighted(table, chosen, weights)

    found = {"mean": nested(corpora)}
    for kind in per_kind:
        found[kind.lower()] = nested([c for c in corpora if c.startswith(f"{kind}/")])
    for aspect in aspects:
        chosen = [corpus for corpus in corpora if _aspect(corpus) == aspect]
        found[aspect.lower()] = table.accuracy("right", chosen, macro=True, chance=50)
    return found


def _weighted(table: Table, chosen: list[str], weights: dict[str, float]) -> Metric:
    inside = [group in weights for group in table.groups]
    values = table.outcomes["right"][inside]
    return ratio_metric(
        values,
        table.clusters[inside],
        total=sum(table.totals[corpus] for corpus in chosen),
        parts=table.groups[inside],
        weights=weights,
        chance=50,
    )


BENCHMARK = MatchingBenchmark("vl_checklist", _read, first_beats_all, _metrics)

"""What'sUp: where is one object relative to another? Controlled photographs, COCO and GQA."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ccl_jax.evaluation.benchmarks.files import (
    ImageStore,
    MissingData,
    coco_names,
    coco_store,
    fields,
    read_annotations,
)
from ccl_jax.evaluation.benchmarks.matching import (
    Item,
    MatchingBenchmark,
    Table,
    first_beats_all,
)
from ccl_jax.evaluation.results import Metric, ratio_metric

# Subset -> annotation file, folder of its images.
_CONTROLLED = {
    "controlled_a": ("controlled_images_dataset.json", "controlled_images"),
    "controlled_b": ("controlled_clevr_dataset.json", "controlled_clevr"),
}
_SPATIAL = {
    "coco_one": ("coco_qa_one_obj.json", "val2017"),
    "coco_two": ("coco_qa_two_obj.json", "val2017"),
    "gqa_one": ("vg_qa_one_obj.json", "vg_images"),
    "gqa_two": ("vg_qa_two_obj.json", "vg_images"),
}
_OPPOSITES = ({"left", "right"}, {"on", "under"}, {"in-front", "behind"})


def _read(data_dir: Path) -> list[Item]:
    folders = [data_dir / "whatsup", data_dir / "whatsup" / "data", data_dir / "whatsup_vlms_data"]
    items = []
    for folder in folders:
        for subset, (file, images) in (_CONTROLLED | _SPATIAL).items():
            path = folder / file
            if path.exists():
                read = _controlled if subset in _CONTROLLED else _spatial
                items += read(path, subset, folder / images, data_dir)
    if not items:
        files = ", ".join(file for file, _ in (_CONTROLLED | _SPATIAL).values())
        raise MissingData(f"no What'sUp: expected any of {files} in {data_dir / 'whatsup'}")
    return items


def _controlled(path: Path, subset: str, folder: Path, _: Path) -> list[Item]:
    store = ImageStore([folder, folder.with_suffix(".tar")])
    items = []
    for index, item in enumerate(read_annotations(path, list, "What'sUp")):
        image_path, texts = fields(item, ("image_path", "caption_options"), path)
        name = image_path.rpartition("/")[2]
        objects, preposition = _scene(name)
        items.append(
            Item(
                f"{subset}/{index}",
                subset,
                (store.find(name),),
                (name,),
                tuple(texts),
                family=f"{subset} {objects}",
                mark=preposition,
            )
        )
    return items


def _spatial(path: Path, subset: str, folder: Path, data_dir: Path) -> list[Item]:
    coco = subset.startswith("coco")
    own = ImageStore([folder, folder.with_suffix(".tar")])
    shared = coco_store(data_dir) if coco else ImageStore([data_dir / "gqa" / "images"])
    items = []
    for index, item in enumerate(read_annotations(path, list, "What'sUp")):
        if not isinstance(item, list) or len(item) != 3:
            raise ValueError(f"{path} has an item that is not [image id, caption, wrong caption]")
        name = f"{str(item[0]).zfill(12) if coco else item[0]}.jpg"
        image = own.find(name) or shared.find(*(coco_names(name) if coco else (name,)))
        items.append(Item(f"{subset}/{index}", subset, (image,), (name,), tuple(item[1:])))
    return items


def _scene(name: str) -> tuple[str, str]:
    """(the two objects, the preposition) of `mug_left_of_plate.jpeg`."""
    words = os.path.splitext(name)[0].split("_")
    return f"{words[0]} {words[-1]}", words[1] if len(words) > 1 else ""


def _metrics(table: Table) -> dict[str, Metric]:
    """Accuracy of each subset; of the controlled ones also of pairs and sets of photographs.

    Kamath et al., "What's 'up' with vision-language models? Investigating their struggle with
    spatial reasoning" (EMNLP 2023), section 2: a pair (left and right, on and under, front and
    behind) or a set (all four prepositions) of the same objects counts if every one of its
    photographs is right. "mean" is the unweighted mean of the six accuracies.
    """
    present = [name for name in (*_CONTROLLED, *_SPATIAL) if table.totals.get(name)]
    found = {"mean": table.accuracy("right", present, macro=True)}
    for name in present:
        chance = 25 if name in _CONTROLLED else 50
        found[name] = table.accuracy("right", [name], chance=chance)
        if name in _CONTROLLED:
            found |= _joint(table, name)
    return found


def _joint(table: Table, subset: str) -> dict[str, Metric]:
    """Pairs and sets; one with a photograph that could not be read is left out."""
    outcomes = np.asarray(table.outcomes["right"])
    inside = table.groups == subset
    total = table.totals[subset]
    scenes: dict[str, dict[str, int]] = {}
    for index in np.flatnonzero(inside):
        scenes.setdefault(str(table.families[index]), {})[str(table.marks[index])] = index
    pairs, sets = [], []
    for members in scenes.values():
        for pair in _OPPOSITES:
            if pair <= members.keys():
                pairs.append([members[name] for name in sorted(pair)])
        if len(members) == 4:
            sets.append(list(members.values()))
    return {
        f"{subset}/{name}": ratio_metric(
            np.array([outcomes[group].all() for group in groups], np.float64),
            np.array([table.clusters[group[0]] for group in groups], np.int64),
            total=total // size,
            chance=100 * 0.25**size,
        )
        for name, groups, size in (("pairs", pairs, 2), ("sets", sets, 4))
        if groups
    }


BENCHMARK = MatchingBenchmark("whatsup", _read, first_beats_all, _metrics)

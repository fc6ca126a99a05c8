"""VALSE: a caption against a foil, for six linguistic phenomena."""

from __future__ import annotations

from pathlib import Path

from ccl_jax.evaluation.benchmarks.files import (
    ImageStore,
    coco_names,
    coco_store,
    fields,
    first_existing,
    read_annotations,
)
from ccl_jax.evaluation.benchmarks.matching import (
    Item,
    MatchingBenchmark,
    Table,
    first_beats_all,
)
from ccl_jax.evaluation.results import Metric

# File -> piece, in the order of table 2 of the paper.
PIECES = {
    "existence": "existence",
    "plurals": "plurals",
    "counting-hard": "counting_balanced",
    "counting-small-quant": "counting_small",
    "counting-adversarial": "counting_adversarial",
    "relations": "relations",
    "action-replacement": "action_replacement",
    "actant-swap": "actant_swap",
    "coreference-standard": "coreference_standard",
    "coreference-hard": "coreference_clean",
    "foil-it": "foil_it",
}
# Folders of the data sets that its images come from, below valse/images or the data folder.
_FOLDERS = ("visual7w/images", "visual7w", "swig/images_512", "swig", "visdial", "images_512")


def _read(data_dir: Path) -> list[Item]:
    folder = first_existing(data_dir, "valse/data", "valse", "VALSE/data", what="VALSE annotations")
    images = folder.parent / "images"
    roots = (images, data_dir)
    own = ImageStore([images, *(root / name for root in roots for name in _FOLDERS)])
    coco = coco_store(data_dir)
    items = []
    for file, piece in PIECES.items():
        path = first_existing(folder, f"{file}.json", what="VALSE piece")
        for key, item in read_annotations(path, dict, "VALSE").items():
            name, caption, foil, votes = fields(
                item, ("image_file", "caption", "foil", "mturk"), path
            )
            (approved,) = fields(votes, ("caption",), path)
            if approved < 2:  # of three annotators: the paper's valid items
                continue
            image = own.find(name) or coco.find(*coco_names(name))
            items.append(Item(f"{piece}/{key}", piece, (image,), (name,), (caption, foil)))
    return items


def _metrics(table: Table) -> dict[str, Metric]:
    """Pairwise ranking accuracy of each piece, and the mean of the pieces' accuracies.

    Parcalabescu et al., "VALSE: A Task-Independent Benchmark for Vision and Language Models
    Centered on Linguistic Phenomena" (ACL 2022), section 5: acc_r, on items of which at least
    two of three annotators chose the caption alone. Pieces without an image are left out of the
    mean, as coverage shows.
    """
    pieces = [piece for piece in PIECES.values() if piece in table.totals]
    found = {"mean": table.accuracy("right", pieces, macro=True, chance=50)}
    for piece in pieces:
        metric = table.accuracy("right", [piece], chance=50)
        if metric.items:
            found[piece] = metric
    return found


BENCHMARK = MatchingBenchmark("valse", _read, first_beats_all, _metrics)

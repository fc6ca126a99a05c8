"""ARO: relations and attributes of Visual Genome, and word order of COCO and Flickr30k captions."""

from __future__ import annotations

from pathlib import Path

from ccl_jax.evaluation.benchmarks.files import (
    ImageStore,
    fields,
    first_existing,
    read_annotations,
)
from ccl_jax.evaluation.benchmarks.karpathy import read_split
from ccl_jax.evaluation.benchmarks.matching import (
    Item,
    MatchingBenchmark,
    Table,
    first_beats_all,
)
from ccl_jax.evaluation.benchmarks.word_order import SEED, perturbed, shortened
from ccl_jax.evaluation.models import cropped
from ccl_jax.evaluation.results import Metric

# Relations that hold in both directions, or that have too little to go by: the published notebook
# leaves them out of the average.
SYMMETRIC = frozenset(
    name.strip()
    for name in (
        "adjusting, attached to, between, bigger than, biting, boarding, brushing, chewing, "
        "cleaning, climbing, close to, coming from, coming out of, contain, crossing, dragging, "
        "draped over, drinking, drinking from, driving, driving down, driving on, eating from, "
        "eating in, enclosing, exiting, facing, filled with, floating in, floating on, flying, "
        "flying above, flying in, flying over, flying through, full of, going down, going into, "
        "going through, grazing in, growing in, growing on, guiding, hanging from, hanging in, "
        "hanging off, hanging over, higher than, holding onto, hugging, in between, jumping off, "
        "jumping on, jumping over, kept in, larger than, leading, leaning over, leaving, licking, "
        "longer than, looking in, looking into, looking out, looking over, looking through, "
        "lying next to, lying on top of, making, mixed with, mounted on, moving, on the back of, "
        "on the edge of, on the front of, on the other side of, opening, painted on, parked at, "
        "parked beside, parked by, parked in, parked in front of, parked near, parked next to, "
        "perched on, petting, piled on, playing, playing in, playing on, playing with, pouring, "
        "reaching for, reading, reflected on, riding on, running in, running on, running through, "
        "seen through, sitting behind, sitting beside, sitting by, sitting in front of, "
        "sitting near, sitting next to, sitting under, skiing down, skiing on, sleeping in, "
        "sleeping on, smiling at, sniffing, splashing, sprinkled on, stacked on, standing against, "
        "standing around, standing behind, standing beside, standing in front of, standing near, "
        "standing next to, staring at, stuck in, surrounding, swimming in, swinging, talking to, "
        "topped with, touching, traveling down, traveling on, tying, typing on, underneath, "
        "wading in, waiting for, walking across, walking by, walking down, walking next to, "
        "walking through, working in, working on, worn on, wrapped around, wrapped in, by, of, "
        "near, next to, with, beside, on the side of, around"
    ).split(",")
)
# The published code averages over pairs of attributes with at least this many items.
_FEWEST = 25
_BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")


def _read_genome(data_dir: Path, file: str, group_of) -> list[Item]:
    path = first_existing(data_dir, f"aro/{file}", file, what="ARO annotations")
    store = ImageStore([path.parent / "images", path.parent / "images.tar", data_dir / "vg"])
    items = []
    for index, item in enumerate(read_annotations(path, list, "ARO")):
        name, true, false, left, top, width, height = fields(
            item, ("image_path", "true_caption", "false_caption", *_BOX), path
        )
        image = store.find(name)
        if image is not None:
            image = cropped(image, (left, top, left + width, top + height))
        items.append(Item(str(index), group_of(item, path), (image,), (name,), (true, false)))
    return items


def _read_relations(data_dir: Path) -> list[Item]:
    return _read_genome(
        data_dir,
        "visual_genome_relation.json",
        lambda item, path: fields(item, ("relation_name",), path)[0],
    )


def _read_attributes(data_dir: Path) -> list[Item]:
    return _read_genome(
        data_dir,
        "visual_genome_attribution.json",
        lambda item, path: "_".join(fields(item, ("attributes",), path)[0][:2]),
    )


def _relation_metrics(table: Table) -> dict[str, Metric]:
    """Mean over relations of their accuracies, symmetric relations left out.

    Yuksekgonul et al., "When and why vision-language models behave like bags-of-words, and what
    to do about it?" (ICLR 2023), section 2, and the authors' notebook.
    """
    kept = [group for group in table.totals if group not in SYMMETRIC] or list(table.totals)
    return {
        "macro": table.accuracy("right", kept, macro=True, chance=50),
        "items": table.accuracy("right", kept, chance=50),
    }


def _attribute_metrics(table: Table) -> dict[str, Metric]:
    """Mean over attribute pairs, of 25 items or more, of their accuracies (as above)."""
    kept = [group for group, count in table.totals.items() if count >= _FEWEST]
    kept = kept or list(table.totals)
    return {
        "macro": table.accuracy("right", kept, macro=True, chance=50),
        "items": table.accuracy("right", kept, chance=50),
    }


def _read_order(data_dir: Path, name: str) -> list[Item]:
    split = read_split(data_dir, name, "test")
    items = []
    for image in split.images:
        for index, caption in enumerate(image.captions):
            key = f"{image.name}/{index}"
            texts = [caption, *perturbed(caption, key)]
            shorter = tuple(shortened(text) for text in texts)
            if len(shorter) == 1:  # a caption of one word has no other order
                continue
            items.append(Item(key, "order", (image.image,), (image.name,), shorter))
    return items


def _order_metrics(table: Table) -> dict[str, Metric]:
    """Precision at 1: the caption strictly above its four perturbations (as above)."""
    return {"precision@1": table.accuracy("right", chance=20)}


_ORDER_SETTINGS = {
    "perturbations": f"nouns and adjectives, the other words, within and of trigrams; seed {SEED}",
}
RELATION = MatchingBenchmark("vg_relation", _read_relations, first_beats_all, _relation_metrics)
ATTRIBUTION = MatchingBenchmark(
    "vg_attribution", _read_attributes, first_beats_all, _attribute_metrics
)
COCO_ORDER = MatchingBenchmark(
    "coco_order",
    lambda data_dir: _read_order(data_dir, "coco"),
    first_beats_all,
    _order_metrics,
    _ORDER_SETTINGS,
)
FLICKR30K_ORDER = MatchingBenchmark(
    "flickr30k_order",
    lambda data_dir: _read_order(data_dir, "flickr30k"),
    first_beats_all,
    _order_metrics,
    _ORDER_SETTINGS,
)

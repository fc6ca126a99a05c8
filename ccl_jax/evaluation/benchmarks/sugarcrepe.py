"""SugarCrepe and SugarCrepe++: a caption of COCO against a fluent, plausible hard negative."""

from __future__ import annotations

from pathlib import Path

from ccl_jax.evaluation.benchmarks.files import (
    coco_names,
    coco_store,
    fields,
    first_existing,
    read_annotations,
)
from ccl_jax.evaluation.benchmarks.matching import (
    Item,
    MatchingBenchmark,
    Outcomes,
    Scores,
    Table,
    first_beats_all,
)
from ccl_jax.evaluation.results import Metric

SUBSETS = (
    "replace_obj",
    "replace_att",
    "replace_rel",
    "swap_obj",
    "swap_att",
    "add_obj",
    "add_att",
)


def _read(data_dir: Path) -> list[Item]:
    folder = first_existing(
        data_dir, "sugarcrepe/data", "sugarcrepe", "sugar-crepe/data", what="SugarCrepe annotations"
    )
    store = coco_store(data_dir)
    items = []
    for subset in SUBSETS:
        path = first_existing(folder, f"{subset}.json", what="SugarCrepe subset")
        for key, item in read_annotations(path, dict, "SugarCrepe").items():
            name, positive, negative = fields(
                item, ("filename", "caption", "negative_caption"), path
            )
            image = store.find(*coco_names(name))
            items.append(Item(f"{subset}/{key}", subset, (image,), (name,), (positive, negative)))
    return items


def _read_plus(data_dir: Path) -> list[Item]:
    folder = first_existing(
        data_dir, "sugarcrepe_pp/data", "sugarcrepe_pp", "scpp/data",
        what="SugarCrepe++ annotations",
    )  # fmt: skip
    store = coco_store(data_dir)
    items = []
    for subset in SUBSETS[:5]:  # it has no additions
        path = first_existing(folder, f"{subset}.json", what="SugarCrepe++ subset")
        for index, item in enumerate(read_annotations(path, list, "SugarCrepe++")):
            name, *texts = fields(
                item, ("filename", "caption", "caption2", "negative_caption"), path
            )
            image = store.find(*coco_names(name))
            key = f"{subset}/{item.get('id', index)}"
            items.append(Item(key, subset, (image,), (name,), tuple(texts)))
    return items


def _metrics(table: Table) -> dict[str, Metric]:
    """Accuracy of each subset; replace, swap, add and "mean" average the subsets' accuracies.

    Hsieh et al., "SugarCrepe: Fixing Hackable Benchmarks for Vision-Language Compositionality"
    (NeurIPS 2023), table 5: a subset's accuracy is over its items.
    """
    found = {"mean": table.accuracy("right", SUBSETS, macro=True, chance=50)}
    for kind in ("replace", "swap", "add"):
        subsets = [subset for subset in SUBSETS if subset.startswith(kind)]
        found[kind] = table.accuracy("right", subsets, macro=True, chance=50)
        found |= {s: table.accuracy("right", [s], chance=50) for s in subsets}
    return found


def _outcomes_plus(scores: Scores) -> Outcomes:
    """Both positives beat the negative: for the image ("i2t"), and among texts alone ("tot").

    Dumpala et al., "SUGARCREPE++ Dataset: Vision-Language Model Sensitivity to Semantic and
    Lexical Alterations" (NeurIPS 2024), section 4: a hit of the image-text task needs
    s(P1, I) > s(N, I) and s(P2, I) > s(N, I), one of the text-only task s(P1, P2) > s(P1, N)
    and s(P1, P2) > s(P2, N).
    """
    image, text = scores.image_text[:, 0], scores.text_text
    return {
        "i2t": (image[:, 0] > image[:, 2]) & (image[:, 1] > image[:, 2]),
        "tot": (text[:, 0, 1] > text[:, 0, 2]) & (text[:, 0, 1] > text[:, 1, 2]),
    }


def _metrics_plus(table: Table) -> dict[str, Metric]:
    found = {}
    for outcome in ("i2t", "tot"):
        chance = 100 / 3  # the negative is the lowest of three
        found[f"{outcome}/mean"] = table.accuracy(outcome, SUBSETS[:5], macro=True, chance=chance)
        for subset in SUBSETS[:5]:
            found[f"{outcome}/{subset}"] = table.accuracy(outcome, [subset], chance=chance)
    return found


BENCHMARK = MatchingBenchmark("sugarcrepe", _read, first_beats_all, _metrics)
PLUS = MatchingBenchmark("sugarcrepe_pp", _read_plus, _outcomes_plus, _metrics_plus, positives=2)

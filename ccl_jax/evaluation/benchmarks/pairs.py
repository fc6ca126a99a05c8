"""Two images and two captions: Winoground, BiVLC, ColorSwap, MMVP-VLM."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from ccl_jax.evaluation.benchmarks.files import (
    ImageStore,
    MissingData,
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
    pair_outcomes,
)
from ccl_jax.evaluation.benchmarks.parquet import read_rows
from ccl_jax.evaluation.results import Metric


def _parquet(data_dir: Path, names: tuple[str, ...], split: str) -> list[Path]:
    """Parquet files of a split in a Hugging Face repository or in a flat folder."""
    for name in names:
        for pattern in (f"data/{split}*.parquet", f"{split}*.parquet", f"*/{split}/*.parquet"):
            if found := sorted((data_dir / name).glob(pattern)):
                return found
    return []


def _from_parquet(paths, images, texts, group=None) -> list[Item]:
    rows = read_rows(paths, [*texts, *([group] if group else [])], images)
    items = []
    for index, row in enumerate(rows):
        found = tuple(row[name] for name in images)
        names = tuple(image.name for image in found)
        kind = str(row[group]) if group else "all"
        items.append(Item(str(index), kind, found, names, tuple(row[name] for name in texts)))
    return items


def _pair_metrics(table: Table) -> dict[str, Metric]:
    """Text, image and group score over all items; chance 25, 25 and 1/6 (Thrush et al., 2022)."""
    return {
        "group": table.accuracy("group", chance=100 / 6),
        "text": table.accuracy("text", chance=25),
        "image": table.accuracy("image", chance=25),
    }


def _read_winoground(data_dir: Path) -> list[Item]:
    if paths := _parquet(data_dir, ("winoground",), "test"):
        return _from_parquet(paths, ("image_0", "image_1"), ("caption_0", "caption_1"))
    path = first_existing(
        data_dir, "winoground/data/examples.jsonl", "winoground/examples.jsonl",
        what="Winoground annotations",
    )  # fmt: skip
    store = ImageStore([path.parent / "images", path.parent / "images.tar"])
    items = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            item = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error})") from error
        key, *rest = fields(item, ("id", "image_0", "image_1", "caption_0", "caption_1"), path)
        names = tuple(name if "." in name else f"{name}.png" for name in rest[:2])
        items.append(Item(str(key), "all", tuple(map(store.find, names)), names, tuple(rest[2:])))
    return items


def _read_colorswap(data_dir: Path) -> list[Item]:
    images, texts = ("image_1", "image_2"), ("caption_1", "caption_2")
    if paths := _parquet(data_dir, ("colorswap",), "test"):
        return _from_parquet(paths, images, texts)
    path = first_existing(
        data_dir, "colorswap/data/test.json", "colorswap/test.json", what="ColorSwap annotations"
    )
    store = ImageStore([path.parent, path.parent / "images", path.parent / "images.tar"])
    items = []
    for item in read_annotations(path, list, "ColorSwap"):
        key, *rest = fields(item, ("id", *images, *texts), path)
        names = tuple(rest[:2])
        found = tuple(store.find(name, name.rpartition("/")[2]) for name in names)
        items.append(Item(str(key), "all", found, names, tuple(rest[2:])))
    return items


def _read_bivlc(data_dir: Path) -> list[Item]:
    paths = _parquet(data_dir, ("bivlc", "BiVLC"), "test")
    if not paths:
        raise MissingData(f"no BiVLC: expected bivlc/data/test-*.parquet in {data_dir}")
    images, texts = ("image", "negative_image"), ("caption", "negative_caption")
    return _from_parquet(paths, images, texts, "type")


def _bivlc_outcomes(scores: Scores) -> Outcomes:
    """I2T, T2I and group score, and the four comparisons that they are made of.

    Miranda et al., "BiVLC: Extending Vision-Language Compositionality Evaluation with
    Text-to-Image Retrieval" (NeurIPS 2024), section 5. I2T is Winoground's text score and T2I its
    image score.
    """
    s, pair = scores.image_text, pair_outcomes(scores)
    return {
        "i2t": pair["text"],
        "t2i": pair["image"],
        "group": pair["group"],
        "ipos2t": s[:, 0, 0] > s[:, 0, 1],
        "ineg2t": s[:, 1, 1] > s[:, 1, 0],
        "tpos2i": s[:, 0, 0] > s[:, 1, 0],
        "tneg2i": s[:, 1, 1] > s[:, 0, 1],
    }


def _bivlc_metrics(table: Table) -> dict[str, Metric]:
    chances = {"group": 100 / 6, "i2t": 25, "t2i": 25}
    names = ("group", "i2t", "t2i", "ipos2t", "ineg2t", "tpos2i", "tneg2i")
    found = {name: table.accuracy(name, chance=chances.get(name, 50)) for name in names}
    for kind in ("replace", "swap", "add"):
        if table.totals.get(kind):
            for name in names[:3]:
                found[f"{kind}/{name}"] = table.accuracy(name, [kind], chance=chances[name])
    return found


def _read_mmvp(data_dir: Path) -> list[Item]:
    path = first_existing(
        data_dir, "mmvp_vlm/Questions.csv", "MMVP_VLM/Questions.csv", what="MMVP-VLM questions"
    )
    folder = path.parent
    store = ImageStore([folder / "MLLM_VLM Images", folder / "images", folder])
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))[1:]
    if any(len(row) != 3 for row in rows) or len(rows) % 2:
        raise ValueError(
            f"{path} is not pairs of rows of question id, type and statement; download it again"
        )
    items = []
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        # Published ids count from 1, odd then even.
        pair = sorted((first, second), key=lambda row: int(row[0]))
        names = tuple(f"{row[1]}/{row[0]}.jpg" for row in pair)
        texts = tuple(f"a photo of {row[2]}" for row in pair)
        items.append(Item(pair[0][0], pair[0][1], tuple(map(store.find, names)), names, texts))
    return items


def _mmvp_outcomes(scores: Scores) -> Outcomes:
    """Right where both statements prefer their image, strictly."""
    return {"right": pair_outcomes(scores)["image"]}


def _mmvp_metrics(table: Table) -> dict[str, Metric]:
    """Accuracy of the pairs of each visual pattern, and the mean over the nine patterns.

    Tong et al., "Eyes Wide Shut? Exploring the Visual Shortcomings of Multimodal LLMs" (CVPR
    2024), section 3, table 1, and the authors' code: a pair counts if both of its statements
    choose the right image.
    """
    patterns = list(table.totals)
    found = {"mean": table.accuracy("right", patterns, macro=True, chance=25)}
    for pattern in patterns:
        found[pattern.lower().replace(" ", "_")] = table.accuracy("right", [pattern], chance=25)
    return found


WINOGROUND = MatchingBenchmark("winoground", _read_winoground, pair_outcomes, _pair_metrics)
COLORSWAP = MatchingBenchmark("colorswap", _read_colorswap, pair_outcomes, _pair_metrics)
BIVLC = MatchingBenchmark("bivlc", _read_bivlc, _bivlc_outcomes, _bivlc_metrics)
MMVP_VLM = MatchingBenchmark("mmvp_vlm", _read_mmvp, _mmvp_outcomes, _mmvp_metrics)

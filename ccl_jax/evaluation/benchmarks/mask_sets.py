"""Images with masks in the layouts of PASCAL VOC, PASCAL-Context, COCO-Stuff and ADE20K."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from ccl_jax.data.records import BadRecord
from ccl_jax.evaluation.benchmarks.files import MissingData, Tar, file_image
from ccl_jax.evaluation.benchmarks.subsets import spread
from ccl_jax.evaluation.results import Image
from ccl_jax.evaluation.segmentation import IGNORE

# COCO-Stuff's pixel maps number 182 classes from 0; these 11 things were never annotated.
_STUFF_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)


@dataclasses.dataclass(frozen=True)
class Masked:
    """An image and its mask, neither read yet.

    Attributes:
      image: the image; None if it is not there.
      name: of the image.
      mask: the bytes of its mask, a PNG of label ids.
    """

    image: Image | None
    name: str
    mask: Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class MaskSet:
    """A set of masked images.

    Attributes:
      name: of the set.
      classes: names as they go into prompts.
      ids: label id of a mask -> class; every other id is ignored.
      images: in order.
      background: whether label id 0 is a background of no class (VOC).
      problem: why the set cannot be used; it has no images then.
    """

    name: str
    classes: tuple[str, ...]
    ids: Mapping[int, int]
    images: tuple[Masked, ...]
    background: bool = False
    problem: str = ""

    def bounded(self, count: int) -> MaskSet:
        """The same classes with at most `count` images, of those that are there."""
        there = [item for item in self.images if item.image is not None]
        some = spread(there, count, key=lambda item: item.name)
        return dataclasses.replace(self, images=tuple(some))

    def truth(self, item: Masked) -> np.ndarray:
        """int (h, w): class of each pixel at the mask's own size, `IGNORE` for none.

        Raises:
          BadRecord: if the mask cannot be read.
        """
        labels = _read_mask(item)
        table = np.full(65_536, IGNORE, np.int64)
        table[list(self.ids)] = list(self.ids.values())
        return table[labels]

    def is_background(self, item: Masked) -> np.ndarray:
        """bool (h, w): where label id 0 stands."""
        return _read_mask(item) == 0


def _read_mask(item: Masked) -> np.ndarray:
    try:
        labels = np.asarray(PillowImage.open(io.BytesIO(item.mask()), formats=("PNG",)))
    except BadRecord:
        raise
    except Exception as error:  # damaged files raise OSError, SyntaxError, ...
        raise BadRecord(item.name, "unreadable mask", str(error)) from error
    if labels.ndim != 2 or labels.dtype.kind not in "ui" or labels.max(initial=0) > 65_535:
        raise BadRecord(item.name, "unreadable mask", f"{labels.dtype} of shape {labels.shape}")
    return labels


def find_mask_sets(data_dir: Path) -> list[MaskSet]:
    """Every set of masks of a data folder; a damaged tar is a set that says so.

    Raises:
      MissingData: if there is none.
      ValueError: if not one can be used.
    """
    found = [made for find in (_voc, _context, _coco_stuff, _ade20k) if (made := find(data_dir))]
    for path in sorted(data_dir.glob("*seg*.tar")):
        try:
            found.append(_tar(path))
        except ValueError as error:
            found.append(MaskSet(path.stem, (), {}, (), problem=str(error)))
    if not found:
        raise MissingData(
            "no masks: expected voc/VOC2012, context/VOC2010, coco_stuff or ADEChallengeData2016 "
            f"in {data_dir}"
        )
    if all(data.problem for data in found):
        raise ValueError("; ".join(data.problem for data in found))
    return found


@functools.cache
def _classes() -> dict[str, list[str]]:
    file = importlib.resources.files(__package__).joinpath("segmentation_classes.json")
    return json.loads(file.read_text(encoding="utf-8"))


def _first_folder(data_dir: Path, *names: str) -> Path | None:
    return next((data_dir / name for name in names if (data_dir / name).is_dir()), None)


def _masked(image: Path, mask: Path) -> Masked:
    def read() -> bytes:
        try:
            return mask.read_bytes()
        except OSError as error:
            raise BadRecord(image.name, "missing mask", str(mask)) from error

    return Masked(file_image(image) if image.is_file() else None, image.name, read)


def _listed(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split()


def _voc(data_dir: Path) -> MaskSet | None:
    """VOC 2012: JPEGImages, SegmentationClass, ImageSets/Segmentation/val.txt; 255 is void."""
    root = _first_folder(data_dir, "voc/VOC2012", "VOCdevkit/VOC2012", "VOC2012")
    if root is None or not (root / "ImageSets/Segmentation/val.txt").is_file():
        return None
    images = tuple(
        _masked(root / "JPEGImages" / f"{key}.jpg", root / "SegmentationClass" / f"{key}.png")
        for key in _listed(root / "ImageSets/Segmentation/val.txt")
    )
    ids = {i + 1: i for i in range(20)}
    return MaskSet("voc", tuple(_classes()["voc"]), ids, images, background=True)


def _context(data_dir: Path) -> MaskSet | None:
    """PASCAL-Context as converted for mmsegmentation: SegmentationClassContext, 0 for none."""
    root = _first_folder(data_dir, "context/VOC2010", "VOCdevkit/VOC2010", "VOC2010")
    if root is None or not (root / "SegmentationClassContext").is_dir():
        return None
    lists = [root / "ImageSets" / folder / "val.txt"
             for folder in ("SegmentationContext", "Segmentation")]  # fmt: skip
    listed = next((path for path in lists if path.is_file()), None)
    masks = root / "SegmentationClassContext"
    keys = _listed(listed) if listed else sorted(path.stem for path in masks.glob("*.png"))
    images = tuple(
        _masked(root / "JPEGImages" / f"{key}.jpg", masks / f"{key}.png") for key in keys
    )
    return MaskSet("context", tuple(_classes()["context"]), {i + 1: i for i in range(59)}, images)


def _coco_stuff(data_dir: Path) -> MaskSet | None:
    """COCO-Stuff 164k: pixel maps of val2017, or mmsegmentation's `_labelTrainIds`."""
    root = _first_folder(data_dir, "coco_stuff", "coco_stuff164k", "cocostuff")
    if root is None:
        return None
    folders = ("annotations/val2017", "stuffthingmaps/val2017", "val2017_pixelmaps")
    masks = next((root / name for name in folders if (root / name).is_dir()), None)
    if masks is None:
        return None
    images = next(
        (p for p in (root / "images/val2017", data_dir / "coco/val2017") if p.is_dir()),
        root / "images/val2017",
    )
    paths = sorted(masks.glob("*_labelTrainIds.png"))
    if paths:
        ids = {i: i for i in range(171)}
    else:
        paths = sorted(masks.glob("*.png"))
        kept = [i for i in range(182) if i not in _STUFF_GAPS]
        ids = {label: i for i, label in enumerate(kept)}
    items = tuple(
        _masked(images / f"{path.stem.removesuffix('_labelTrainIds')}.jpg", path) for path in paths
    )
    classes = tuple(map(_readable, _classes()["coco_stuff"]))
    return MaskSet("coco_stuff", classes, ids, items)


def _ade20k(data_dir: Path) -> MaskSet | None:
    """ADE20K of the scene parsing challenge: images/ and annotations/ of validation, 0 for none."""
    root = _first_folder(data_dir, "ade20k/ADEChallengeData2016", "ADEChallengeData2016", "ade20k")
    if root is None or not (root / "annotations/validation").is_dir():
        return None
    images = tuple(
        _masked(root / "images/validation" / f"{path.stem}.jpg", path)
        for path in sorted((root / "annotations/validation").glob("*.png"))
    )
    return MaskSet("ade20k", tuple(_classes()["ade20k"]), {i + 1: i for i in range(150)}, images)


def _tar(path: Path) -> MaskSet:
    """A tar of KEY.jpg and KEY.png with a `classes.yaml` of label ids; 0 is ignored."""
    tar = Tar(path)
    names = [name for name in tar.members if name.endswith("classes.yaml")]
    if not names:
        raise ValueError(f"{path} has no classes.yaml that says what its label ids mean")
    lines = re.findall(r"^\s+(\d+):\s*(.+?)\s*$", tar.read(names[0]).decode("utf-8"), re.MULTILINE)
    labels = {int(number): name.strip("'\"") for number, name in lines if int(number)}
    pngs = {name for name in tar.members if name.endswith(".png")}
    jpgs = [name for name in tar.members if name.endswith(".jpg")]
    images = tuple(
        Masked(
            tar.image(name),
            name,
            functools.partial(tar.read, f"{name[:-4]}.png"),
        )
        for name in sorted(jpgs)
        if f"{name[:-4]}.png" in pngs
    )
    order = sorted(labels)
    classes = tuple(_readable(labels[number]) for number in order)
    return MaskSet(path.stem, classes, {number: i for i, number in enumerate(order)}, images)


def _readable(name: str) -> str:
    """A class of COCO-Stuff or COCO panoptic as words: "floor-wood" is wood floor."""
    kind, _, what = name.partition("-")
    if what in ("", "stuff", "other", "merged") or what.startswith(("other", "stuff")):
        return kind if what else name
    return f"{what.removesuffix('-merged')} {kind}"


def counted(left_out: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """{reason: how many}."""
    return {reason: len(names) for reason, names in left_out.items()}

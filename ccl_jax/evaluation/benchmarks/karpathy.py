"""Images with several captions: Karpathy's splits of COCO, Flickr30k and Flickr8k."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from ccl_jax.evaluation.benchmarks.files import (
    ImageStore,
    MissingData,
    Tar,
    coco_names,
    coco_store,
    fields,
    read_annotations,
)
from ccl_jax.evaluation.results import Image

NAMES = ("coco", "flickr30k", "flickr8k")
# The published numbers use five captions an image; some images of COCO have six or seven.
_CAPTIONS = 5
_FOLDERS = {
    "flickr30k": ("flickr30k-images", "flickr30k_images", "images"),
    "flickr8k": ("Flicker8k_Dataset", "Flickr8k_Dataset", "images"),
}


@dataclasses.dataclass(frozen=True)
class Captioned:
    """An image of a split.

    Attributes:
      name: as the annotations have it.
      image: None if it is not there.
      captions: five, as published; fewer if it has fewer.
    """

    name: str
    image: Image | None
    captions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Split:
    """Attributes: the images, and the name of the split that was found."""

    images: tuple[Captioned, ...]
    name: str


def read_split(data_dir: Path, name: str, split: str = "test") -> Split:
    """Reads a split, from Karpathy's JSON, BLIP's version of it, or WebDataset tars.

    Args:
      data_dir: holds `NAME/dataset_NAME.json`, or `NAME/NAME_karpathy_SPLIT.json` or
        `NAME/NAME_SPLIT.json`, with the images in the folders of the data set; or tars
        `NAME*_SPLIT*.tar` with KEY.jpg and KEY.json {"captions": [...]}.
      name: in `NAMES`.
      split: "test", "val" or "train"; of tars, "dev" is taken where there is no "test".

    Raises:
      MissingData: if there is none of these.
      ValueError: for annotations of another shape.
    """
    folder = data_dir / name
    store = coco_store(data_dir) if name == "coco" else _flickr_store(folder, name)
    whole = folder / f"dataset_{name}.json"
    if whole.exists():
        return Split(tuple(_karpathy(whole, split, store)), split)
    for path in (folder / f"{name}_karpathy_{split}.json", folder / f"{name}_{split}.json"):
        if path.exists():
            return Split(tuple(_blip(path, store)), split)
    for part in dict.fromkeys((split, *(("dev", "val") if split == "test" else ()))):
        tars = sorted({*data_dir.glob(f"{name}*_{part}*.tar"), *folder.glob(f"*{part}*.tar")})
        if tars:
            return Split(tuple(item for tar in tars for item in _webdataset(tar)), part)
    raise MissingData(
        f"no {name} captions: expected {name}/dataset_{name}.json with its images, or "
        f"{name}*_{split}*.tar, in {data_dir}"
    )


def _flickr_store(folder: Path, name: str) -> ImageStore:
    places = [folder / inner for inner in _FOLDERS[name]]
    return ImageStore([*places, *(place.with_suffix(".tar") for place in places), folder])


def _karpathy(path: Path, split: str, store: ImageStore):
    content = read_annotations(path, dict, "Karpathy's split")
    (images,) = fields(content, ("images",), path)
    for item in images:
        name, part, sentences = fields(item, ("filename", "split", "sentences"), path)
        # "restval" belongs to COCO's training images.
        if part != split and not (split == "train" and part == "restval"):
            continue
        captions = [fields(sentence, ("raw",), path)[0].strip() for sentence in sentences]
        names = [f"{item['filepath']}/{name}"] if item.get("filepath") else []
        yield _captioned(name, (*names, *coco_names(name)), captions, store)


def _blip(path: Path, store: ImageStore):
    for item in read_annotations(path, list, "BLIP's version of Karpathy's split"):
        name, captions = fields(item, ("image", "caption"), path)
        base = name.rpartition("/")[2]
        yield _captioned(base, (name, *coco_names(base)), captions, store)


def _captioned(name, names, captions, store) -> Captioned:
    return Captioned(name, store.find(*names), tuple(filter(None, captions))[:_CAPTIONS])


def _webdataset(path: Path):
    tar = Tar(path)
    for member in tar.members:
        stem, _, extension = member.rpartition(".")
        if extension.lower() not in ("jpg", "jpeg", "png", "webp"):
            continue
        try:
            values = json.loads(tar.read(f"{stem}.json"))
            captions = values["captions"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} has no {stem}.json with a list of captions ({error!r}); a retrieval set "
                "needs one beside each image"
            ) from error
        captions = [captions] if isinstance(captions, str) else captions
        kept = tuple(text.strip() for text in captions if text.strip())[:_CAPTIONS]
        yield Captioned(member, tar.image(member), kept)

"""Files of published benchmarks under one data folder: annotations, images in folders and tars."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ccl_jax.data.records import BadRecord
from ccl_jax.evaluation.results import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


class MissingData(ValueError):
    """A benchmark's files are not there; the message says which ones and where they belong."""


def first_existing(data_dir: Path, *names: str, what: str) -> Path:
    """The first of several places that exists.

    Raises:
      MissingData: if none does; `what` says what should be there.
    """
    for name in names:
        if (data_dir / name).exists():
            return data_dir / name
    raise MissingData(f"no {what}: expected {' or '.join(names)} in {data_dir}")


def read_annotations(path: Path, kind: type | tuple[type, ...], what: str) -> Any:
    """The content of a JSON file of annotations.

    Args:
      path: the file.
      kind: dict, list or both, which the content must be.
      what: of the benchmark, for errors.

    Raises:
      ValueError: for a damaged file, or one of another shape.
    """
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); download it again") from error
    if not isinstance(values, kind):
        raise ValueError(
            f"{path} holds a {type(values).__name__}, which the annotations of {what} are not; "
            "download it again"
        )
    return values


def fields(item: Any, names: Sequence[str], path: Path) -> list[Any]:
    """The named fields of one annotation.

    Raises:
      ValueError: naming the file and the field that is missing.
    """
    if not isinstance(item, dict):
        raise ValueError(f"{path} has an item that is a {type(item).__name__}, not an object")
    for name in names:
        if name not in item:
            raise ValueError(f"{path} has an item without {name!r} (it has {', '.join(item)})")
    return [item[name] for name in names]


def file_image(path: Path, name: str | None = None) -> Image:
    """An image that is a file."""
    status = path.stat()

    def read() -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise BadRecord(name or path.name, "unreadable file", str(error)) from error

    identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    return Image(name or path.name, identity, read)


class Tar:
    """The members of a plain tar, read at random by their offsets; nothing is extracted."""

    def __init__(self, path: Path):
        """Reads the headers.

        Raises:
          ValueError: if it is no plain tar, or damaged.
        """
        self.path = path
        self._status = path.stat()
        try:
            with tarfile.open(path, "r:") as tar:
                self.members = {
                    member.name.removeprefix("./"): (member.offset_data, member.size)
                    for member in tar
                    if member.isreg()
                }
        except (tarfile.TarError, OSError) as error:
            raise ValueError(
                f"{path} is not a whole, plain tar ({error}); copy it again"
            ) from error

    def read(self, name: str) -> bytes:
        """The bytes of a member."""
        offset, size = self.members[name]
        with open(self.path, "rb") as file:
            data = os.pread(file.fileno(), size, offset)
        if len(data) != size:
            raise BadRecord(name, "unreadable shard", f"{self.path} got shorter")
        return data

    def image(self, name: str) -> Image:
        """A member as an image."""
        offset, size = self.members[name]
        identity = f"{self.path.resolve()} {self._status.st_mtime_ns} {offset} {size}"
        return Image(name, identity, lambda: self.read(name))


class ImageStore:
    """Finds images by name in several folders and tars."""

    def __init__(self, places: Iterable[Path]):
        """Takes the places that exist, in order: folders, and tars (`*.tar`)."""
        self._folders: list[Path] = []
        self._tars: list[tuple[Tar, dict[str, str]]] = []
        for place in places:
            if place.is_dir():
                self._folders.append(place)
            elif place.suffix == ".tar" and place.is_file():
                tar = Tar(place)
                names = [n for n in tar.members if n.lower().endswith(IMAGE_SUFFIXES)]
                by_name = {os.path.basename(name): name for name in names}
                self._tars.append((tar, by_name | {name: name for name in names}))

    def __bool__(self) -> bool:
        return bool(self._folders or self._tars)

    def find(self, *names: str) -> Image | None:
        """The image of the first name that is found; None if there is none."""
        for name in names:
            for folder in self._folders:
                # A name from annotations stays within the folder.
                path = folder / name
                if ".." not in path.parts[len(folder.parts) :] and path.is_file():
                    return file_image(path, name)
            for tar, found in self._tars:
                if name in found:
                    return tar.image(found[name])
        return None


def coco_store(data_dir: Path) -> ImageStore:
    """COCO's images: `coco/` with the folders (or tars) of its years, or `coco*.tar` beside it."""
    years = ("val2017", "train2017", "val2014", "train2014", "test2014", "test2015", "test2017")
    roots = [data_dir / "coco", data_dir / "coco" / "images", data_dir]
    folders = [root / year for root in roots for year in years]
    tars = [folder.with_suffix(".tar") for folder in folders]
    whole = [data_dir / "coco"]
    return ImageStore([*folders, *whole, *tars, *sorted(data_dir.glob("coco_*.tar"))])


def coco_names(name: str) -> tuple[str, ...]:
    """Names under which COCO has an image: 2017 renamed those of 2014, pixels unchanged.

    >>> coco_names("COCO_val2014_000000165831.jpg")
    ('COCO_val2014_000000165831.jpg', '000000165831.jpg')
    """
    base = name.rpartition("/")[2]
    plain = base.rpartition("_")[2]
    if not (plain[:12].isdigit() and plain[12:] == ".jpg"):
        return (name,)
    old = [f"COCO_{part}2014_{plain}" for part in ("val", "train")] if base == plain else [plain]
    return tuple(dict.fromkeys((name, base, *old)))


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """{class: images} of a folder with one folder per class, sorted.

    Raises:
      ValueError: if a class has no image, or there is no class.
    """
    classes = {
        entry.name: sorted(p for p in entry.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        for entry in sorted(folder.iterdir())
        if entry.is_dir()
    }
    if not classes:
        raise ValueError(f"{folder} holds no folders; it needs one folder of images per class")
    empty = [name for name, images in classes.items() if not images]
    if empty:
        raise ValueError(
            f"{folder / empty[0]} holds no image ({len(empty)} of {len(classes)} classes are "
            "empty); add its images or remove the folder"
        )
    return classes


def class_tar(tar: Tar, prefix: str) -> dict[str, list[str]]:
    """{class: members} of a tar with members PREFIX/CLASS/FILE, sorted."""
    classes: dict[str, list[str]] = {}
    for name in sorted(tar.members):
        parts = name.split("/")
        if len(parts) == 3 and parts[0] == prefix and name.lower().endswith(IMAGE_SUFFIXES):
            classes.setdefault(parts[1], []).append(name)
    return classes

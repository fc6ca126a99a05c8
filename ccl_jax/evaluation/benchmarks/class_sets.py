"""Images with a class: folders, tars and TensorFlow Datasets, with class names and prompts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.resources
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ccl_jax.evaluation.benchmarks.files import (
    MissingData,
    Tar,
    class_folders,
    class_tar,
    file_image,
)
from ccl_jax.evaluation.benchmarks.subsets import spread
from ccl_jax.evaluation.results import Image

PLAIN_TEMPLATES = ("a photo of a {}.",)
_TEST, _TRAIN = ("test", "val", "validation"), ("train", "training")
# Names under which others know the sets of `zeroshot_prompts.json`.
_ALIASES = {
    "imagenet": "ImageNet1k",
    "imagenet2012": "ImageNet1k",
    "imagenetv2": "ImageNet1k",
    "oxfordiiitpet": "OxfordPets",
    "oxfordflowers102": "Flowers102",
    "dtd": "DescribableTextures",
    "cars196": "StanfordCars",
    "voc2007": "PascalVOC2007",
}


@dataclasses.dataclass(frozen=True)
class ClassSet:
    """A labelled set of images.

    Attributes:
      name: of the set.
      classes: names as they go into prompts.
      templates: prompts with `{}` for the name.
      prompts: where they come from.
      test: images and their classes.
      train: the same for training a probe; empty if the set has none.
    """

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    prompts: str
    test: tuple[tuple[Image, int], ...]
    train: tuple[tuple[Image, int], ...] = ()

    def bounded(self, count: int) -> ClassSet:
        """The same classes with some images, at most `count` of the test and of the others."""

        def some(rows):
            return tuple(
                spread(
                    rows,
                    count,
                    key=lambda row: row[0].name,
                    group=lambda row: self.classes[row[1]],
                )
            )

        return dataclasses.replace(self, test=some(self.test), train=some(self.train))


def find_class_sets(data_dir: Path) -> list[ClassSet]:
    """Every labelled set of a data folder.

    Found are `NAME/{test,val}/CLASS/*` for cifar10, cifar100 and imagenet and for any folder in
    `classification/`, with `train` beside it where there is one; tars `NAME*.tar` of members
    `test/CLASS/FILE` and `train/CLASS/FILE`; and data sets that TFDS has prepared in `tfds/`.

    Raises:
      MissingData: if there is none.
      ValueError: for an empty class folder.
    """
    found: dict[str, ClassSet] = {}
    for path in _folders(data_dir):
        if (made := _from_folder(path)) is not None:
            found.setdefault(made.name, made)
    for path in sorted([*data_dir.glob("*.tar"), *data_dir.glob("classification/*.tar")]):
        name = re.split(r"[_.-]", path.stem)[0]
        known = _prompt_key(name) or path.parent.name == "classification"
        if known and name not in found and (made := _from_tar(name, path)) is not None:
            found[name] = made
    for name in _prepared(data_dir / "tfds"):
        found.setdefault(name, _from_tfds(name, data_dir / "tfds"))
    if not found:
        raise MissingData(
            "no labelled images: expected imagenet/val/CLASS/, classification/NAME/test/CLASS/, "
            f"cifar10*.tar or tfds/NAME in {data_dir}"
        )
    return list(found.values())


@functools.cache
def prompts() -> dict[str, dict[str, list[str]]]:
    """OpenAI's class names and templates by set, ImageNet's 80 templates among them."""
    file = importlib.resources.files(__package__).joinpath("zeroshot_prompts.json")
    return json.loads(file.read_text(encoding="utf-8"))["sets"]


def _prompt_key(name: str) -> str | None:
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    keys = {re.sub(r"[^a-z0-9]", "", key.lower()): key for key in prompts()}
    return _ALIASES.get(plain) or keys.get(plain)


def described(name: str, classes: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """(class names for prompts, templates, where they come from) of a set.

    A set with known prompts takes its templates. Its class names are replaced by those of the
    prompts where they are the same but for spelling, or are WordNet ids in order (ImageNet);
    others lose their underscores.
    """
    key = _prompt_key(name)
    readable = tuple(re.sub(r"[_\s]+", " ", cls).strip() for cls in classes)
    if key is None:
        return readable, PLAIN_TEMPLATES, "one plain template"
    known = prompts()[key]
    templates = tuple(known["templates"])
    source = f"OpenAI's {len(templates)} templates of {key}"
    names = known["classes"]
    if len(names) == len(classes) and all(re.fullmatch(r"n\d{8}", cls) for cls in classes):
        return tuple(names), templates, source

    def bare(text):
        return re.sub(r"[^a-z0-9]", "", text.lower())

    spelled = {bare(text): text for text in names}
    return tuple(spelled.get(bare(cls), cls) for cls in readable), templates, source


def _folders(data_dir: Path) -> Iterator[Path]:
    for name in ("imagenet", "cifar10", "cifar100"):
        if (data_dir / name).is_dir():
            yield data_dir / name
    if (data_dir / "classification").is_dir():
        yield from sorted(p for p in (data_dir / "classification").iterdir() if p.is_dir())


def _from_folder(path: Path) -> ClassSet | None:
    splits = [
        next((path / name for name in names if (path / name).is_dir()), None)
        for names in (_TEST, _TRAIN)
    ]
    if splits[0] is None:
        return None
    test, train = (class_folders(split) if split else {} for split in splits)
    images = [{c: [file_image(p) for p in found] for c, found in s.items()} for s in (test, train)]
    return _class_set(path.name, *images)


def _from_tar(name: str, path: Path) -> ClassSet | None:
    tar = Tar(path)
    test, train = (
        next(filter(None, (class_tar(tar, prefix) for prefix in prefixes)), {})
        for prefixes in (_TEST, _TRAIN)
    )
    if not test:
        return None
    images = [{c: [tar.image(n) for n in found] for c, found in s.items()} for s in (test, train)]
    return _class_set(name, *images)


def _class_set(name: str, test: dict, train: dict) -> ClassSet:
    folders = sorted(test)
    number = {folder: i for i, folder in enumerate(folders)}
    if unknown := sorted(set(train) - set(test)):
        raise ValueError(f"{name}: class {unknown[0]!r} has training images but no test images")
    classes, templates, source = described(name, folders)
    return ClassSet(
        name,
        classes,
        templates,
        source,
        tuple((image, number[c]) for c in folders for image in test[c]),
        tuple((image, number[c]) for c in sorted(train) for image in train[c]),
    )


def _prepared(folder: Path) -> list[str]:
    """Names of the data sets that TFDS has prepared in a folder."""
    if not folder.is_dir():
        return []
    return sorted({info.relative_to(folder).parts[0] for info in folder.rglob("features.json")})


def _from_tfds(name: str, folder: Path) -> ClassSet:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    with contextlib.suppress(RuntimeError):  # where TensorFlow is in use already
        tf.config.set_visible_devices([], "GPU")
    try:
        builder = tfds.builder(name, data_dir=str(folder), try_gcs=False)
        labels = builder.info.features["label"].names
        raw = {"image": tfds.decode.SkipDecoding()}
        splits = {
            part: next((s for s in names if s in builder.info.splits), None)
            for part, names in (("test", _TEST), ("train", _TRAIN))
        }
        if splits["test"] is None:
            raise ValueError(f"it has the splits {', '.join(builder.info.splits)}")
        found = {}
        for part, split in splits.items():
            rows = builder.as_dataset(split=split, decoders=raw, shuffle_files=False)
            found[part] = tuple(
                (_held(f"{name}/{split}/{i}", bytes(row["image"])), int(row["label"]))
                for i, row in enumerate(rows.as_numpy_iterator())
            ) if split else ()  # fmt: skip
    except Exception as error:  # of TFDS, which has its own for every step
        raise ValueError(
            f"{folder / name} cannot be used as labelled images ({error}); it needs the features "
            "image and label, and a split test or validation"
        ) from error
    classes, templates, source = described(name, labels)
    return ClassSet(name, classes, templates, source, found["test"], found["train"])


def _held(name: str, data: bytes) -> Image:
    """An image in memory, known by its content."""
    return Image(name, hashlib.blake2b(data, digest_size=16).hexdigest(), lambda: data)


def labels_of(rows: Sequence[tuple[Image, int]]) -> np.ndarray:
    """int64 (n,): the classes of labelled images."""
    return np.array([label for _, label in rows], np.int64)

"""Images with a class: folders, tars and TensorFlow Datasets, with class names and prompts."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ccl_jax.data.records import BadRecord
from ccl_jax.data.sources.tfds import TfdsSource
from ccl_jax.data.tf_import import import_tensorflow
from ccl_jax.evaluation.benchmarks.files import (
    MissingData,
    Tar,
    class_folders,
    class_tar,
    file_image,
)
from ccl_jax.evaluation.benchmarks.subsets import spread
from ccl_jax.evaluation.reading import in_threads
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
      problem: why the set cannot be used; it has no images then.
    """

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    prompts: str
    test: tuple[tuple[Image, int], ...]
    train: tuple[tuple[Image, int], ...] = ()
    problem: str = ""

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


def find_class_sets(data_dir: Path, *, train: bool = False) -> list[ClassSet]:
    """Every labelled set of a data folder.

    Found are `NAME/{test,val}/CLASS/*` for cifar10, cifar100 and imagenet and for any folder in
    `classification/`, with `train` beside it where there is one, or `classification/NAME/CLASS/*`;
    tars `NAME*.tar` of members `test/CLASS/FILE` and `train/CLASS/FILE`; and data sets that TFDS
    has prepared in `tfds/`.

    Args:
      data_dir: the folder.
      train: also look for training images, which may be many.

    Returns:
      The sets; one that cannot be used, such as one with an empty class folder, says why.

    Raises:
      MissingData: if there is none.
      ValueError: if not one can be used.
    """
    places: dict[str, Callable[[], ClassSet]] = {}
    for path in _folders(data_dir):
        if _labelled(path, _TEST) is not None:
            places.setdefault(path.name, functools.partial(_from_folder, path, train))
    for path in sorted([*data_dir.glob("*.tar"), *data_dir.glob("classification/*.tar")]):
        name = re.split(r"[_.-]", path.stem)[0]
        if _prompt_key(name) or path.parent.name == "classification":
            places.setdefault(name, functools.partial(_from_tar, name, path, train))
    for name, path in _prepared(data_dir / "tfds").items():
        places.setdefault(name, functools.partial(_from_tfds, name, path, train))
    if not places:
        raise MissingData(
            "no labelled images: expected imagenet/val/CLASS/, classification/NAME/test/CLASS/, "
            f"cifar10*.tar or tfds/NAME in {data_dir}"
        )
    found = [_usable(name, make) for name, make in places.items()]
    if all(data.problem for data in found):
        raise ValueError("; ".join(data.problem for data in found))
    return found


def _usable(name: str, make: Callable[[], ClassSet]) -> ClassSet:
    try:
        return make()
    except ValueError as error:
        return ClassSet(name, (), (), "", (), problem=" ".join(str(error).split()))


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


def _labelled(path: Path, splits: Sequence[str]) -> Path | None:
    """The first of the splits that has folders, as a test split without labels has none."""
    for split in splits:
        if any(entry.is_dir() for entry in _entries(path / split)):
            return path / split
    if splits == _TEST and not any((path / name).is_dir() for name in (*_TEST, *_TRAIN)):
        # No splits: its folders are the classes.
        return path if any(entry.is_dir() for entry in _entries(path)) else None
    return None


def _entries(path: Path) -> Iterator[Path]:
    return path.iterdir() if path.is_dir() else iter(())


def _from_folder(path: Path, train: bool) -> ClassSet:
    splits = [_labelled(path, _TEST), _labelled(path, _TRAIN) if train else None]
    folders = [class_folders(split) if split else {} for split in splits]
    images = [{c: [file_image(p) for p in found] for c, found in s.items()} for s in folders]
    return _class_set(path.name, *images)


def _from_tar(name: str, path: Path, train: bool) -> ClassSet:
    tar = Tar(path)
    members = [
        next(filter(None, (class_tar(tar, prefix) for prefix in prefixes)), {})
        for prefixes in (_TEST, _TRAIN if train else ())
    ]
    if not members[0]:
        raise ValueError(f"{path} has no members test/CLASS/FILE")
    images = [{c: [tar.image(n) for n in found] for c, found in s.items()} for s in members]
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


def _prepared(folder: Path) -> dict[str, Path]:
    """NAME or NAME/CONFIG -> folder of the newest version that TFDS has prepared."""

    def version(path: Path) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", path.parent.name)]

    infos = sorted(folder.glob("**/dataset_info.json"), key=version)
    found = {"/".join(path.relative_to(folder).parts[:-2]): path.parent for path in infos}
    return {name: found[name] for name in sorted(found) if name}


def _from_tfds(name: str, folder: Path, train: bool) -> ClassSet:
    import_tensorflow()
    test = _tfds_split(folder, _TEST)
    if test is None:
        raise ValueError(
            f"{folder} cannot be used as labelled images: it needs the features image and label, "
            f"and labels in one of the splits {', '.join(_TEST)}"
        )
    training = _tfds_split(folder, _TRAIN) if train else None
    classes, templates, source = described(name.partition("/")[0], test.class_names)
    rows = [_tfds_rows(folder, split) if split else () for split in (test, training)]
    return ClassSet(name, classes, templates, source, *rows)


def _tfds_split(folder: Path, splits: Sequence[str]) -> TfdsSource | None:
    """The first of the splits that has labels: some test splits are published without."""
    for split in splits:
        try:
            source = TfdsSource(folder, split=split)
            if source.class_names and source[0].extra.get("label", -1) >= 0:
                return source
        except (ValueError, BadRecord):
            continue
    return None


def _tfds_rows(folder: Path, source: TfdsSource) -> tuple[tuple[Image, int], ...]:
    """Images that are read when they are asked for, and their classes, in one pass."""
    changed = (folder / "dataset_info.json").stat().st_mtime_ns

    def row(index: int) -> tuple[Image, int]:
        image = Image(
            f"{source.name}/{index}",
            f"{folder.resolve()} {changed} {source.name} {index}",
            lambda: source[index].image,
        )
        try:
            return image, source[index].extra["label"]
        except BadRecord:
            return image, 0  # it cannot be read later either, and is counted and named then

    return tuple(in_threads(row, range(len(source)), 256))


def labels_of(rows: Sequence[tuple[Image, int]]) -> np.ndarray:
    """int64 (n,): the classes of labelled images."""
    return np.array([label for _, label in rows], np.int64)

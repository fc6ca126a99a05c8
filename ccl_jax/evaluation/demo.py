"""The demo page's answers: what models see of phrases in one image, and what they call it."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from ccl_jax.data.images import open_image, resize_squash
from ccl_jax.data.records import BadRecord
from ccl_jax.evaluation.benchmarks.class_sets import PLAIN_TEMPLATES, prompts
from ccl_jax.evaluation.classification import class_embeddings
from ccl_jax.evaluation.scoring import cosine_scores
from ccl_jax.evaluation.visualization import MAPS, Visualization, read_image, visualize

if TYPE_CHECKING:
    from ccl_jax.evaluation.embeddings import Predictor

TEMPLATES = (*PLAIN_TEMPLATES, "{article} {}", "{}")
"""Prompts to choose from, beside the named sets."""

DEFAULT_SHARPNESS = 20.0
# Sets of class embeddings that are kept for further images.
_KEPT = 8
_PROMPT_BATCH = 16
# Of sides: a strip, enlarged so that its maps can be seen, would fill the memory.
_MAX_ASPECT = 20


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
      file_bytes: of the image file.
      pixels: width x height of the image.
      phrases: to look for.
      prompts: class names times templates.
      characters: of the phrases, and of the class names.
    """

    file_bytes: int = 20 * 2**20
    pixels: int = 50_000_000
    phrases: int = 20
    prompts: int = 2_000
    characters: int = 50_000

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise ValueError(f"the limit of {name} must be at least 1; got {value}")


@dataclasses.dataclass(frozen=True)
class Label:
    """A class name: its cosine with the image, and its share among all (a softmax)."""

    name: str
    cosine: float
    share: float


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one model makes of a request.

    Attributes:
      model: its name.
      found: maps, segmentations and scores of the phrases; None without phrases.
      labels: the best first; empty without class names.
      error: what the model could not do, and why; empty if nothing.
    """

    model: str
    found: Visualization | None = None
    labels: tuple[Label, ...] = ()
    error: str = ""


class Demo:
    """Models that answer requests; one request at a time.

    Attributes:
      models: by name; they may differ in tokenizer, image size and width.
      limits: of each request.
    """

    def __init__(self, models: Mapping[str, Predictor], limits: Limits | None = None):
        """Takes at least one model."""
        if not models:
            raise ValueError("there is no model to show; give at least one")
        self.models = dict(models)
        self.limits = limits or Limits()
        self._class_emb = functools.lru_cache(_KEPT)(self._embed_classes)

    def answer(
        self,
        path: str | Path | None,
        phrases: str,
        *,
        classes: str = "",
        templates: str = TEMPLATES[0],
        kinds: Sequence[str] = (),
        sharpness: float = DEFAULT_SHARPNESS,
    ) -> list[Answer]:
        """Shows the image to every model, squashed to its square, nothing cut away.

        Args:
          path: of the image file.
          phrases: separated by semicolons or line ends.
          classes: class names, separated by line ends, semicolons, or, if there are none of these,
            commas.
          templates: a prompt with `{}` for the class name, or the name of a set (`prompts`).
          kinds: names in `visualization.MAPS`; all that a model has if empty.
          sharpness: of the attention.

        Returns:
          An answer of each model. What a model alone lacks (PACL's patch embedder) is its `error`.

        Raises:
          ValueError: neither phrases nor class names, no image or none that can be read, or more
            than the limits allow.
        """
        wanted = split_phrases(phrases, self.limits)
        names = split_classes(classes, self.limits)
        if not wanted and not names:
            raise ValueError("there is no phrase; type some, as in: a red cup; the dog")
        if unknown := [kind for kind in kinds if kind not in MAPS]:
            raise ValueError(f"there are no maps {unknown[0]!r}; choose among {', '.join(MAPS)}")
        filled = templates_of(templates) if names else ()
        if (texts := len(names) * len(filled)) > self.limits.prompts:
            raise ValueError(
                f"{len(names)} class names in {len(filled)} templates are {texts:,} texts, more "
                f"than {self.limits.prompts:,}; give fewer class names, or a single template"
            )
        image = self._read(path)
        return [
            self._answer_of(model, image, wanted, kinds, sharpness, names, filled)
            for model in self.models
        ]

    def warm_up(self) -> None:
        """Compiles every model, so that the first visitor need not wait."""
        blank = PIL.Image.new("RGB", (64, 64))
        for model, predictor in self.models.items():
            predictor.batch_size = 1
            visualize(predictor, blank, ["a cat"])
            self._labels(model, blank, ("a cat",), TEMPLATES[:1])

    def _read(self, path: str | Path | None) -> PIL.Image.Image:
        if not path:
            raise ValueError("there is no image; choose one")
        path, limits = Path(path), self.limits
        try:
            size = path.stat().st_size
            if size > limits.file_bytes:
                most = f"{limits.file_bytes / 2**20:g} MB"
                raise ValueError(
                    f"the file has {size / 2**20:.1f} MB, more than {most}; give a smaller one"
                )
            opened = open_image(path.read_bytes(), path.name, limits.pixels)
            if max(opened.size) > _MAX_ASPECT * min(opened.size):
                raise ValueError(
                    f"{path.name} has {opened.width} x {opened.height} pixels, more than "
                    f"{_MAX_ASPECT} to 1; cut out a part that is closer to a square"
                )
        except OSError as error:
            raise ValueError("the image is no longer there; choose it again") from error
        except BadRecord as error:
            fix = "give a JPEG, PNG, WebP, GIF or BMP file"
            fix = "give a smaller one" if error.reason == "image too large" else fix
            raise ValueError(f"{error}; {fix}") from error
        return read_image(path, path.name)

    def _answer_of(self, model, image, phrases, kinds, sharpness, names, templates) -> Answer:
        predictor = self.models[model]
        predictor.batch_size = 1  # there is one image, and padding would cost as much
        found, labels, error = None, (), ""
        kept = [kind for kind in kinds if kind != "pacl" or has_pacl(predictor)]
        if len(kept) < len(kinds):
            error = "the model has no patch embedder, so no PACL maps"
        try:
            if phrases and (kept or not kinds):
                found = visualize(predictor, image, phrases, kinds=kept, sharpness=sharpness)
            if names:
                labels = self._labels(model, image, names, templates)
        except ValueError as bad:
            error = str(bad)
        return Answer(model, found, labels, error)

    def _labels(self, model, image, names, templates) -> tuple[Label, ...]:
        predictor = self.models[model]
        class_emb = self._class_emb(model, tuple(names), tuple(templates))
        resample = predictor.image_options.get("resample", "bicubic")
        seen = resize_squash(image, predictor.image_size, resample=resample)[None]
        cosines = cosine_scores(class_emb, predictor.images(seen))[:, 0]
        return rank_labels(names, cosines, scale_of(predictor))

    def _embed_classes(self, model, names, templates) -> np.ndarray:
        predictor = self.models[model]
        predictor.batch_size = _PROMPT_BATCH
        try:
            return class_embeddings(predictor, names, templates)
        finally:
            predictor.batch_size = 1


def rank_labels(names: Sequence[str], cosines: np.ndarray, scale: float) -> tuple[Label, ...]:
    """Labels by falling cosine.

    Args:
      names: of n classes.
      cosines: float (n,).
      scale: of the softmax that gives the shares, the model's own exp(log_scale).

    >>> [(x.name, round(x.share, 2)) for x in rank_labels("ab", np.array([0.1, 0.2]), 10.0)]
    [('b', 0.73), ('a', 0.27)]
    """
    cosines = np.asarray(cosines, np.float64)
    weights = np.exp(scale * (cosines - cosines.max()))
    shares = weights / weights.sum()
    order = np.argsort(-cosines, kind="stable")
    return tuple(Label(names[i], float(cosines[i]), float(shares[i])) for i in order)


def has_pacl(predictor: Predictor) -> bool:
    """Whether a model has PACL's patch embedder."""
    return bool(getattr(getattr(predictor, "model", None), "patch_embedder", False))


def scale_of(predictor: Predictor) -> float:
    """The multiplier of similarities that a model has learnt."""
    return float(np.exp(np.asarray(predictor.params["log_scale"], np.float64)))


def templates_of(choice: str) -> tuple[str, ...]:
    """The templates of a set by its name (`prompts`), else the one that was typed.

    Raises:
      ValueError: a template without `{}`.
    """
    if choice in prompts():
        return tuple(prompts()[choice]["templates"])
    if "{}" not in choice:
        raise ValueError(f"the prompt {choice!r} has no {{}} for the class name")
    return (choice,)


def split_phrases(text: str, limits: Limits) -> list[str]:
    """Phrases between semicolons or line ends, each once.

    Raises:
      ValueError: more than the limits allow.
    """
    phrases = _split(text, "[;\n]", limits)
    if len(phrases) > limits.phrases:
        raise ValueError(f"{len(phrases)} phrases are more than {limits.phrases}; give fewer")
    return phrases


def split_classes(text: str, limits: Limits) -> list[str]:
    """Class names between line ends or semicolons, else between commas, each once.

    >>> split_classes("a cat, a dog", Limits()), split_classes("a cat, sleeping; a dog", Limits())
    (['a cat', 'a dog'], ['a cat, sleeping', 'a dog'])

    Raises:
      ValueError: more than the limits allow.
    """
    return _split(text, "[;\n]" if re.search("[;\n]", text.strip()) else ",", limits)


def _split(text: str, separator: str, limits: Limits) -> list[str]:
    if len(text) > limits.characters:
        raise ValueError(f"the text has over {limits.characters:,} characters; give less")
    parts = (" ".join(part.split()) for part in re.split(separator, text))
    return list(dict.fromkeys(filter(None, parts)))


def labels_of(names: Sequence[str]) -> list[str]:
    """Short names of models by their paths, which stay whole where the last parts are the same.

    >>> labels_of(["runs/a/", "hub/b"]), labels_of(["runs/a", "old/a"]), labels_of(["a", "a"])
    (['a', 'b'], ['runs/a', 'old/a'], ['a', 'a (2)'])
    """
    labels = [os.path.basename(os.path.normpath(name)) for name in names]
    if len(set(labels)) < len(labels):
        labels = list(names)
    return [
        f"{label} ({i})" if label in labels[: i - 1] else label for i, label in enumerate(labels, 1)
    ]

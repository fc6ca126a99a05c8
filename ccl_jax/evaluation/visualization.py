"""One image and some phrases: where a model sees each of them, as pictures on disk."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import PIL.Image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import ImageOps

from ccl_jax.data.images import MAX_PIXELS, RESAMPLE, load_rgb, open_image, resize_squash
from ccl_jax.data.records import BadRecord
from ccl_jax.evaluation.heatmaps import attention, draw_cell, overlay, phrase_maps, short
from ccl_jax.evaluation.reading import embed_texts
from ccl_jax.evaluation.scoring import cosine_scores
from ccl_jax.evaluation.segmentation import IGNORE, segment

if TYPE_CHECKING:
    from ccl_jax.evaluation.embeddings import Predictor

MAPS = ("attention", "similarity", "pacl")
"""Kinds of maps: XAC's attention and the cosines behind it, and cosines of PACL's tokens."""

MAX_PHRASES = 50
_MAX_SIDE = 1024
_CELL_INCHES = 2.6
_SHEET_COLUMNS = 6
_ORIENTATION = 0x0112  # EXIF


@dataclasses.dataclass(frozen=True)
class Visualization:
    """What a model sees of phrases in an image.

    Attributes:
      image: uint8 (h, w, 3), upright.
      phrases: as given.
      maps: kind -> f32 (phrases, rows, cols).
      segments: kind -> int64 (h, w), the phrase of each pixel, `IGNORE` where two are even; of
        two phrases or more.
      scores: f32 (phrases,) cosines of the whole image with the phrases.
    """

    image: np.ndarray
    phrases: tuple[str, ...]
    maps: dict[str, np.ndarray]
    segments: dict[str, np.ndarray]
    scores: np.ndarray


def split_phrases(text: str) -> list[str]:
    """Phrases between semicolons, each once.

    Raises:
      ValueError: none, or too many.
    """
    phrases = list(dict.fromkeys(filter(None, (" ".join(p.split()) for p in text.split(";")))))
    if not phrases:
        raise ValueError('there is no phrase; give some, as in --phrases "a red cup; the dog"')
    if len(phrases) > MAX_PHRASES:
        raise ValueError(f"{len(phrases)} phrases are more than {MAX_PHRASES}; give fewer at once")
    return phrases


def read_image(path: str | os.PathLike, name: str = "") -> PIL.Image.Image:
    """Reads an image file upright (its EXIF orientation applied), at most 1,024 pixels a side.

    Args:
      path: of the file.
      name: for messages; the path if empty.

    Raises:
      ValueError: there is no such file, or it is no image.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror}); give an image file") from error
    try:
        opened = open_image(data, name or str(path), MAX_PIXELS)
        image = load_rgb(opened, name or str(path))
        # Of the opened image, and after its pixels: damage is told as such, and a PNG has it last.
        orientation = opened.getexif().get(_ORIENTATION, 1)
    except BadRecord as error:
        raise ValueError(f"{error}; give a JPEG, PNG, WebP, GIF or BMP file") from error
    image.getexif()[_ORIENTATION] = orientation
    image = ImageOps.exif_transpose(image)
    image.thumbnail((_MAX_SIDE, _MAX_SIDE), RESAMPLE["lanczos"])
    return image


def visualize(
    predictor: Predictor,
    image: PIL.Image.Image,
    phrases: Sequence[str],
    *,
    kinds: Sequence[str] = (),
    sharpness: float = 1.0,
) -> Visualization:
    """Maps of phrases over an image, which the model sees squashed to its square, nothing cut away.

    Args:
      predictor: the model.
      image: RGB.
      phrases: at least one.
      kinds: names in `MAPS`; all that the model has if empty.
      sharpness: of the attention, as in `losses.xac_loss`.

    Raises:
      ValueError: no phrase, an unknown kind, "pacl" of a model without a patch embedder, or a
        sharpness that is not positive.
    """
    if not phrases:
        raise ValueError("there is no phrase to look for; give at least one")
    if not 0 < sharpness < float("inf"):
        raise ValueError(f"the sharpness must be a positive number; got {sharpness}")
    has_pacl = bool(getattr(getattr(predictor, "model", None), "patch_embedder", False))
    kinds = list(dict.fromkeys(kinds)) or [k for k in MAPS if k != "pacl" or has_pacl]
    unknown = [kind for kind in kinds if kind not in MAPS]
    if unknown:
        raise ValueError(f"there are no maps {unknown[0]!r}; choose among {', '.join(MAPS)}")
    if "pacl" in kinds and not has_pacl:
        raise ValueError(
            "the model has no patch embedder, so no PACL maps; choose attention or similarity, or "
            "a model trained with config.model.patch_embedder = True"
        )
    resample = predictor.image_options.get("resample", "bicubic")
    seen = resize_squash(image, predictor.image_size, resample=resample)[None]
    pixels = np.asarray(image)
    cosines, maps, segments = {}, {}, {}
    for kind in kinds:
        tokens = "patch_emb" if kind == "pacl" else "image_tokens"
        if tokens not in cosines:
            found = predictor.image_tokens(seen, tokens)[0]
            cosines[tokens] = phrase_maps(predictor, found, phrases)
        values = cosines[tokens]
        maps[kind] = attention(values, sharpness) if kind == "attention" else values
        # Attention compares places for one phrase; phrases are compared by their cosines.
        if len(phrases) > 1 and kind != "attention":
            segments[kind] = segment(np.moveaxis(values, 0, -1), pixels.shape[:2])
    if len(phrases) > 1 and not segments:
        values = np.moveaxis(cosines["image_tokens"], 0, -1)
        segments["similarity"] = segment(values, pixels.shape[:2])
    scores = cosine_scores(embed_texts(predictor, phrases), predictor.images(seen))[:, 0]
    return Visualization(pixels, tuple(phrases), maps, segments, scores)


def colours(count: int) -> np.ndarray:
    """f32 (count, 3) in [0, 1], as different as can be."""
    if count <= 10:
        return np.array(matplotlib.colormaps["tab10"].colors[:count], np.float32)
    places = np.linspace(0, 1, count, endpoint=False)
    return matplotlib.colormaps["gist_rainbow"](places)[:, :3].astype(np.float32)


def paint_segments(image: np.ndarray, segments: np.ndarray, count: int) -> np.ndarray:
    """Lays one colour for each of `count` phrases over a grey image: uint8 (h, w, 3)."""
    grey = image.astype(np.float32).mean(axis=-1, keepdims=True).repeat(3, axis=-1) / 255
    paint = np.where((segments == IGNORE)[..., None], grey, colours(count)[np.maximum(segments, 0)])
    return np.uint8(255 * (0.45 * grey + 0.55 * paint) + 0.5)


def write_pictures(found: Visualization, folder: str | os.PathLike) -> list[str]:
    """Writes overlays, segmentations, a contact sheet, and the maps themselves.

    Args:
      found: of `visualize`.
      folder: made if missing. It gets `KIND_NUMBER_PHRASE.png` for each map,
        `segmentation_KIND.png` with a legend, `contact_sheet.png`, and `maps.npz` with `phrases`,
        `scores` and the maps by kind.

    Returns:
      Names of the files.

    Raises:
      ValueError: if the folder cannot be written to.
    """
    path = Path(folder)
    names = []
    try:
        path.mkdir(parents=True, exist_ok=True)
        for kind, maps in found.maps.items():
            for number, (phrase, values) in enumerate(zip(found.phrases, maps, strict=True), 1):
                drawn = np.uint8(255 * overlay(found.image, values) + 0.5)
                names.append(f"{kind}_{number}_{_file_name(phrase)}.png")
                PIL.Image.fromarray(drawn).save(path / names[-1])
        for kind, segments in found.segments.items():
            names.append(f"segmentation_{kind}.png")
            _segmentation_figure(found, segments).savefig(path / names[-1], format="png")
        names.append("contact_sheet.png")
        _contact_sheet(found).savefig(path / names[-1], format="png")
        names.append("maps.npz")
        np.savez(path / names[-1], phrases=found.phrases, scores=found.scores, **found.maps)
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error}); give another --output") from error
    return names


def _file_name(phrase: str) -> str:
    """Letters and digits of any script; all else becomes a hyphen."""
    return re.sub(r"[\W_]+", "-", phrase.lower())[:40].strip("-") or "phrase"


def _segmentation_figure(found: Visualization, segments: np.ndarray) -> Figure:
    height, width = found.image.shape[:2]
    rows = len(found.phrases)
    inches = 6.0
    legend = 0.3 + 0.24 * rows
    figure = Figure(figsize=(inches, inches * height / width + legend), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_axes(
        (0, legend / figure.get_figheight(), 1, inches * height / width / figure.get_figheight())
    )
    axes.imshow(paint_segments(found.image, segments, rows))
    axes.set_axis_off()
    figure.legend(handles=_handles(found, segments), loc="lower left", frameon=False, fontsize=9)
    return figure


def _handles(found: Visualization, segments: np.ndarray) -> list[Patch]:
    """A patch of colour for each phrase, with its share of the image."""
    shares = [float(np.mean(segments == k)) for k in range(len(found.phrases))]
    handles = [
        Patch(color=colour, label=_plain(f"{short(phrase, 48, 1)} ({100 * share:.0f} %)"))
        for colour, phrase, share in zip(
            colours(len(found.phrases)), found.phrases, shares, strict=True
        )
    ]
    return handles


def _plain(text: str) -> str:
    """A legend reads $...$ as mathematics, and hides what begins with an underscore."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _contact_sheet(found: Visualization) -> Figure:
    """Rows of at most six cells: the image, then each kind's maps and its segmentation."""
    blocks: list[list[tuple[np.ndarray, str]]] = []
    for kind in dict.fromkeys([*found.maps, *found.segments]):
        cells = [
            (
                overlay(found.image, values),
                f"{short(phrase, 30, 2)}\n[{kind}, max {values.max():.3g}]",
            )
            for phrase, values in zip(found.phrases, found.maps.get(kind, ()), strict=False)
        ]
        if kind in found.segments:
            painted = paint_segments(found.image, found.segments[kind], len(found.phrases))
            cells.append((painted, f"argmax over phrases\n[{kind}]"))
        blocks.append([(found.image, "image"), *cells])
    columns = min(_SHEET_COLUMNS, max(map(len, blocks)))
    rows = [block[i : i + columns] for block in blocks for i in range(0, len(block), columns)]
    aspect = found.image.shape[0] / found.image.shape[1]
    title, legend = 0.62, 0.4 + 0.24 * -(-len(found.phrases) // 2)
    high = _CELL_INCHES * aspect + title
    height = len(rows) * high + legend
    figure = Figure(figsize=(columns * _CELL_INCHES, height), dpi=110)
    FigureCanvasAgg(figure)
    for r, row in enumerate(rows):
        for c, (picture, text) in enumerate(row):
            top = 1 - (r * high + title) / height
            box = (
                (c + 0.02) / columns,
                top - _CELL_INCHES * aspect / height,
                0.96 / columns,
                _CELL_INCHES * aspect / height,
            )
            draw_cell(figure.add_axes(box), picture, text, size=8)
    segments = next(iter(found.segments.values()), None)
    if segments is not None:
        handles = _handles(found, segments)
        figure.legend(handles=handles, loc="lower left", ncols=2, frameon=False, fontsize=8)
    return figure

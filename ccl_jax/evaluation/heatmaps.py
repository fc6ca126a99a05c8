"""Heat maps: where in an image each model sees each phrase."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ccl_jax.data.concepts import extract_phrases
from ccl_jax.data.images import transform_image
from ccl_jax.data.records import Record
from ccl_jax.evaluation.reading import embed_texts
from ccl_jax.evaluation.scoring import cosine_scores
from ccl_jax.evaluation.segmentation import bilinear_upsample

if TYPE_CHECKING:
    from ccl_jax.evaluation.embeddings import Predictor

_CELL_INCHES = 2.2
_TITLE_INCHES = 0.62
_COLUMN_CHARS = 30
# Below this side an image is enlarged, so that its map is drawn smoothly.
_MIN_PIXELS = 224


def overlay(image: np.ndarray, similarity: np.ndarray, *, opacity: float = 0.8) -> np.ndarray:
    """Blends a patch similarity map over an image.

    The map is stretched to its own minimum and maximum: colours compare places within one
    map, not maps with each other. A constant map is drawn as all-lowest.

    Args:
      image: uint8 (h, w, 3).
      similarity: float (rows, cols).
      opacity: share of the map in the blend where it is highest, in [0, 1]; it falls off
        linearly to 0 where the map is lowest, so that the image stays visible there.

    Returns:
      f32 (H, W, 3) in [0, 1]: the image's size, times a whole number if it is small.
    """
    times = -(-_MIN_PIXELS // min(image.shape[:2]))
    image = image.repeat(times, axis=0).repeat(times, axis=1)
    heat = bilinear_upsample(similarity, image.shape[:2])
    heat = heat - heat.min()
    # Not less than the rounding of a cosine, which is no structure to draw.
    heat = heat / max(float(heat.max()), 1e-6)
    colours = matplotlib.colormaps["turbo"](heat)[..., :3].astype(np.float32)
    # The scene in grey below the map, so that every hue one sees belongs to the map.
    grey = image.astype(np.float32).mean(axis=-1, keepdims=True) / 255
    share = opacity * heat[..., None]
    return (1 - share) * grey + share * colours


def attention(scores: np.ndarray, sharpness: float = 1.0) -> np.ndarray:
    """XAC's attention of each phrase over the patches: softmax(sharpness * score).

    Pham et al., "No Hard Negatives Required" (CVPR 2026), cross-modal attention pooling; the
    weights are those of `losses.pooled_similarity`.

    Args:
      scores: float (phrases, ...), of every patch.
      sharpness: 1 is nearly flat for cosines; the larger, the more the best patches stand out.

    Returns:
      f32, of the same shape; each phrase's weights sum to 1.
    """
    flat = sharpness * np.asarray(scores, np.float64).reshape(len(scores), -1)
    weights = np.exp(flat - flat.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights.reshape(np.shape(scores)).astype(np.float32)


def phrase_maps(predictor: Predictor, tokens: np.ndarray, phrases: Sequence[str]) -> np.ndarray:
    """Cosines of an image's patches with phrases.

    Args:
      predictor: embeds the phrases.
      tokens: float (l, d), of one image from `Predictor.image_tokens`.
      phrases: at least one.

    Returns:
      f32 (phrases, rows, cols).
    """
    scores = cosine_scores(embed_texts(predictor, phrases), tokens)
    return scores.reshape(len(phrases), *predictor.grid)


def phrases_of(record: Record, count: int) -> list[str]:
    """Up to `count` distinct phrases of the first caption to draw, else of objects.

    Without either they are extracted from the caption, or the caption is the phrase.
    """
    caption = record.captions[0]
    given = record.phrases[0] if record.phrases else ()
    found = given or record.extra.get("object_phrases") or extract_phrases(caption) or (caption,)
    return list(dict.fromkeys(found))[:count]


def short(text: str, width: int, lines: int) -> str:
    """Wraps text, and cuts it with an ellipsis after `lines` lines."""
    return "\n".join(
        textwrap.wrap(text, width, max_lines=lines, placeholder=" …", break_long_words=True)
    )


def _maps(predictor: Predictor, record: Record, phrases: Sequence[str]):
    """The image as a predictor sees it, and its similarity maps f32 (phrases, rows, cols)."""
    image = transform_image(record.image, record.key, **predictor.image_options)
    return image, phrase_maps(predictor, predictor.image_tokens(image[None])[0], phrases)


def draw_cell(axes, picture: np.ndarray, title: str, *, size: float) -> None:
    """A picture in axes without ticks, its title left above it as it is written."""
    axes.imshow(picture, interpolation="nearest")
    axes.set_title(title, fontsize=size, pad=4, loc="left", parse_math=False)
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])


def draw_heatmaps(
    predictors: Mapping[str, Predictor],
    records: Sequence[Record],
    path: str | os.PathLike[str],
    *,
    max_phrases: int = 3,
) -> None:
    """Writes a PNG: one row per image; the image, then a map per phrase and model.

    Args:
      predictors: {model name: model}; each sees the image in its own size and transform.
      records: the images, with phrases (of the first caption), else `extra["object_phrases"]`,
        else the caption itself as the only phrase.
      path: the PNG file; its folder is created.
      max_phrases: maps per model and image, at most.

    Raises:
      ValueError: no model or no record.
      BadRecord: an image that cannot be decoded.
    """
    if not predictors or not records:
        raise ValueError("draw_heatmaps needs at least one predictor and one record")
    phrases = [phrases_of(record, max_phrases) for record in records]
    columns = 1 + max(map(len, phrases)) * len(predictors)
    width, height = columns * _CELL_INCHES, len(records) * (_CELL_INCHES + _TITLE_INCHES)
    figure = Figure(figsize=(width, height), dpi=110)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(records), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, record, names in zip(grid, records, phrases, strict=True):
        for m, (model, predictor) in enumerate(predictors.items()):
            image, maps = _maps(predictor, record, names)
            if m == 0:
                draw_cell(row[0], image, short(record.captions[0], _COLUMN_CHARS + 4, 3), size=7.5)
            for p, (phrase, similarity) in enumerate(zip(names, maps, strict=True)):
                title = f"{short(phrase, _COLUMN_CHARS, 2)}\n[{short(model, 26, 1)}]"
                axes = row[1 + p * len(predictors) + m]
                draw_cell(axes, overlay(image, similarity), title, size=8)
    row_inches = _CELL_INCHES + _TITLE_INCHES
    figure.subplots_adjust(
        left=0.04 / columns,
        right=1 - 0.04 / columns,
        bottom=0.04 / len(records),
        top=1 - _TITLE_INCHES / height,
        wspace=0.06,
        hspace=_TITLE_INCHES / (row_inches - _TITLE_INCHES),
    )
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    figure.savefig(path, format="png")

"""Answers of the demo page as HTML that needs nothing from elsewhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
import PIL.Image

from ccl_jax.evaluation.demo import Answer, Label
from ccl_jax.evaluation.heatmaps import overlay
from ccl_jax.evaluation.visualization import Visualization, colours, paint_segments

TITLES = {
    "attention": "Attention (XAC)",
    "similarity": "Similarity of patches",
    "pacl": "Similarity of PACL's patches",
}

_SIDE = 480  # of pictures, in pixels
_MIN_SIDE = 224  # below it an image is enlarged, so that maps are drawn smoothly
_SHOWN_LABELS = 20
_NOTE = (
    "Each map's colours run from its own lowest value (grey) to its highest (red): they compare "
    "places within one map. The model sees the whole image squashed to its square."
)

# Colours are those of Gradio's theme, light or dark; the classes are ours alone.
CSS = """
.ccl-models { display: grid; gap: 1.2rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
.ccl-models > section { min-width: 0; }
.ccl-models h2 { font-size: 1.15rem; font-weight: 600; margin: 0 0 .3rem; overflow-wrap: anywhere; }
.ccl-models h3 { font-size: 1rem; font-weight: 600; margin: 1rem 0 .4rem; }
.ccl-pictures { display: grid; gap: .6rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 8.2rem), 1fr)); }
.ccl-pictures.ccl-wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr)); }
.ccl-pictures figure { margin: 0; min-width: 0; }
.ccl-pictures img { width: 100%; height: auto; display: block; border-radius: 4px; }
.ccl-pictures figcaption { font-size: .85rem; overflow-wrap: anywhere; margin-top: .2rem; }
.ccl-pictures figcaption .ccl-soft { display: block; }
.ccl-models + .ccl-soft { margin-top: 1rem; }
.ccl-soft { opacity: .72; font-size: .85rem; }
.ccl-legend { list-style: none; margin: 0; padding: 0; font-size: .9rem; }
.ccl-legend li { overflow-wrap: anywhere; margin: 0; }
.ccl-legend svg { width: .9rem; height: .9rem; display: inline-block; vertical-align: -.1rem;
  margin-right: .4rem; }
.ccl-models table { width: 100%; border-collapse: collapse;
  font-variant-numeric: tabular-nums; }
.ccl-models table, .ccl-models table tr { border: 0 !important; }
.ccl-models table th, .ccl-models table td { padding: .25rem .4rem; text-align: right;
  vertical-align: top; border: 0; border-bottom: 1px solid var(--border-color-primary);
  white-space: nowrap; }
.ccl-models table th:first-child, .ccl-models table td:first-child { text-align: left;
  white-space: normal; overflow-wrap: anywhere; padding-left: 0; width: 99%; }
.ccl-models td meter { width: 4.5rem; height: .8rem; vertical-align: middle; }
.ccl-error { border: 1px solid var(--error-border-color); background: var(--error-background-fill);
  color: var(--error-text-color); border-radius: 6px; padding: .6rem .8rem; margin: .2rem 0;
  overflow-wrap: anywhere; }
"""


def answers_html(answers: Sequence[Answer]) -> str:
    """The models' answers side by side, one below the other in a narrow window."""
    note = ""
    if any(answer.found is not None for answer in answers):
        note = f'<p class="ccl-soft">{_NOTE}</p>'
    return f'<div class="ccl-models">{"".join(map(_section, answers))}</div>{note}'


def error_html(message: str) -> str:
    """One line that says what was wrong with the request."""
    return f'<p class="ccl-error" role="alert">{html.escape(" ".join(message.split()))}</p>'


def _section(answer: Answer) -> str:
    parts = [f"<h2>{html.escape(answer.model)}</h2>"]
    if answer.error:
        parts.append(error_html(answer.error))
    if answer.found is not None:
        parts.append(_score_table(answer.found))
    if answer.labels:
        parts.append(_label_table(answer.labels))
    if answer.found is not None:
        parts.extend(_pictures(answer.found))
    return f'<section data-model="{html.escape(answer.model)}">{"".join(parts)}</section>'


def _score_table(found: Visualization) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(phrase)}</td><td>{score:+.3f}</td></tr>"
        for phrase, score in zip(found.phrases, found.scores, strict=True)
    )
    return (
        '<h3>Phrases and the whole image</h3><table class="ccl-scores"><thead><tr>'
        f"<th>phrase</th><th>cosine</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _label_table(labels: Sequence[Label]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(label.name)}</td><td>{label.cosine:+.3f}</td>"
        f'<td><meter value="{label.share:.4f}"></meter> {100 * label.share:.1f} %</td></tr>'
        for label in labels[:_SHOWN_LABELS]
    )
    rest = len(labels) - _SHOWN_LABELS
    more = f'<p class="ccl-soft">and {rest:,} more below them</p>' if rest > 0 else ""
    return (
        '<h3>Zero-shot labels</h3><table class="ccl-labels"><thead><tr><th>class</th>'
        f"<th>cosine</th><th>softmax</th></tr></thead><tbody>{rows}</tbody></table>{more}"
    )


def _pictures(found: Visualization) -> list[str]:
    image = PIL.Image.fromarray(found.image)
    image.thumbnail((_SIDE, _SIDE))
    times = -(-_MIN_SIDE // min(image.size))
    small = np.asarray(image).repeat(times, axis=0).repeat(times, axis=1)
    parts = []
    for kind in dict.fromkeys([*found.maps, *found.segments]):
        figures = [
            _figure(
                np.uint8(255 * overlay(small, values) + 0.5),
                phrase,
                f"{TITLES[kind]}: {phrase}",
                f"{values.min():.3g} to {values.max():.3g}",
            )
            for phrase, values in zip(found.phrases, found.maps.get(kind, ()), strict=False)
        ]
        if figures:
            parts.append(
                f'<h3>{TITLES[kind]}</h3><div class="ccl-pictures" data-kind="{kind}">'
                f"{''.join(figures)}</div>"
            )
        if kind in found.segments:
            parts.append(_segmentation(small, found, kind))
    return parts


def _segmentation(small: np.ndarray, found: Visualization, kind: str) -> str:
    segments = found.segments[kind]
    # The nearest pixel's phrase: numbers of phrases cannot be averaged.
    rows, columns = (
        ((np.arange(to) + 0.5) * of / to).astype(int)
        for to, of in zip(small.shape[:2], segments.shape, strict=True)
    )
    painted = paint_segments(small, segments[np.ix_(rows, columns)], len(found.phrases))
    title = f"Segmentation: the most similar phrase ({TITLES[kind][0].lower()}{TITLES[kind][1:]})"
    items = "".join(
        f'<li><svg viewBox="0 0 1 1" aria-hidden="true"><rect width="1" height="1" '
        f'fill="{_hex(colour)}"/></svg>{html.escape(phrase)} '
        f'<span class="ccl-soft">{100 * np.mean(segments == number):.0f} %</span></li>'
        for number, (colour, phrase) in enumerate(
            zip(colours(len(found.phrases)), found.phrases, strict=True)
        )
    )
    return (
        f'<h3>{title}</h3><div class="ccl-pictures ccl-wide" data-kind="segmentation_{kind}">'
        f'{_figure(painted, "", title, "")}<ul class="ccl-legend">{items}</ul></div>'
    )


def _figure(pixels: np.ndarray, caption: str, description: str, note: str) -> str:
    height, width = pixels.shape[:2]
    text = f'{html.escape(caption)} <span class="ccl-soft">{note}</span>' if caption else ""
    return (
        f'<figure><img src="{_data_url(pixels)}" width="{width}" height="{height}" '
        f'alt="{html.escape(description)}">'
        f"{f'<figcaption>{text}</figcaption>' if text else ''}</figure>"
    )


def _hex(colour: np.ndarray) -> str:
    return "#" + "".join(f"{round(255 * float(part)):02x}" for part in colour)


def _data_url(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

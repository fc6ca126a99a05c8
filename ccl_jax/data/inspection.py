"""What a training pipeline gives, in numbers and in a picture, before a run is spent on it."""

import collections
import io
import os
import textwrap
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ccl_jax.data.pipeline import Sample, TrainingBatches
from ccl_jax.data.text import Tokenizer

# Longer texts than any tower reads; where lengths in tokens end.
_LONGEST = 512
_CELL_INCHES = 2.6
_LINE_INCHES = 0.135
_LINE_CHARS = 44
_CAPTION_LINES = 5
_PHRASE_LINES = 8
_COLUMNS = 4

Findings = dict[str, dict[str, Any]]


def inspect(batches: TrainingBatches, steps: int = 8) -> tuple[Findings, list[Sample]]:
    """Reads the first batches and counts.

    Args:
      batches: a stream that nothing was read from yet.
      steps: batches to read.

    Returns:
      {section: {what: number or text}}, and the samples of the first batch.

    Raises:
      ValueError: if `steps` is not positive, or too many records are unusable.
    """
    if steps < 1:
        raise ValueError(f"{steps} batches to inspect; give at least 1")
    options, source = batches.options, batches.source
    shapes, speed = _run(batches, steps)
    by_step = [batches.samples(step) for step in range(steps)]
    samples = [sample for step in by_step for sample in step]
    found: Findings = {
        "source": {
            "name": source.name,
            "records": len(source),
            "batches an epoch": round(len(source) / options.batch_size, 2),
            **dict(getattr(source, "counts", None) or {}),
        },
        "batch": shapes,
        "images": _about_images(samples, options.image_size),
        "captions": _about_captions(samples, batches.tokenizer, options.text_length),
    }
    if options.group_phrases:
        found["phrases"] = _about_phrases(by_step, batches.tokenizer, options)
    found["skipped records"] = batches.skipped or {"none": 0}
    found["throughput"] = speed
    return found, by_step[0]


def describe(found: Findings) -> str:
    """The findings as lines of text, a paragraph for each section."""
    width = max(len(name) for section in found.values() for name in section)
    lines = []
    for title, section in found.items():
        lines += [title] + [
            f"  {name:<{width}}  {_shown(value)}" for name, value in section.items()
        ]
        lines.append("")
    return "\n".join(lines).rstrip()


def draw_samples(samples: Sequence[Sample], path: str | os.PathLike[str]) -> None:
    """Writes a PNG: each image as the model gets it, its caption, and its phrases.

    Phrases in the batch are blue; those that found no room are grey and in brackets.

    Args:
      samples: at least one.
      path: the PNG file; its folder is created.
    """
    # Slow to import, and needed for nothing else.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(samples) // _COLUMNS)
    texts = [_lines(sample) for sample in samples]
    heights = [
        _CELL_INCHES + _LINE_INCHES * (1 + max(map(len, texts[row * _COLUMNS :][:_COLUMNS])))
        for row in range(rows)
    ]
    width, height = _COLUMNS * (_CELL_INCHES + 0.15), sum(heights)
    figure = Figure(figsize=(width, height), dpi=110)
    FigureCanvasAgg(figure)
    for number, (sample, lines) in enumerate(zip(samples, texts, strict=True)):
        row, column = divmod(number, _COLUMNS)
        top = height - sum(heights[:row]) - 0.05
        left = column * (_CELL_INCHES + 0.15) + 0.075
        axes = figure.add_axes(
            (
                left / width,
                (top - _CELL_INCHES) / height,
                _CELL_INCHES / width,
                _CELL_INCHES / height,
            )
        )
        axes.imshow(sample.image, interpolation="nearest")
        axes.set_axis_off()
        for place, (colour, line) in enumerate(lines):
            down = top - _CELL_INCHES - 0.04 - place * _LINE_INCHES
            figure.text(
                left / width,
                down / height,
                line,
                fontsize=7.5,
                color=colour,
                va="top",
                parse_math=False,
            )
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with warnings.catch_warnings():
        # Captions may have letters that the font has not: boxes are drawn for them.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(path, format="png")


def _run(batches: TrainingBatches, steps: int) -> tuple[dict[str, str], dict[str, Any]]:
    """Shapes of a batch, and how fast batches come."""
    clocks = [(time.perf_counter(), time.process_time())]
    for batch in batches.batches(0, steps):  # noqa: B007, the last is looked at
        clocks.append((time.perf_counter(), time.process_time()))
    shapes = {name: f"{value.shape} {value.dtype}" for name, value in batch.items()}
    images = len(batch["sample_id"])
    speed = {
        "threads": batches.options.threads,
        "seconds to the first batch": round(clocks[1][0] - clocks[0][0], 2),
    }
    wall, busy = np.subtract(clocks[-1], clocks[0])
    speed["images a second"] = round(steps * images / wall)
    speed["images a second of one core's time"] = round(steps * images / max(busy, 1e-9))
    return shapes, speed


def _about_images(samples: Sequence[Sample], size: int) -> dict[str, Any]:
    opened = [Image.open(io.BytesIO(sample.record.image)) for sample in samples]
    short = [min(image.size) for image in opened]
    formats = collections.Counter(image.format for image in opened)
    return {
        "looked at": len(samples),
        "width": _spread(image.width for image in opened),
        "height": _spread(image.height for image in opened),
        "kB": _spread(round(len(sample.record.image) / 1e3, 1) for sample in samples),
        "formats": ", ".join(f"{name} x {count}" for name, count in formats.most_common()),
        f"short side under {size}": _share(side < size for side in short),
    }


def _about_captions(samples, tokenizer: Tokenizer, length: int) -> dict[str, Any]:
    captions = [caption for sample in samples for caption in sample.record.captions]
    tokens = _token_counts(tokenizer, captions)
    return {
        "an image": _spread(len(sample.record.captions) for sample in samples),
        "tokens, with start and end": _spread(tokens),
        f"cut at {length} tokens": _share(count > length for count in tokens),
    }


def _about_phrases(by_step, tokenizer: Tokenizer, options) -> dict[str, Any]:
    samples = [sample for step in by_step for sample in step]
    found = [len(sample.phrases) + len(sample.dropped) for sample in samples]
    dropped = sum(len(sample.dropped) for sample in samples)
    kept = [phrase for sample in samples for phrase in sample.phrases]
    tokens = _token_counts(tokenizer, kept)
    room = len(samples) * options.group_phrases / options.phrase_group
    repeated = []
    for step in by_step:
        counts = collections.Counter(phrase for sample in step for phrase in sample.phrases)
        repeated.append(sum(count - 1 for count in counts.values()))
    common = collections.Counter(kept).most_common(5)
    return {
        "an image": _spread(found),
        "an image, mean": round(sum(found) / len(found), 2),
        "images whose caption is the phrase": _share(
            [*sample.phrases, *sample.dropped] == [sample.caption] for sample in samples
        ),
        "room in the batch used": f"{len(kept) / room:.1%}",
        "dropped for want of room": f"{dropped / max(sum(found), 1):.1%}",
        "images that lose one": _share(bool(sample.dropped) for sample in samples),
        f"repeats in a batch of {len(by_step[0])} images": _spread(repeated),
        "most frequent": ", ".join(f"{text} x {count}" for text, count in common),
        "tokens, with start and end": _spread(tokens),
        f"cut at {options.phrase_length} tokens": _share(
            count > options.phrase_length for count in tokens
        ),
    }


def _token_counts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    ids = tokenizer(texts, _LONGEST)
    return (1 + np.argmax(ids == tokenizer.eot_id, axis=1)).tolist() if len(texts) else []


def _spread(values: Iterable[float]) -> dict[str, float]:
    values = np.array(list(values) or [0])
    low, middle, high, top = np.quantile(values, (0, 0.5, 0.95, 1), method="nearest").tolist()
    return {"least": low, "median": middle, "95 %": high, "most": top}


def _share(flags: Iterable[bool]) -> str:
    return f"{np.mean(list(flags)):.1%}"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _lines(sample: Sample) -> list[tuple[str, str]]:
    """(colour, text) of the lines below an image."""
    caption = f"{sample.record.sample_id}: {sample.caption}"
    wrapped = textwrap.wrap(caption, _LINE_CHARS, max_lines=_CAPTION_LINES, placeholder=" …")
    phrases = [("tab:blue", f"·  {_cut(phrase)}") for phrase in sample.phrases]
    phrases += [("grey", f"   ({_cut(phrase)})") for phrase in sample.dropped]
    if len(phrases) > _PHRASE_LINES:
        more = len(phrases) - _PHRASE_LINES + 1
        phrases = [*phrases[: _PHRASE_LINES - 1], ("grey", f"   and {more} more")]
    return [("black", line) for line in wrapped] + phrases


def _cut(phrase: str) -> str:
    return phrase if len(phrase) < _LINE_CHARS - 4 else phrase[: _LINE_CHARS - 6] + " …"

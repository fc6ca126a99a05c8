"""A source made of a list and a predictor that knows only colours."""

import io
import types

import numpy as np
import pytest
from PIL import Image

from ccl_jax.data.records import BadRecord, Record

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def _unit(vectors):
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(norm == 0, 1, norm)).astype(np.float32)


class ListSource:
    """Records from a list; a None in the list is a record that cannot be read."""

    def __init__(self, records, class_names=None):
        self.name = "listed"
        self._records = records
        if class_names is not None:
            self.class_names = class_names

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        record = self._records[index]
        if record is None:
            raise BadRecord(f"bad-{index}", "truncated")
        return record


class ColourPredictor:
    """Embeds an image by its mean colour and a text by the colours it names (width 3)."""

    image_size = 32
    grid = (4, 4)

    def __init__(self, transform="squash"):
        self.transform = transform
        self.image_options = {"size": self.image_size, "transform": transform}
        self.seen_texts = []

    def images(self, images):
        return _unit(images.mean(axis=(1, 2)))

    def image_tokens(self, images, kind=None):
        n, rows, cols = len(images), *self.grid
        patches = images.reshape(n, rows, 32 // rows, cols, 32 // cols, 3).mean(axis=(2, 4))
        return _unit(patches.reshape(n, rows * cols, 3))

    def texts(self, texts):
        self.seen_texts.extend(texts)
        named = [sum(np.array(COLOURS[w]) for w in t.split() if w in COLOURS) for t in texts]
        return _unit(np.array([np.zeros(3) if np.isscalar(v) else v for v in named]))


class ConstantPredictor(ColourPredictor):
    """The same embedding for everything."""

    def _ones(self, *shape):
        return _unit(np.ones((*shape, 37)))

    def images(self, images):
        return self._ones(len(images))

    def image_tokens(self, images, kind=None):
        return self._ones(len(images), 16)

    def texts(self, texts):
        return self._ones(len(texts))


def _png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _canvas(regions, size=(32, 32)):
    """(pixels, mask) with a rectangle (colour, top, left, bottom, right) per object."""
    pixels, mask = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    for k, (colour, top, left, bottom, right) in enumerate(regions, start=1):
        pixels[top:bottom, left:right] = COLOURS[colour]
        mask[top:bottom, left:right] = k
    return pixels, mask


def _record(index, regions, captions=("a scene",), size=(32, 32), **extra):
    pixels, mask = _canvas(regions, size)
    return Record(
        sample_id=index,
        key=f"record-{index}",
        image=_png(pixels),
        captions=tuple(captions),
        extra={"mask": mask, **extra},
    )


def _plain(index, colour, **options):
    """An image of one colour, 32 x 32."""
    return _record(index, [(colour, 0, 0, 32, 32)], **options)


@pytest.fixture
def fake():
    """Everything above, as attributes."""
    return types.SimpleNamespace(
        Source=ListSource,
        Predictor=ColourPredictor,
        Constant=ConstantPredictor,
        png=_png,
        record=_record,
        plain=_plain,
    )


@pytest.fixture
def unit_rows():
    """`unit_rows(n, d, seed)` -> random L2-normalised f32 rows."""
    return lambda n, d, seed: _unit(np.random.default_rng(seed).normal(size=(n, d)))

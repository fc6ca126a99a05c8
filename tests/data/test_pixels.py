"""The fast decoder and resampler against Pillow's."""

import io

import numpy as np
import pytest
from PIL import Image

from ccl_jax.data import pixels


def picture(width, height, seed=0):
    """Smooth shapes and fine noise, as photographs have."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noise = rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 85, **options})
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_decoded_pixels_are_pillows(mode, options, scale):
    data = jpeg(picture(203, 151).convert(mode), **options)
    size = pixels.jpeg_size(data)
    assert size == (203, 151)
    opened = Image.open(io.BytesIO(data))
    opened.draft(None, (203 // scale, 151 // scale))
    expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(pixels.decode_jpeg(data, size, scale), expected)


def test_what_is_no_plain_jpeg_is_left_to_pillow():
    data = jpeg(picture(40, 30))
    png = io.BytesIO()
    picture(40, 30).save(png, "PNG")
    cmyk = jpeg(picture(40, 30).convert("CMYK"))
    for other in (b"", data[:30], b"\xff\xd8\xff", png.getvalue(), cmyk, b"<html>"):
        assert pixels.jpeg_size(other) is None
    assert pixels.decode_jpeg(data[:-200], (40, 30), 1) is None


@pytest.mark.parametrize(
    ("size", "needed", "scale"),
    [
        ((800, 600), (100, 75), 8),
        ((800, 600), (101, 75), 4),
        ((800, 600), (400, 200), 2),
        ((800, 600), (401, 10), 1),
        ((100, 100), (300, 300), 1),
    ],
)
def test_scale_keeps_what_is_needed(size, needed, scale):
    assert pixels.jpeg_scale(size, needed) == scale


KERNELS = {
    "box": (0.5, lambda x: (x > -0.5) & (x <= 0.5)),
    "bilinear": (1.0, lambda x: np.maximum(1 - np.abs(x), 0)),
    "bicubic": (2.0, lambda x: cubic(np.abs(x))),
    "lanczos": (3.0, lambda x: np.sinc(x) * np.sinc(x / 3) * (np.abs(x) < 3)),
}


def cubic(x):
    """Keys' kernel with a = -1/2."""
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def weights(length, first, last, size, kernel):
    """(size, length): the kernel, stretched over the pixels that a new one stands for."""
    step = (last - first) / size
    centres = first + (np.arange(size) + 0.5) * step
    found = kernel((np.arange(length) + 0.5 - centres[:, None]) / max(step, 1))
    return found / found.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("resample", KERNELS)
@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((0, 0, 157, 101), 64),  # smaller
        ((20, 11, 140, 95), 32),  # much smaller
        ((30.5, 20.25, 90.75, 70.0), 96),  # larger, from between pixels
    ],
)
def test_resampling_is_as_exact_as_pillows(resample, box, size):
    image = picture(157, 101, seed=size)
    left, top, right, bottom = box
    _, kernel = KERNELS[resample]
    exact = np.einsum(
        "yh,hwc,xw->yxc",
        weights(101, top, bottom, size, kernel),
        np.asarray(image).astype(float),
        weights(157, left, right, size, kernel),
        optimize=True,
    )
    exact = np.clip(np.floor(exact + 0.5), 0, 255)
    filters = Image.Resampling[resample.upper()]
    pillows = np.abs(np.asarray(image.resize((size, size), filters, box=box)) - exact)
    for given in (image, np.asarray(image)):
        found = pixels.resize(given, size, box, resample)
        assert found.dtype == np.uint8 and found.flags.writeable
        ours = np.abs(found - exact)
        # Both round between the two passes.
        assert ours.mean() <= pillows.mean() + 0.02 and np.quantile(ours, 0.995) <= 1


def test_other_filters_are_left_to_pillow():
    for resample in ("nearest", "hamming"):
        assert pixels.resize(picture(20, 20), 8, (0, 0, 20, 20), resample) is None


def test_downscaling_is_antialiased():
    lines = np.zeros((256, 256, 3), np.uint8)
    lines[::2] = 255
    result = pixels.resize(lines, 32, (0, 0, 256, 256), "bicubic")
    np.testing.assert_allclose(result[4:-4].astype(int), 127, atol=2)

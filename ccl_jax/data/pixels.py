"""The two steps in which training spends its time on images, faster than Pillow does them.

JPEG is decoded by simplejpeg (the same libjpeg-turbo, so the same pixels, but straight into an
array), and resampled by cykooz-resizer (Pillow's algorithm in SIMD, as near to the exact result
as Pillow's own). Both leave Python's lock to other threads meanwhile. What they gain is measured
by `benchmarks/input_pipeline.py`.
"""

import math
import threading

import cykooz_resizer
import numpy as np
import simplejpeg
from PIL import Image

# Pillow's names; "bicubic" is the cubic with a = -1/2 here and there.
_ALGORITHMS = {
    name: cykooz_resizer.ResizeAlg.convolution(kernel)
    for name, kernel in {
        "box": cykooz_resizer.FilterType.box,
        "bilinear": cykooz_resizer.FilterType.bilinear,
        "bicubic": cykooz_resizer.FilterType.catmull_rom,
        "lanczos": cykooz_resizer.FilterType.lanczos3,
    }.items()
}
# What simplejpeg turns into RGB as Pillow does; not CMYK.
_COLORSPACES = ("YCbCr", "Gray", "RGB")
_JPEG_SCALES = (8, 4, 2, 1)
_thread = threading.local()

Box = tuple[float, float, float, float]


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that `decode_jpeg` takes; None for all else."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (width, height) if colorspace in _COLORSPACES else None


def jpeg_scale(size: tuple[int, int], needed: tuple[int, int]) -> int:
    """The greatest of 8, 4, 2 and 1 by which a JPEG can shrink and keep what is needed.

    Args:
      size: (width, height) of the JPEG.
      needed: least (width, height).
    """
    most = min(have // need for have, need in zip(size, needed, strict=True))
    return next((scale for scale in _JPEG_SCALES if scale <= most), 1)


def decode_jpeg(data: bytes, size: tuple[int, int], scale: int) -> np.ndarray | None:
    """Pixels of a JPEG at 1 / scale of its size.

    Args:
      data: the file.
      size: what `jpeg_size` says.
      scale: 1, 2, 4 or 8; the smaller, the longer it takes.

    Returns:
      uint8 (ceil(height / scale), ceil(width / scale), 3); None if anything is wrong with it.
    """
    width, height = (math.ceil(side / scale) for side in size)
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except ValueError:
        return None


def resize(
    image: Image.Image | np.ndarray, size: int, box: Box, resample: str
) -> np.ndarray | None:
    """Resamples a part of an image to a square, antialiased.

    Args:
      image: of mode RGB, or uint8 (h, w, 3).
      size: side of the result.
      box: (left, top, right, bottom) in pixels, within the image.
      resample: a name in `images.RESAMPLE`.

    Returns:
      uint8 (size, size, 3); None for a filter that is not among the fast ones.
    """
    if resample not in _ALGORITHMS:
        return None
    left, top, right, bottom = box
    options = cykooz_resizer.ResizeOptions(
        resize_alg=_ALGORITHMS[resample],
        crop_box=cykooz_resizer.CropBox(left, top, right - left, bottom - top),
        use_alpha=False,
    )
    if isinstance(image, Image.Image):
        square = Image.new("RGB", (size, size))
        _resizer().resize_pil(image, square, options)
        return np.array(square)
    kind = cykooz_resizer.PixelType.U8x3
    pixels = cykooz_resizer.ImageData(image.shape[1], image.shape[0], kind, image.tobytes())
    square = cykooz_resizer.ImageData(size, size, kind)
    _resizer().resize(pixels, square, options)
    return np.frombuffer(bytearray(square.get_buffer()), np.uint8).reshape(size, size, 3)


def _resizer() -> cykooz_resizer.Resizer:
    """One for each thread: it keeps buffers between calls."""
    if not hasattr(_thread, "resizer"):
        _thread.resizer = cykooz_resizer.Resizer()
    return _thread.resizer

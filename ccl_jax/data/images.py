"""Encoded bytes to a square uint8 image: decoding, and the ways to make it square."""

import difflib
import io
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from ccl_jax.data import pixels
from ccl_jax.data.records import BadRecord

MAX_PIXELS = 100_000_000

# Named, because Pillow would otherwise try every plugin on bytes from the web
# (some of them start other programs).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_CROP_ATTEMPTS = 10
# The scaled image of `resize_and_crop` is made whole up to this many times the crop's side.
_MAX_ASPECT = 64
_UNREADABLE = "unreadable image"


def decode_image(data: bytes, key: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes JPEG, PNG, WebP, GIF or BMP bytes to an RGB image.

    Of an animation the first frame is used; transparent pixels are laid on white;
    16-bit greys are scaled, not clipped. The EXIF orientation is not applied, as
    in the preprocessing of the published CLIP and SigLIP models.

    Args:
      data: the encoded file.
      key: the record's name, for the error.
      max_pixels: the largest width x height that is decoded; the header is
        checked first. Pillow's own `Image.MAX_IMAGE_PIXELS` holds as well.

    Returns:
      A loaded PIL image of mode RGB.

    Raises:
      BadRecord: "unreadable image" for empty, truncated or foreign data, "image
        too large" for more than `max_pixels`.
    """
    return load_rgb(open_image(data, key, max_pixels), key)


# Filters of Pillow by name; all but "nearest" are antialiased.
RESAMPLE: dict[str, Image.Resampling] = {
    name: Image.Resampling[name.upper()]
    for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
}


def resize_squash(image: Image.Image, size: int, *, resample: str = "bicubic") -> np.ndarray:
    """Squashes an image to a square (SigLIP's evaluation transform).

    Args:
      image: a PIL image; anything but RGB is converted.
      size: side of the result in pixels.
      resample: a name in `RESAMPLE`.

    Returns:
      uint8 (size, size, 3); the very pixels of an image that has this size already.

    Raises:
      ValueError: if `size` is not positive or `resample` unknown.
    """
    return _resize(image, size, (0, 0, *image.size), resample)


def resize_and_crop(
    image: Image.Image,
    size: int,
    *,
    resample: str = "bicubic",
    crop_share: float = 1.0,
    floor: bool = False,
) -> np.ndarray:
    """Scales the short side and cuts the centre (CLIP's evaluation transform).

    Args:
      image: a PIL image; anything but RGB is converted.
      size: side of the result in pixels.
      resample: a name in `RESAMPLE`.
      crop_share: share of the scaled short side that is kept: 224 of 256 pixels are 0.875.
      floor: where the centre lies between two pixels, the upper left one is taken, as by the
        image processors of transformers; torchvision (OpenAI's and open_clip's code) takes the
        even one. One pixel of difference in half of these cases.

    Returns:
      uint8 (size, size, 3); an image whose short side needs no scaling is only cut.

    Raises:
      ValueError: if `size` is not positive, `crop_share` not in (0, 1] or `resample` unknown.
    """
    _check_size(size)
    if not 0 < crop_share <= 1:
        raise ValueError(f"crop_share must lie in (0, 1], got {crop_share}")
    short = min(image.size)
    edge = round(size / crop_share)
    # The truncation is torchvision's and transformers', so that results agree.
    scaled = [int(edge * side / short) for side in image.size]
    left, top = ((side - size) // 2 if floor else int(round((side - size) / 2)) for side in scaled)
    if max(scaled) <= _MAX_ASPECT * edge:
        if image.mode != "RGB":
            image = _to_rgb(image)
        whole = image.resize(scaled, _filter(resample))
        return np.array(whole.crop((left, top, left + size, top + size)))
    # The scaled image of a 20000 x 1 strip would fill the memory: the crop is mapped back to
    # the source and resampled from there.
    width, height = image.size
    step_x, step_y = width / scaled[0], height / scaled[1]
    box = (left * step_x, top * step_y, (left + size) * step_x, (top + size) * step_y)
    return _resize(image, size, _clip(box, width, height), resample)


def random_resized_crop(
    image: Image.Image,
    size: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (0.9, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    resample: str = "bicubic",
) -> np.ndarray:
    """Resizes a random part of an image to a square (the training transform).

    Resampled by `pixels.resize`: fast, and of Pillow's quality, but not its very pixels.

    Args:
      image: a PIL image; anything but RGB is converted.
      size: side of the result in pixels.
      rng: where the part is drawn from.
      scale: smallest and largest share of the image's area.
      ratio: smallest and largest width / height of the part, drawn evenly in the log.
        Where no such part fits, the largest central one is used.
      resample: a name in `RESAMPLE`.

    Returns:
      uint8 (size, size, 3).

    Raises:
      ValueError: if `size`, `scale` or `ratio` is out of range, or `resample` unknown.
    """
    _check_size(size)
    box = _draw_box(*image.size, rng, scale, ratio)
    return _resize_fast(image, size, box, resample)


def transform_image(
    data: bytes,
    key: str,
    *,
    size: int,
    transform: str,
    rng: np.random.Generator | None = None,
    scale: tuple[float, float] = (0.9, 1.0),
    resample: str = "bicubic",
    crop_share: float = 1.0,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decodes an image and makes it square.

    Args:
      data: the encoded file.
      key: the record's name, for errors.
      size: side of the result in pixels.
      transform: a name of `TRANSFORMS`.
      rng: used by "random_resized_crop" alone, which needs it.
      scale: see `random_resized_crop`; used by it alone.
      resample: a name in `RESAMPLE`.
      crop_share: see `resize_and_crop`; used by it alone.
      max_pixels: see `decode_image`.

    Returns:
      uint8 (size, size, 3).

    Raises:
      ValueError: for an unknown `transform` or `resample`, a missing `rng`, or a `size`,
        `scale` or `crop_share` out of range.
      BadRecord: see `decode_image`.
    """
    if transform not in TRANSFORMS:
        nearest = difflib.get_close_matches(transform, TRANSFORMS, n=1, cutoff=0)[0]
        raise ValueError(
            f"unknown image transform {transform!r}: did you mean {nearest!r}? "
            f"Known: {', '.join(TRANSFORMS)}"
        )
    options = _Options(rng, scale, resample, crop_share, max_pixels)
    return TRANSFORMS[transform](data, key, size, options)


class _Options(NamedTuple):
    rng: np.random.Generator | None
    scale: tuple[float, float]
    resample: str
    crop_share: float
    max_pixels: int


def _squash(data, key, size, options):
    image = decode_image(data, key, max_pixels=options.max_pixels)
    return resize_squash(image, size, resample=options.resample)


def _center_crop(data, key, size, options, floor=False):
    return resize_and_crop(
        decode_image(data, key, max_pixels=options.max_pixels),
        size,
        resample=options.resample,
        crop_share=options.crop_share,
        floor=floor,
    )


def _center_crop_floor(data, key, size, options):
    return _center_crop(data, key, size, options, floor=True)


def _random_resized_crop(data, key, size, options):
    if options.rng is None:
        raise ValueError("'random_resized_crop' needs rng=, a numpy.random.Generator")
    _check_size(size)
    full = pixels.jpeg_size(data)
    opened = None
    if full is None:
        opened = open_image(data, key, options.max_pixels)
        full = opened.size
    else:
        _check_pixels(full, key, options.max_pixels)
    box = _draw_box(*full, options.rng, options.scale, (3 / 4, 4 / 3))
    # A JPEG decodes several times faster at 1/2, 1/4 or 1/8 of its size. That is enough
    # as long as the part still has `size` pixels a side. Only in training: evaluation
    # keeps to the published preprocessing.
    left, top, right, bottom = box
    needed = (
        math.ceil(full[0] * size / (right - left)),
        math.ceil(full[1] * size / (bottom - top)),
    )
    scale = pixels.jpeg_scale(full, needed)
    image = None if opened else pixels.decode_jpeg(data, full, scale)
    if image is None:  # no JPEG, or one that Pillow may still read, or tell what is wrong with
        opened = opened or open_image(data, key, options.max_pixels)
        scale = scale if opened.draft(None, needed) else 1
        image = load_rgb(opened, key)
        width, height = image.size
    else:
        height, width = image.shape[:2]
    box = tuple(side / scale for side in box)
    return _resize_fast(image, size, _clip(box, width, height), options.resample)


# "center_crop" rounds as OpenAI's and open_clip's code, "center_crop_floor" as transformers.
TRANSFORMS: dict[str, Callable[..., np.ndarray]] = {
    "squash": _squash,
    "center_crop": _center_crop,
    "center_crop_floor": _center_crop_floor,
    "random_resized_crop": _random_resized_crop,
}


def open_image(data: bytes, key: str, max_pixels: int) -> Image.Image:
    """Reads the header: format, mode and size are known, no pixel is decoded.

    Raises:
      BadRecord: "unreadable image", or "image too large" for more than `max_pixels`.
    """
    if not data:
        raise BadRecord(key, _UNREADABLE, "0 bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadRecord(key, "image too large", str(error)) from error
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise OSError, SyntaxError, struct.error, ...
        raise BadRecord(key, _UNREADABLE, _describe(error)) from error
    _check_pixels(image.size, key, max_pixels)
    return image


def _check_pixels(size, key, max_pixels):
    width, height = size
    if width * height > max_pixels:
        raise BadRecord(key, "image too large", f"{width} x {height}, over {max_pixels} pixels")


def load_rgb(image: Image.Image, key: str) -> Image.Image:
    """Decodes an opened image as RGB.

    Raises:
      BadRecord: "unreadable image" if its pixels are damaged.
    """
    try:
        image.load()
        return _to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # see open_image
        raise BadRecord(key, _UNREADABLE, _describe(error)) from error


def _describe(error):
    # The message of an unidentified image names only a buffer's address.
    if isinstance(error, Image.UnidentifiedImageError):
        return f"none of {', '.join(_FORMATS)}"
    return str(error) or type(error).__name__


def _to_rgb(image):
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's conversion would clip at 255
        values = np.asarray(image).astype(np.int64)
        grey = np.clip((values + 128) // 257, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image)
        image = page
    return image.convert("RGB")


def _resize(image, size, box, resample):
    _check_size(size)
    if image.mode != "RGB":
        image = _to_rgb(image)
    return np.array(image.resize((size, size), _filter(resample), box=box))


def _resize_fast(image, size, box, resample):
    _filter(resample)
    if isinstance(image, Image.Image) and image.mode != "RGB":
        image = _to_rgb(image)
    square = pixels.resize(image, size, box, resample)
    if square is None:
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        return _resize(image, size, box, resample)
    return square


def _check_size(size):
    if size < 1:
        raise ValueError(f"the image size must be at least 1, got {size}")


def _filter(resample):
    if resample not in RESAMPLE:
        raise ValueError(f"unknown filter {resample!r}: resample is one of {', '.join(RESAMPLE)}")
    return RESAMPLE[resample]


def _clip(box, width, height):
    """Undoes the rounding that puts a box a hair outside the image."""
    left, top, right, bottom = box
    return max(left, 0), max(top, 0), min(right, width), min(bottom, height)


def _draw_box(width, height, rng, scale, ratio):
    """A random (left, top, right, bottom) in whole pixels, by torchvision's rule."""
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale must be (low, high) with 0 < low <= high <= 1, got {scale}")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"ratio must be (low, high) with 0 < low <= high, got {ratio}")
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        part_width = round(math.sqrt(area * aspect))
        part_height = round(math.sqrt(area / aspect))
        if 0 < part_width <= width and 0 < part_height <= height:
            left = int(rng.integers(width - part_width + 1))
            top = int(rng.integers(height - part_height + 1))
            return left, top, left + part_width, top + part_height
    aspect = min(max(width / height, ratio[0]), ratio[1])
    part_width = min(width, max(1, round(height * aspect)))
    part_height = min(height, max(1, round(width / aspect)))
    left, top = (width - part_width) // 2, (height - part_height) // 2
    return left, top, left + part_width, top + part_height

"""Images made smaller before training: re-encoded once, where that saves anything."""

import io

from PIL import Image

from ccl_jax.data import images

_ORIENTATION = 0x0112
_LEAST_QUALITY_WITHOUT_SUBSAMPLING = 90


def check_image(data: bytes, key: str) -> None:
    """Decodes an image to see that this can be done.

    Raises:
      BadRecord: see `images.decode_image`.
    """
    images.decode_image(data, key)


def shrink_image(data: bytes, key: str, short_side: int, quality: int) -> bytes:
    """Scales an image down to a short side, bicubic with antialiasing, as a JPEG.

    An image that is not larger keeps its very bytes. Of the metadata, the EXIF orientation is
    kept (the pixels stay as they lie, so that readers that turn the image and readers that do
    not, as the published CLIP and SigLIP preprocessing, see what they saw before) and the ICC
    profile, where it is one for RGB. Transparent pixels are laid on white. Colours keep their
    full resolution (4:4:4) from quality 90 on.

    Args:
      data: the encoded file.
      key: the record's name, for errors.
      short_side: of the result in pixels.
      quality: of the JPEG, 1 to 100.

    Raises:
      BadRecord: see `images.decode_image`.
    """
    opened = images.open_image(data, key, images.MAX_PIXELS)
    width, height = opened.size
    if min(width, height) <= short_side:
        images.load_rgb(opened, key)
        return data
    exif, profile = _orientation(opened), _rgb_profile(opened)
    scale = short_side / min(width, height)
    size = round(width * scale), round(height * scale)
    # A large JPEG is decoded at a half or less of its size, as long as twice the result's is
    # left for the filter.
    opened.draft(None, (2 * size[0], 2 * size[1]))
    image = images.load_rgb(opened, key).resize(size, Image.Resampling.BICUBIC)
    full_colour = quality >= _LEAST_QUALITY_WITHOUT_SUBSAMPLING
    file = io.BytesIO()
    image.save(
        file,
        "JPEG",
        quality=quality,
        subsampling="4:4:4" if full_colour else "4:2:0",
        exif=exif,
        icc_profile=profile,
    )
    return file.getvalue()


def _orientation(opened):
    try:
        value = opened.getexif().get(_ORIENTATION)
    except Exception:  # damaged metadata raise anything, and hide no pixel
        value = None
    exif = Image.Exif()
    if value in range(2, 9):
        exif[_ORIENTATION] = value
    return exif.tobytes() if len(exif) else b""


def _rgb_profile(opened):
    profile = opened.info.get("icc_profile") or b""
    # Bytes 16 to 19 of a profile name its colour space (ICC.1:2022, 7.2.6).
    return profile if profile[16:20] == b"RGB " else None

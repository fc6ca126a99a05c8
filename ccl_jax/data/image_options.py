"""How a published model wants its images: from its processor's config to our transforms, and back.

What transformers' processors do to an image is: resize, cut the centre, multiply by
`rescale_factor`, subtract the mean, divide by the standard deviation. Ours are the same steps with
the last three on the device, as (x / 255 - mean) / std; other factors go into mean and std.

Compared with the PIL processors of transformers 5 (`CLIPImageProcessorPil`,
`SiglipImageProcessorPil`) on 300 photographs and on noise: every pixel is the same (maximum and
mean difference 0), normalised values agree within 1e-6. What differs is what is decoded (16-bit
greys are scaled here, clipped at 255 there) and an image over 64 times as long as wide, which is
cut before it is resampled. OpenAI's and open_clip's transforms round the centre crop otherwise: a
shift of one pixel for 60 of those photographs at 224, by which they differ by up to 19 of 255 on
average. The torchvision processors of transformers, its default where torchvision is installed,
resample by other code and were not compared.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from PIL import Image

from ccl_jax.data.images import RESAMPLE
from ccl_jax.data.text import read_json

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# What the classes of transformers assume where a config says nothing.
_SHARED = {"do_resize": True, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255}
_DEFAULTS = {
    "CLIP": _SHARED
    | {
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_normalize": True,
        "image_mean": _CLIP_MEAN,
        "image_std": _CLIP_STD,
    },
    "Siglip": _SHARED
    | {
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
        "do_normalize": True,
        "image_mean": 0.5,
        "image_std": 0.5,
    },
}
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "open_clip_config.json")


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """How images are brought to a model; the fields of `config.data` of the same meaning.

    Attributes:
      size: side in pixels that the processor makes.
      transform: a name in `images.TRANSFORMS`.
      resample: a name in `images.RESAMPLE`.
      crop_share: share of the short side that a centre crop keeps.
      mean: per channel, subtracted from pixels in [0, 1].
      std: per channel, divides them after that.
    """

    size: int
    transform: str = "squash"
    resample: str = "bicubic"
    crop_share: float = 1.0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


def read_image_options(folder: str) -> ImageOptions:
    """Reads the image processing of a checkpoint.

    Args:
      folder: of a Hugging Face checkpoint (`preprocessor_config.json`, or
        `processor_config.json` as transformers 5 writes) or an OpenCLIP one
        (`open_clip_config.json`); the first of these files that describes images is used.

    Raises:
      ValueError: if there is no such file, or it is damaged, or it asks for steps that are
        not supported.
    """
    for name in PROCESSOR_FILES:
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            continue
        values = read_json(path)
        if name == "processor_config.json":
            values = values.get("image_processor")
        if name == "open_clip_config.json":
            return _from_open_clip(values, path)
        if values is not None:
            return image_options(values, path)
    raise ValueError(
        f"{folder} does not say how images are processed: it has none of "
        f"{', '.join(PROCESSOR_FILES)}; copy the file from the checkpoint, or set "
        "config.data.eval_transform, mean and std"
    )


def image_options(values: Mapping[str, Any], name: str = "the processor's config") -> ImageOptions:
    """Our options for the content of a `preprocessor_config.json`.

    Args:
      values: the file's content, of a CLIP or SigLIP image processor (or CLIP's old feature
        extractor).
      name: of the file, for errors.

    Raises:
      ValueError: naming the field that asks for what is not supported: another processor,
        images of no fixed square size, padding.
    """
    values = _with_defaults(values, name)
    if not values["do_resize"]:
        raise ValueError(f"{name}: do_resize is false; images must be brought to one size")
    size, crop = _sides(values["size"]), None
    if values["do_center_crop"]:
        crop = _square(_sides(values["crop_size"]), f"{name}: crop_size")
    if len(size) == 1 and crop is not None and crop <= size[0]:
        shape = {"size": crop, "transform": "center_crop_floor", "crop_share": crop / size[0]}
    elif len(size) == 2 and crop in (None, _square(size, f"{name}: size")):
        shape = {"size": size[0], "transform": "squash"}
    else:
        raise ValueError(
            f"{name}: size {values['size']} with do_center_crop = {values['do_center_crop']} and "
            f"crop_size {values.get('crop_size')} is not supported; it is either shortest_edge "
            "with a centre crop that is not larger, or height and width without a crop"
        )
    factor = 255 * values["rescale_factor"] if values["do_rescale"] else 255
    mean, std = (0.0,) * 3, (1.0,) * 3
    if values["do_normalize"]:
        mean, std = _channels(values["image_mean"]), _channels(values["image_std"])
    # (255 r (x / 255) - mean) / std, with the factor in front of x / 255 divided out. That of
    # 1 / 255 is kept from rounding.
    if abs(factor - 1) > 1e-6:
        mean, std = (tuple(value / factor for value in row) for row in (mean, std))
    return ImageOptions(
        **shape, resample=_filter_name(values["resample"], name), mean=mean, std=std
    )


def processor_config(options: ImageOptions, size: int | None = None) -> dict[str, Any]:
    """The content of a `preprocessor_config.json` that transformers loads.

    Args:
      options: how images are processed.
      size: side of the model's images; that of `options` if None.

    Returns:
      A dict for JSON: of a SigLIP processor for a squash, of a CLIP processor for a centre crop
      (which rounds down, whatever `options.transform`).

    Raises:
      ValueError: for a transform that is random.
    """
    size = size or options.size
    square = {"height": size, "width": size}
    values = {
        "do_resize": True,
        "resample": int(RESAMPLE[options.resample]),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(options.mean),
        "image_std": list(options.std),
        "do_convert_rgb": True,
    }
    if options.transform == "squash":
        return {"image_processor_type": "SiglipImageProcessor", "size": square, **values}
    if options.transform in ("center_crop", "center_crop_floor"):
        return {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": round(size / options.crop_share)},
            "do_center_crop": True,
            "crop_size": square,
            **values,
        }
    raise ValueError(
        f"no image processor of transformers does {options.transform!r}; set "
        "config.data.eval_transform to 'squash' or 'center_crop'"
    )


def _with_defaults(values, name):
    kind = values.get("image_processor_type") or values.get("feature_extractor_type") or ""
    for ending in ("Pil", "Fast", "ImageProcessor", "FeatureExtractor"):
        kind = kind.removesuffix(ending)
    if kind == "Siglip2" or "max_num_patches" in values:
        raise ValueError(
            f"{name} is of a SigLIP 2 model with images of any shape (NaFlex), which is not "
            "supported; use a checkpoint of fixed resolution, such as "
            "google/siglip2-base-patch16-224"
        )
    if kind not in _DEFAULTS:
        raise ValueError(
            f"{name} is of {kind or 'no named'} image processor; known are "
            f"{', '.join(f'{known}ImageProcessor' for known in _DEFAULTS)}"
        )
    given = {key: value for key, value in values.items() if value is not None}
    if given.get("do_pad"):
        raise ValueError(f"{name}: do_pad is not supported; use a processor that crops or squashes")
    return _DEFAULTS[kind] | given


def _sides(size):
    """(shortest edge,) or (height, width), () for anything else; old configs give one number."""
    if isinstance(size, int):
        return (size,)
    if isinstance(size, list):
        return tuple(size)
    if set(size) == {"shortest_edge"}:
        return (size["shortest_edge"],)
    if set(size) == {"height", "width"}:
        return (size["height"], size["width"])
    return ()


def _square(sides, name):
    if len(set(sides)) != 1:
        raise ValueError(f"{name} {sides} is not square; the image towers take square images")
    return sides[0]


def _channels(values):
    return (float(values),) * 3 if isinstance(values, int | float) else tuple(map(float, values))


def _filter_name(resample, name):
    if isinstance(resample, str) and resample.lower() in RESAMPLE:
        return resample.lower()
    try:
        return Image.Resampling(resample).name.lower()
    except ValueError:
        raise ValueError(
            f"{name}: resample {resample!r} is none of Pillow's filters, {', '.join(RESAMPLE)}"
        ) from None


def _from_open_clip(values, name):
    """OpenCLIP's `preprocess_cfg`, whose transforms are torchvision's."""
    given = values.get("preprocess_cfg", {})
    tower = values.get("model_cfg", {}).get("vision_cfg", {})
    size = given.get("size", tower.get("image_size", 224))
    mode = given.get("resize_mode", "shortest")
    transforms = {"shortest": "center_crop", "squash": "squash"}
    if mode not in transforms:
        raise ValueError(
            f"{name}: resize_mode {mode!r} is not supported, only 'shortest', 'squash'"
        )
    return ImageOptions(
        size=size if isinstance(size, int) else _square(size, f"{name}: size"),
        transform=transforms[mode],
        resample=_filter_name(given.get("interpolation", "bicubic"), name),
        mean=_channels(given.get("mean", _CLIP_MEAN)),
        std=_channels(given.get("std", _CLIP_STD)),
    )

"""Image processing from the configs of published checkpoints, against transformers' own."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from ccl_jax.data.image_options import (
    ImageOptions,
    image_options,
    processor_config,
    read_image_options,
)
from ccl_jax.data.images import TRANSFORMS, transform_image
from ccl_jax.data.sources import WebDatasetSource

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# As in the repositories of openai/clip-vit-base-patch32, google/siglip-base-patch16-224 and
# google/siglip2-base-patch16-224.
OPENAI = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
    "resample": 3,
    "size": 224,
}
SIGLIP = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "SiglipProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 224},
}
SIGLIP2 = SIGLIP | {"do_convert_rgb": None, "resample": 2}

# Half a pixel of centre at several remainders, enlargement, and long strips.
SHAPES = [(97, 133), (201, 64), (65, 64), (67, 64), (64, 71), (20, 31), (500, 333), (1400, 35)]


def encode(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def noise():
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (height, width, 3), np.uint8) for width, height in SHAPES]
    return [encode(Image.fromarray(array)) for array in arrays]


def our_pixels(data, options):
    return transform_image(
        data,
        "k",
        size=options.size,
        transform=options.transform,
        resample=options.resample,
        crop_share=options.crop_share,
    )


def our_values(data, options):
    """The pixels as the device normalises them."""
    values = our_pixels(data, options).astype(np.float32) / 255
    return (values - np.float32(options.mean)) / np.float32(options.std)


def their_values(processor, data, **steps):
    (values,) = processor(Image.open(io.BytesIO(data)), **steps)["pixel_values"]
    return values.transpose(1, 2, 0)


def processor_of(values):
    """The PIL processor of transformers; the torchvision ones are its default."""
    pil = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    if values.get("image_processor_type", "").startswith("Siglip"):
        from transformers.models.siglip import image_processing_pil_siglip as pil_siglip

        return pil_siglip.SiglipImageProcessorPil.from_dict(values)
    return pil.CLIPImageProcessorPil.from_dict(values)


CONFIGS = {
    "openai": OPENAI,
    "siglip": SIGLIP,
    "siglip2": SIGLIP2,
    "resized": OPENAI | {"size": {"shortest_edge": 73}, "crop_size": 64, "resample": 2},
    "odd": OPENAI | {"size": 63, "crop_size": {"height": 63, "width": 63}, "resample": 1},
    "unscaled": SIGLIP | {"do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0] * 3},
    "rescaled": SIGLIP | {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0},
    "raw": SIGLIP | {"do_normalize": False},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_pixels_and_values_are_those_of_transformers(name, noise):
    options = image_options(CONFIGS[name])
    processor = processor_of(CONFIGS[name])
    assert options.transform in TRANSFORMS
    for data in noise:
        plain = their_values(processor, data, do_rescale=False, do_normalize=False)
        np.testing.assert_array_equal(our_pixels(data, options), plain)
        np.testing.assert_allclose(
            our_values(data, options), their_values(processor, data), rtol=1e-5, atol=1e-6
        )


def test_photographs_too(shared):
    source = WebDatasetSource(shared / "data" / "coco_sugarcrepe_s224.tar")
    for name in ("openai", "siglip"):
        options, processor = image_options(CONFIGS[name]), processor_of(CONFIGS[name])
        for index in range(0, 100, 10):
            data = source[index].image
            plain = their_values(processor, data, do_rescale=False, do_normalize=False)
            np.testing.assert_array_equal(our_pixels(data, options), plain)


def test_torchvisions_rounding_moves_the_crop_by_a_pixel(noise):
    floor = image_options(OPENAI | {"size": 64, "crop_size": 64})
    nearest = dataclasses.replace(floor, transform="center_crop")
    moved = []
    for shape, data in zip(SHAPES, noise, strict=True):
        spare = int(64 * max(shape) / min(shape)) - 64
        # 1.5 is 1 for one and 2 for the other, 0.5 and 2.5 are 0 and 2 for both.
        moved.append(spare % 4 == 3)
        assert moved[-1] == (our_pixels(data, floor) != our_pixels(data, nearest)).any()
    assert any(moved)


def test_defaults_are_those_of_the_classes():
    for kind in ("CLIPImageProcessor", "SiglipImageProcessor"):
        values = json.loads(processor_of({"image_processor_type": kind}).to_json_string())
        assert image_options({"image_processor_type": kind}) == image_options(values)
    assert image_options({"image_processor_type": "CLIPImageProcessorFast"}) == ImageOptions(
        224, "center_crop_floor", "bicubic", 1.0, CLIP_MEAN, CLIP_STD
    )


@pytest.mark.parametrize("name", ["openai", "siglip", "siglip2", "resized", "rescaled"])
def test_what_is_written_is_read_back_by_both(name, noise, tmp_path):
    options = image_options(CONFIGS[name])
    values = processor_config(options)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    assert read_image_options(str(tmp_path)) == options
    theirs = their_values(processor_of(values), noise[0])
    np.testing.assert_allclose(our_values(noise[0], options), theirs, rtol=1e-5, atol=1e-6)


def test_another_resolution_keeps_the_share_of_the_crop():
    options = image_options(OPENAI | {"size": 256})
    assert options.crop_share == 0.875
    values = processor_config(options, 336)
    assert values["size"] == {"shortest_edge": 384}
    assert values["crop_size"] == {"height": 336, "width": 336}
    with pytest.raises(ValueError, match="set config.data.eval_transform to 'squash'"):
        processor_config(dataclasses.replace(options, transform="random_resized_crop"))


def test_files_in_their_order(tmp_path):
    folder = str(tmp_path)
    with pytest.raises(ValueError, match="none of preprocessor_config.json, .*set config.data"):
        read_image_options(folder)
    openclip = {"model_cfg": {"vision_cfg": {"image_size": 384}}, "preprocess_cfg": {}}
    openclip["preprocess_cfg"] = {"mean": [0.5] * 3, "std": 0.5, "resize_mode": "squash"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(openclip))
    assert read_image_options(folder) == ImageOptions(384)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    assert read_image_options(folder).size == 384
    written = {"image_processor": SIGLIP2, "processor_class": "SiglipProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(written))
    assert read_image_options(folder) == ImageOptions(224, resample="bilinear")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(OPENAI))
    assert read_image_options(folder).mean == CLIP_MEAN
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match="preprocessor_config.json is not JSON, or cut"):
        read_image_options(folder)


def test_open_clip_uses_torchvisions_rounding(tmp_path):
    values = {"preprocess_cfg": {"interpolation": "bilinear", "size": [96, 96]}}
    path = tmp_path / "open_clip_config.json"
    path.write_text(json.dumps(values))
    assert read_image_options(str(tmp_path)) == ImageOptions(
        96, "center_crop", "bilinear", 1.0, CLIP_MEAN, CLIP_STD
    )
    values["preprocess_cfg"]["resize_mode"] = "longest"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="resize_mode 'longest' is not supported"):
        read_image_options(str(tmp_path))


@pytest.mark.parametrize(
    "values, message",
    [
        (OPENAI | {"do_center_crop": False}, "size 224 with do_center_crop = False"),
        (OPENAI | {"crop_size": 256}, "crop_size 256 is not supported"),
        (OPENAI | {"crop_size": {"height": 224, "width": 200}}, "is not square"),
        (SIGLIP | {"size": {"height": 224, "width": 200}}, "is not square"),
        (SIGLIP | {"size": {"longest_edge": 224}}, "is not supported"),
        (SIGLIP | {"do_resize": False}, "do_resize is false"),
        (SIGLIP | {"do_pad": True}, "do_pad is not supported"),
        (SIGLIP | {"resample": 9}, "resample 9 is none of"),
        (SIGLIP | {"resample": "cubic"}, "resample 'cubic' is none of"),
        (SIGLIP | {"image_processor_type": "Siglip2ImageProcessor"}, "NaFlex"),
        (SIGLIP | {"image_processor_type": "ViTImageProcessor"}, "known are CLIPImageProcessor"),
        ({"size": 224}, "no named image processor"),
    ],
)
def test_what_is_not_supported_is_named(values, message):
    with pytest.raises(ValueError, match=f"^FILE.*{message}"):
        image_options(values, "FILE")

"""Presets: they build, and have the sizes that the papers give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax.models.presets import PRESETS, build_model


def parameters(preset):
    """Shapes of all parameters; nothing is computed."""
    model = build_model({"preset": preset, "patch_embedder": False}, eot_id=2)
    size, length = model.image["image_size"], model.text["length"]
    image = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    text = jax.ShapeDtypeStruct((2, length), jnp.int32)
    out, variables = jax.eval_shape(
        lambda image, text: model.init_with_output(jax.random.key(0), image, text), image, text
    )
    assert out.image.shape == out.text.shape
    return variables["params"]


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def block(width):
    """Four projections, an MLP four times as wide, two norms; all with biases."""
    attention = 4 * (width * width + width)
    mlp = (width * 4 * width + 4 * width) + (4 * width * width + width)
    return attention + mlp + 2 * 2 * width


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_build(preset):
    assert count(parameters(preset)) > 0


def test_siglip_b16_has_the_published_size():
    found = parameters("B/16")
    w, depth = 768, 12
    patches = (224 // 16) ** 2
    # MAP head: probe, attention, norm, MLP. That is a block with a probe for one norm's two.
    head = block(w) - 2 * w + w
    vision = (16 * 16 * 3 * w + w) + patches * w + depth * block(w) + 2 * w + head
    text = 32_000 * w + 64 * w + depth * block(w) + 2 * w + (w * w + w)
    assert count(found["image_tower"]) == vision
    assert count(found["text_tower"]) == text
    assert count(found) == vision + text + 2  # and scale and bias
    # Zhai et al. (2023) and the released ViT-B-16-SigLIP: 203 M.
    assert count(found) == pytest.approx(203e6, rel=0.01)


def test_clip_b32_has_the_published_size():
    found = parameters("clip-B/32")
    v, t = 768, 512
    patches = (224 // 32) ** 2
    norms = 2 * 2 * v  # before and after the blocks
    vision = 32 * 32 * 3 * v + v + (patches + 1) * v + norms + 12 * block(v) + v * 512
    text = 49_408 * t + 77 * t + 12 * block(t) + 2 * t + t * 512
    assert count(found) == vision + text + 2
    # OpenAI's ViT-B/32 has 151,277,313 parameters; our bias is one more.
    assert count(found) == 151_277_313 + 1


def test_so400m_14_has_the_published_size():
    found = parameters("So400m/14")
    assert found["image_tower"]["block_0"]["mlp"]["up"]["kernel"].shape == (1152, 4304)
    assert found["text_tower"]["block_26"]["mlp"]["up"]["kernel"].shape == (1152, 4304)
    # As OpenCLIP's profile of its ViT-SO400M-14-SigLIP gives them (the text tower's is that
    # for 64 tokens).
    assert count(found["image_tower"]) == pytest.approx(427.68e6, abs=5e3)
    assert count(found["text_tower"]) == pytest.approx(449.73e6, abs=5e3)


def test_a_model_without_a_preset():
    sizes = PRESETS["tiny"]
    model = build_model(sizes, eot_id=7)
    assert model == build_model({"preset": "tiny"}, eot_id=7)
    named = {"image": sizes["image"], "text": sizes["text"] | {"eot_id": 9}}
    assert build_model(named, eot_id=7).text["eot_id"] == 9  # a checkpoint's own


def test_changes_over_a_preset():
    config = {
        "preset": "tiny",
        "image": {"depth": 5},
        "text": {"length": 20, "pool": "eot"},
        "init_bias": -5.0,
        "dtype": "bfloat16",
    }
    model = build_model(config, eot_id=7)
    assert (model.image["depth"], model.image["width"]) == (
        5,
        PRESETS["tiny"]["image"]["width"],
    )
    assert (model.text["length"], model.text["pool"], model.text["eot_id"]) == (20, "eot", 7)
    assert (model.init_bias, model.dtype) == (-5.0, "bfloat16")
    assert PRESETS["tiny"]["text"]["pool"] == "last"  # the table is as it was


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"preset": "B16"}, "did you mean 'B/16'"),
        ({"preset": "tiny", "image": {"widht": 3}}, "config.model.image.*'width'"),
        ({"preset": "tiny", "text": {"name": "x"}}, "config.model.text has no field 'name'"),
        ({"image": {"width": 8, "depth": 1}}, "image gives no heads, image_size, patch_size"),
    ],
)
def test_unknown_names_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        build_model(config, eot_id=2)

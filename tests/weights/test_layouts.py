"""big_vision and OpenCLIP checkpoints, laid out by hand from the golden Hugging Face ones."""

import json

import layouts
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_checkpoints import assert_identical, flat, run

from ccl_jax import weights
from ccl_jax.weights import big_vision, open_clip, open_clip_config
from ccl_jax.weights.mapping import write

HEADS, DEPTH = 4, 2
TEXT = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 4, "layers": DEPTH}
SIGLIP_TEXT = {
    "no_causal_mask": True,
    "pool_type": "last",
    "proj_bias": True,
    "norm_kwargs": {"eps": 1e-6},
    "act_kwargs": {"approximate": "tanh"},
    "hf_tokenizer_name": "timm/somewhere",
    "tokenizer_kwargs": {"clean": "canonicalize"},
}
CLIP = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 32,
        "layers": DEPTH,
        "width": 32,
        "head_width": 8,
        "patch_size": 8,
    },
    "text_cfg": TEXT,
}
SIGLIP = {
    "embed_dim": 32,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 32,
        "timm_model_name": "vit_tiny_patch8_siglip_32",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": TEXT | SIGLIP_TEXT,
}


def assert_same(found, golden):
    """As the Hugging Face checkpoint: fields, every bit of the parameters, and outputs."""
    assert found.model == golden.loaded.model
    assert_identical(found.params, golden.loaded.params)
    embeddings, features = run(found, golden.expected)
    for value, name in ((embeddings.image, "image_embeds"), (embeddings.text, "text_embeds")):
        np.testing.assert_allclose(value, golden.expected[name], rtol=0, atol=1e-5)
    if "map_value_tokens" in golden.expected:
        expected = golden.expected["map_value_tokens"]
        np.testing.assert_allclose(features.tokens, expected, rtol=0, atol=1e-5)


def save_open_clip(folder, config, tensors):
    folder.mkdir(exist_ok=True)
    values = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(values))
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    # NumPy has no contiguous scalar of rank 0 but this one.
    tensors["logit_scale"] = tensors["logit_scale"].reshape(())
    save_file(tensors, folder / "open_clip_model.safetensors")
    return folder


@pytest.mark.parametrize("stacked", [False, True])
def test_big_vision(siglip, tmp_path, stacked):
    tensors = layouts.big_vision(siglip.tensors, heads=HEADS, depth=DEPTH, stacked=stacked)
    extra = {"opt/0/count": np.int32(7), "chrono/step": np.int32(3)}
    np.savez(tmp_path / "siglip.npz", **tensors, **extra)
    found = weights.load(tmp_path / "siglip.npz")
    assert found.family == "big_vision"
    assert_same(found, siglip)
    assert weights.model_config(tmp_path / "siglip.npz") == siglip.loaded.model


def test_big_vision_without_the_prefix_and_in_bfloat16(siglip, tmp_path):
    tensors = layouts.big_vision(siglip.tensors, heads=HEADS, depth=DEPTH)
    halved = {k.removeprefix("params/"): v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}
    np.savez(tmp_path / "siglip.npz", **halved)
    found = weights.load(tmp_path / "siglip.npz").params["text_tower"]["projection"]["kernel"]
    expected = siglip.tensors["text_model.head.weight"].T.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(found, expected.astype(np.float32), strict=True)


@pytest.mark.parametrize("prefix", ["", "text."])
def test_open_clip_vit(clip, tmp_path, prefix):
    tensors = layouts.open_clip_vit(clip.tensors, depth=DEPTH, prefix=prefix)
    folder = save_open_clip(tmp_path / "clip", CLIP | {"custom_text": bool(prefix)}, tensors)
    found = weights.load(folder)
    assert found.family == "open_clip"
    assert_same(found, clip)
    assert_same(weights.load(folder / "open_clip_model.safetensors"), clip)


def test_open_clip_with_a_bias(clip, tmp_path):
    tensors = layouts.open_clip_vit(clip.tensors, depth=DEPTH) | {"logit_bias": np.float32([-7])}
    folder = save_open_clip(tmp_path / "clip", CLIP | {"init_logit_bias": -10}, tensors)
    assert weights.load(folder).params["bias"] == -7


def test_open_clip_siglip(siglip, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(open_clip_config.TIMM_SIZES, "tiny", (32, DEPTH, HEADS, 128))
    tensors = layouts.open_clip_siglip(siglip.tensors, depth=DEPTH)
    folder = save_open_clip(tmp_path / "siglip", SIGLIP, tensors)
    # timm runs most sizes with the exact GELU, and so do we unless told otherwise.
    assert weights.model_config(folder)["image"]["activation"] == "gelu"
    found = weights.load(folder, {"image": {"activation": "gelu_tanh"}})
    assert "config.model.image.activation = 'gelu_tanh'" in caplog.text
    assert_same(found, siglip)


def test_tables_write_what_they_read(siglip, clip):
    """The other direction of both tables, against the layouts made by hand."""
    params = flat(siglip.loaded.params)
    made = layouts.big_vision(siglip.tensors, heads=HEADS, depth=DEPTH)
    made = {name.removeprefix("params/"): tensor for name, tensor in made.items()}
    assert_identical(write(big_vision.entries(siglip.loaded.model), params), made)
    made = layouts.open_clip_siglip(siglip.tensors, depth=DEPTH)
    assert_identical(write(open_clip.entries(siglip.loaded.model, made), params), made)
    made = layouts.open_clip_vit(clip.tensors, depth=DEPTH)
    table = open_clip.entries(clip.loaded.model, made)
    assert_identical(write(table, flat(clip.loaded.params), left=["bias"]), made)


def test_a_folder_with_both_forms(clip, tmp_path):
    weights.save(tmp_path, clip.loaded.params, clip.loaded.model)
    tensors = layouts.open_clip_vit(clip.tensors, depth=DEPTH)
    save_open_clip(tmp_path, CLIP, tensors)
    assert weights.load(tmp_path).family == "clip"
    assert weights.load(tmp_path / "open_clip_model.safetensors").family == "open_clip"
    (tmp_path / "model.safetensors").unlink()
    assert weights.load(tmp_path).family == "open_clip"

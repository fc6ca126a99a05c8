"""Hugging Face checkpoints: outputs of the golden ones, and in -> out -> in."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from layouts import naflex
from safetensors.numpy import load_file, save_file
from tiny_checkpoints import MODELS, assert_identical, flat, random_params, run

from ccl_jax import weights
from ccl_jax.models.presets import build_model
from ccl_jax.weights import huggingface_config
from ccl_jax.weights.mapping import parameter_shapes

TOLERANCE = 1e-5


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_outputs_are_those_of_transformers(golden):
    expected = golden.expected
    embeddings, features = run(golden.loaded, expected)
    close(embeddings.image, expected["image_embeds"])
    close(embeddings.text, expected["text_embeds"])
    bias = embeddings.bias if golden.loaded.family == "siglip" else 0
    logits = embeddings.scale * (embeddings.image @ embeddings.text.T) + bias
    close(logits, expected["logits_per_image"])
    if golden.loaded.family == "siglip":
        close(features.patches, expected["vision_last_hidden_state"])
        close(features.pooled, expected["vision_pooler_output"])
        close(features.tokens, expected["map_value_tokens"])
        close(embeddings.image_tokens, expected["map_value_tokens_normalized"])


def test_clip_patches_are_the_last_states_after_the_norm(clip):
    # CLIPModel applies its last norm to the class token alone, ours to the patches as well.
    _, features = run(clip.loaded, clip.expected)
    states = clip.expected["vision_last_hidden_state"][:, 1:].astype(np.float64)
    centred = states - states.mean(-1, keepdims=True)
    normal = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5)
    scale, bias = (
        clip.tensors[f"vision_model.post_layernorm.{leaf}"] for leaf in ("weight", "bias")
    )
    close(features.patches, normal * scale + bias)


def test_golden_in_out_in_is_bit_identical(golden, tmp_path):
    config, tensors = weights.to_huggingface(golden.loaded.params, golden.loaded.model)
    assert_identical(tensors, golden.tensors)
    family, model = huggingface_config.model_config(config)
    assert (family, model) == (golden.loaded.family, golden.loaded.model)
    weights.save(tmp_path, golden.loaded.params, golden.loaded.model)
    again = weights.load(tmp_path)
    assert again.model == golden.loaded.model
    assert_identical(again.params, golden.loaded.params)


def test_shapes_are_those_of_the_model(model):
    towers = build_model(model, eot_id=0)
    side, length = model["image"]["image_size"], model["text"]["length"]
    init = jax.eval_shape(
        towers.init, jax.random.key(0), np.zeros((1, side, side, 3)), np.zeros((1, length), int)
    )
    expected = {path: leaf.shape for path, leaf in flat(init["params"]).items()}
    assert parameter_shapes(model) == expected


def test_own_model_out_in_is_bit_identical(model, tmp_path):
    params = random_params(model)
    weights.save(tmp_path, params, model)
    again = weights.load(tmp_path, init_bias=float(params["bias"]))
    assert_identical(again.params, params)
    assert again.model == huggingface_config.model_config(huggingface_config.config_of(model))[1]


def test_written_config_says_what_it_was_made_from(clip):
    config, _ = weights.to_huggingface(clip.loaded.params, clip.loaded.model)
    for part in ("text_config", "vision_config"):
        assert config[part].items() <= (clip.config[part] | {"projection_dim": 24}).items()
    assert config["projection_dim"] == clip.config["projection_dim"] == 24


def test_what_a_format_has_no_place_for_is_left_out(checkpoint):
    embedder = {"embedder": {"up": {"kernel": np.zeros((2, 2), np.float32)}}}
    model = MODELS["siglip"]
    _, plain = weights.to_huggingface(checkpoint.params, model)
    _, tensors = weights.to_huggingface(checkpoint.params | embedder, model)
    assert_identical(tensors, plain)


def test_sharded_checkpoints(checkpoint):
    tensors = load_file(checkpoint.file)
    checkpoint.file.unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:30]}
    shards["model-00002-of-00002.safetensors"] = names[30:]
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, checkpoint.folder / file)
    places = {name: file for file, part in shards.items() for name in part}
    index = checkpoint.folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_identical(weights.load(checkpoint.folder).params, checkpoint.params)
    (checkpoint.folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="not there: model-00002-of-00002.safetensors"):
        weights.load(checkpoint.folder)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_becomes_float32_without_a_change(checkpoint, dtype):
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)

    def halve(tensors):
        for name, tensor in tensors.items():
            tensors[name] = tensor.astype(kind)

    checkpoint.change(halve)
    found = weights.load(checkpoint.folder).params["image_tower"]["head"]["probe"]
    expected = checkpoint.params["image_tower"]["head"]["probe"]
    np.testing.assert_array_equal(found, expected.astype(kind).astype(np.float32), strict=True)


def test_naflex_at_its_own_resolution(siglip, tmp_path):
    config = json.loads(json.dumps(siglip.config))
    config["model_type"] = "siglip2"
    del config["vision_config"]["image_size"]
    config["vision_config"]["num_patches"] = 16
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(naflex(siglip.tensors), tmp_path / "model.safetensors")
    found = weights.load(tmp_path)
    assert (found.family, found.model) == ("siglip2", siglip.loaded.model)
    assert_identical(found.params, siglip.loaded.params)


def test_naflex_cuts_patches_as_we_do():
    processing = pytest.importorskip("transformers.models.siglip2.image_processing_pil_siglip2")
    from ccl_jax.models.image_tower import _patchify

    image = np.arange(12 * 12 * 3, dtype=np.float32).reshape(12, 12, 3)
    theirs = processing.convert_image_to_patches(image.transpose(2, 0, 1), 4)
    np.testing.assert_array_equal(_patchify(image[None], 3, 4, None)[0], theirs)


def test_buffers_are_left_over_and_named(checkpoint, caplog):
    name = "text_model.embeddings.position_ids"
    checkpoint.change(lambda t: t.update({name: np.arange(6)[None]}))
    with caplog.at_level("INFO", logger="absl"):
        found = weights.load(checkpoint.folder)
    assert_identical(found.params, checkpoint.params)
    assert f"{name} is left over, a buffer that counts positions" in caplog.text


def test_a_missing_bias_starts_where_it_is_told(clip):
    assert float(clip.loaded.params["bias"]) == -10
    found = weights.load(clip.folder, init_bias=-3.0)
    assert float(found.params["bias"]) == -3

"""Starting from a checkpoint: sizes, tokenizer and weights, and what is refused."""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from ccl_jax import weights
from ccl_jax.training import loop, pretrained


@pytest.fixture
def checkpoint(shared, tmp_path):
    """A Hugging Face folder with an image processor's config, and without a tokenizer."""
    folder = tmp_path / "siglip"
    shutil.copytree(shared / "golden" / "hf_siglip_tiny", folder)
    processor = {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 32, "width": 32},
        "resample": 2,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder)


@pytest.fixture
def config(make_config, checkpoint):
    config = make_config()
    with config.unlocked():
        config.model.image, config.model.text = {}, {}
    config.init_from = checkpoint
    config.data.tokenizer = "train"
    config.optimizer.warmup_steps = 1
    config.optimizer.learning_rate = 1e-12  # so that the weights stay what they are
    config.train.steps = 2
    config.train.checkpoint_every = 1
    return config


def settled_params(config, workdir):
    return jax.tree.map(np.asarray, loop.load_predictor(config, workdir).params)


def assert_near(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_sizes_and_image_options_come_from_the_checkpoint(config, tmp_path):
    config.model.text = {"length": 12}
    found = pretrained.settle(config, str(tmp_path))
    assert (found.model.image.width, found.model.image.image_size) == (32, 32)
    assert found.model.text.length == 12
    # SigLIP pools the last position: a phrase is padded as a caption is.
    assert found.data.phrase_length == 12
    assert found.data.mean == (0.4, 0.5, 0.6)
    assert (found.data.eval_transform, found.data.resample) == ("squash", "bilinear")
    config.data.image_options = "config"
    assert pretrained.settle(config, str(tmp_path)).data.mean == config.data.mean


def test_a_checkpoint_without_a_processor_leaves_the_config_as_it_is(config, tmp_path):
    os.remove(os.path.join(config.init_from, "preprocessor_config.json"))
    found = pretrained.settle(config, str(tmp_path))
    assert found.data.mean == config.data.mean


@pytest.mark.slow
def test_a_run_starts_from_the_checkpoint_and_another_from_that_run(config, tmp_path):
    first = str(tmp_path / "first")
    loop.run(config, first)
    params = settled_params(config, first)
    expected = weights.load(config.init_from).params
    # SigLIP starts above the bound of the recipe.
    assert np.exp(expected["log_scale"]) < 100 or params["log_scale"] == pytest.approx(np.log(100))
    for part in ("image_tower", "text_tower"):
        jax.tree.map(assert_near, params[part], expected[part])

    # The start is settled once: the run goes on without the checkpoint.
    shutil.rmtree(config.init_from)
    os.remove(os.path.join(first, "results.json"))
    assert loop.run(config, first)

    second = config.copy_and_resolve_references()
    second.init_from, second.data.tokenizer = first, ""
    loop.run(second, str(tmp_path / "second"))
    jax.tree.map(assert_near, settled_params(second, str(tmp_path / "second")), params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": ""}, "has no|holds no|tokenizer"),
        ({"golden": "hf_clip_tiny"}, "ends a text with id 2, the model pools at"),
        ({"init_from": "/nowhere/at/all"}, "there is no /nowhere/at/all"),
    ],
)
def test_what_cannot_be_started_from_is_told(config, tmp_path, shared, change, message):
    if "golden" in change:
        config.init_from = str(shared / "golden" / change["golden"])
    config.data.tokenizer = change.get("tokenizer", "train")
    config.init_from = change.get("init_from", config.init_from)
    with pytest.raises(ValueError, match=message):
        loop.run(config, str(tmp_path / "run"))

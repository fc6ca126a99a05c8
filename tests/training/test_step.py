"""The step: sharded equals single, the mask of the weight decay, the clamp of the scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax.training import optimizer, sharding
from ccl_jax.training.step import create_trainer

OBJECTIVE = {
    "siglip": {"weight": 1.0},
    "npc": {"weight": 1.0, "duplicates": "positive"},
    "xac": {"weight": 0.1, "sharpness": 10.0, "duplicates": "ignore"},
    "pacl": {"weight": 0.5},
}


def steps(config, batch, devices, count=3):
    mesh = sharding.create_mesh(jax.devices()[:devices])
    trainer = create_trainer(config, mesh, eot_id=2)
    state, history = trainer.init(), []
    for device_batch in sharding.to_devices([batch] * count, mesh):
        state, metrics = trainer.step(state, device_batch)
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


def test_eight_devices_train_as_one_does(make_config, batch):
    config = make_config(**OBJECTIVE)
    config.model.patch_embedder = True
    config.optimizer.clip_norm = 1.0
    single, history = steps(config, batch, 1)
    split, split_history = steps(config, batch, 8)
    assert history[0]["loss"] > history[-1]["loss"]  # the batch repeats: it must learn it
    for left, right in zip(history, split_history, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            assert left[name] == pytest.approx(right[name], rel=1e-4, abs=1e-5), name
    for left, right in zip(
        jax.tree.leaves(single.params), jax.tree.leaves(split.params), strict=True
    ):
        # Adam divides small gradients by their own size, rounding included.
        np.testing.assert_allclose(left, right, atol=2e-4)


def test_the_scale_stays_in_its_bounds(make_config, batch):
    config = make_config()
    config.model.init_scale = 90.0
    config.optimizer.max_scale = 20.0
    state, history = steps(config, batch, 1, count=1)
    assert history[0]["scale"] == pytest.approx(20.0)
    assert float(state.params["log_scale"]) == pytest.approx(np.log(20.0))


def test_bfloat16_computes_near_float32_with_float32_parameters(make_config, batch):
    config = make_config(**OBJECTIVE)
    config.model.patch_embedder = True
    _, exact = steps(config, batch, 1, count=1)
    config.model.dtype = "bfloat16"
    state, rough = steps(config, batch, 1, count=1)
    assert rough[0]["loss"] != exact[0]["loss"]
    assert rough[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.02)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


def test_weight_decay_spares_vectors_scale_and_probe(make_config):
    trainer = create_trainer(make_config(), sharding.create_mesh(jax.devices()[:1]), eot_id=2)
    params = jax.eval_shape(trainer.init).params
    mask = optimizer.decay_mask(params)
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): decays
        for path, decays in jax.tree_util.tree_leaves_with_path(mask)
    }
    assert not named["log_scale"] and not named["bias"]
    assert not named["image_tower/head/probe"]
    assert named["text_tower/token_embedding/embedding"]
    for name, decays in named.items():
        leaf = name.rsplit("/", 1)[-1]
        if leaf == "kernel":
            assert decays, name
        if leaf in ("bias", "scale"):
            assert not decays, name


def test_the_learning_rate_warms_up_and_falls_to_zero(make_config):
    config = make_config().optimizer
    config.learning_rate, config.warmup_steps = 0.4, 10
    schedule = optimizer.learning_rate(config, 110)
    assert float(schedule(0)) == 0.0
    assert float(schedule(5)) == pytest.approx(0.2)
    assert float(schedule(10)) == pytest.approx(0.4)
    assert float(schedule(60)) == pytest.approx(0.2)  # halfway down a cosine
    assert float(schedule(110)) == pytest.approx(0.0, abs=1e-8)

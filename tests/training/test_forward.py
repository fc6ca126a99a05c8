"""The forward pass: in micro-batches as in one, and which patches a step sees."""

import jax
import numpy as np
import pytest

from ccl_jax.models.presets import build_model
from ccl_jax.training import config as configs
from ccl_jax.training import forward, hlo, objective, parameters, sharding

OBJECTIVE = {
    "siglip": {"weight": 1.0},
    "npc": {"weight": 1.0, "duplicates": "positive"},
    "xac": {"weight": 0.1, "sharpness": 10.0},
}


@pytest.fixture
def config(make_config):
    config = make_config(**OBJECTIVE)
    with config.unlocked():
        config.model.image = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 1}
    return config


def program(config, devices=1):
    """`(params, batch, step) -> ((loss, metrics), gradient)`, compiled for the devices."""
    mesh = sharding.create_mesh(jax.devices()[:devices])
    model = build_model(config.model.to_dict(), eot_id=2)
    embed = forward.create_forward(config, model, mesh)

    def loss(params, batch, step):
        embeddings = embed(params, batch, step)
        return objective.total_loss(config.objective.to_dict(), embeddings, batch)

    whole = sharding.replicated(mesh)
    return jax.jit(
        jax.value_and_grad(loss, has_aux=True),
        in_shardings=(whole, sharding.sharded(mesh), whole),
        out_shardings=whole,
    )


def start(config):
    model = build_model(config.model.to_dict(), eot_id=2)
    shapes = jax.eval_shape(lambda: parameters.initial(model, 0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape, scale=0.2)), shapes)
    return params | {"log_scale": np.float32(1.5), "bias": np.float32(-3)}


def assert_same(left, right, **tolerance):
    (loss, metrics), gradient = left
    (other_loss, other_metrics), other_gradient = right
    np.testing.assert_allclose(loss, other_loss, **tolerance)
    assert metrics.keys() == other_metrics.keys()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance), gradient, other_gradient
    )


@pytest.mark.slow
def test_micro_batches_have_loss_and_gradient_of_the_whole_batch(config, batch):
    config.model.patch_dropout = 0.5
    params = start(config)
    whole = program(config)(params, batch, 3)
    config.train.micro_batch = 8
    configs.check_config(config)
    for devices in (1, 4):
        parts = program(config, devices)(params, batch, 3)
        assert_same(parts, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_captions_and_phrases_of_one_length_share_a_pass(config, batch):
    config.model.text.length = 5
    batch["text"] = batch["text"][:, :5]
    model = build_model(config.model.to_dict(), eot_id=2)
    params = start(config)
    apart = model.apply({"params": params}, text=batch["text"], phrase_text=batch["phrase_text"])
    mesh = sharding.create_mesh(jax.devices()[:4])
    placed = jax.device_put(batch, sharding.sharded(mesh))
    run = jax.jit(forward.create_forward(config, model, mesh)).lower(params, placed, 0).compile()
    together = run(params, placed, 0)
    np.testing.assert_allclose(together.text, apart.text, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(together.phrase, apart.phrase, rtol=1e-5, atol=1e-6)
    assert not hlo.collectives(run.as_text())


def test_patches_are_a_function_of_seed_and_step(config, batch):
    def embed(config):
        with config.unlocked():
            config.objective = {"siglip": {"weight": 1.0}}
        model = build_model(config.model.to_dict(), eot_id=2)
        mesh = sharding.create_mesh(jax.devices()[:1])
        apply = jax.jit(forward.create_forward(config, model, mesh))
        return lambda step: np.asarray(apply(start(config), batch, step).image)

    plain = embed(config)
    np.testing.assert_array_equal(plain(5), plain(6))
    config.model.patch_dropout = 0.5
    dropped = embed(config)
    found = dropped(5)
    np.testing.assert_array_equal(found, dropped(5))
    assert (found != dropped(6)).any(axis=1).all()
    assert (found != plain(5)).any(axis=1).all()
    config.seed = 1
    assert (found != embed(config)(5)).any(axis=1).all()


def test_phrases_attend_over_the_kept_patches(config, batch):
    config.model.patch_dropout = 0.75
    model = build_model(config.model.to_dict(), eot_id=2)
    mesh = sharding.create_mesh(jax.devices()[:1])
    embed = jax.eval_shape(forward.create_forward(config, model, mesh), start(config), batch, 0)
    assert embed.image_tokens.shape == (16, 4, 16)
    assert embed.patch_emb is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train.micro_batch", 5, r"micro_batch = 5 must divide .*batch_size = 16"),
        ("train.micro_batch", 1, r"multiple of 2 \(1 devices x config.data.phrase_group\)"),
        ("train.micro_batch", -4, "micro_batch = -4"),
        ("model.patch_dropout", 1.0, "patch_dropout = 1.0; it is a share"),
        ("model.remat", "some", "remat = 'some'; use one of 'none', 'dots', 'full'"),
        ("model.attention", "flash", "attention = 'flash'; use one of"),
    ],
)
def test_what_does_not_fit_is_named(config, field, value, message):
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        configs.check_config(config)

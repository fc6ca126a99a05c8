"""The optimiser against AdamW in NumPy; what its lists, layers and names of parts mean."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ccl_jax.models.presets import build_model
from ccl_jax.training import optimizer, parameters
from ccl_jax.training.config import check_config, default_config

CLIP = {"pool": "cls", "embed_dim": 16}
STEPS = 4


def shapes(image=None, patch_embedder=False):
    fields = {"preset": "tiny", "image": image or {}, "patch_embedder": patch_embedder}
    text = {"embed_dim": image["embed_dim"]} if image else {}
    model = build_model(fields | {"text": text}, eot_id=2)
    return jax.eval_shape(lambda: parameters.initial(model, 0))


def make(**changes):
    config = default_config().optimizer
    config.update({"warmup_steps": 1, "learning_rate": 0.1} | changes)
    return config


@pytest.fixture
def small():
    """A few parameters under the names of the model's, and gradients for every step."""
    rng = np.random.default_rng(0)
    sizes = {
        "image_tower/patch_embedding/kernel": (3, 2),
        "image_tower/block_0/mlp/up/kernel": (2, 2),
        "image_tower/block_0/mlp/up/bias": (2,),
        "image_tower/head/probe": (1, 1, 2),
        "text_tower/token_embedding/embedding": (4, 2),
        "log_scale": (),
    }
    draw = lambda: {k: np.float32(rng.normal(size=s)) for k, s in sizes.items()}  # noqa: E731
    return draw(), [draw() for _ in range(STEPS)]


def train(transform, params, gradients):
    params = parameters.unflatten(jax.tree.map(jnp.asarray, params))
    state = transform.init(params)
    for gradient in gradients:
        updates, state = transform.update(parameters.unflatten(gradient), state, params)
        params = optax.apply_updates(params, updates)
    return parameters.flatten(params), state


def adamw_in_numpy(config, params, gradients, multipliers, decays):
    """Loshchilov & Hutter (2019), algorithm 2, with one rate and one decay a parameter."""
    schedule = [0.0] + [
        0.5 * config.learning_rate * (1 + np.cos(np.pi * i / (STEPS - 1))) for i in range(STEPS - 1)
    ]
    params = {k: np.float64(v) for k, v in params.items()}
    m = {k: np.zeros_like(v) for k, v in params.items()}
    v = {k: np.zeros_like(x) for k, x in params.items()}
    for t, (rate, gradient) in enumerate(zip(schedule, gradients, strict=True), 1):
        norm = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in gradient.values()))
        clip = min(1.0, config.clip_norm / norm) if config.clip_norm else 1.0
        for k, g in gradient.items():
            g = clip * np.float64(g)
            m[k] = config.b1 * m[k] + (1 - config.b1) * g
            v[k] = config.b2 * v[k] + (1 - config.b2) * g**2
            adam = m[k] / (1 - config.b1**t) / (np.sqrt(v[k] / (1 - config.b2**t)) + config.eps)
            params[k] = params[k] - multipliers[k] * rate * (adam + decays[k] * params[k])
    return params


def test_without_lists_it_is_adamw_to_the_bit(small):
    params, gradients = small
    config = make()
    schedule = optimizer.learning_rate(config, STEPS)
    plain = optax.adamw(
        schedule, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.1, mask=optimizer.decay_mask
    )
    expected, state = train(plain, params, gradients)
    everywhere = {"lr_multipliers": ((".*", 1.0),), "weight_decays": ((".*", "default"),)}
    for changes in ({}, everywhere):
        found, own_state = train(
            optimizer.create_optimizer(make(**changes), STEPS, parameters.unflatten(params)),
            params,
            gradients,
        )
        for path, value in expected.items():
            np.testing.assert_array_equal(found[path], value, err_msg=path)
        if not changes:  # so that checkpoints of before fit
            assert jax.tree.structure(own_state) == jax.tree.structure(state)


def test_multipliers_and_decays_are_those_of_adamw_in_numpy(small):
    params, gradients = small
    config = make(
        lr_multipliers=(("text_tower/.*", 0.1), ("log_scale", 3), (".*", 1.0)),
        weight_decays=((".*/probe", 0.5), ("text_tower/.*", 0), (".*", "default")),
        layer_decay=0.5,
        clip_norm=0.7,
    )
    # By hand: two towers, one with one block and one without any (0.5 ** 2 and 0.5 ** 1).
    multipliers = dict(zip(params, (0.25, 0.5, 0.5, 1.0, 0.05, 3.0), strict=True))
    decays = dict(zip(params, (0.1, 0.1, 0.0, 0.5, 0.0, 0.0), strict=True))
    expected = adamw_in_numpy(config, params, gradients, multipliers, decays)
    transform = optimizer.create_optimizer(config, STEPS, parameters.unflatten(params))
    found, _ = train(transform, params, gradients)
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=2e-5, atol=2e-6, err_msg=path)
        assert not np.allclose(found[path], params[path], atol=1e-3), path


def test_frozen_parameters_are_no_part_of_it(small):
    params, gradients = small
    config = make(frozen="image", clip_norm=0.7)
    tree = parameters.unflatten(params)
    paths = optimizer.trainable_paths(config, tree)
    assert paths == {"text_tower/token_embedding/embedding", "log_scale"}
    kept = lambda values: {k: x for k, x in values.items() if k in paths}  # noqa: E731
    found, state = train(
        optimizer.create_optimizer(config, STEPS, tree), kept(params), [*map(kept, gradients)]
    )
    # As if the others did not exist: neither moments nor a share of the clipped norm.
    alone = parameters.unflatten(kept(params))
    expected, _ = train(
        optimizer.create_optimizer(make(clip_norm=0.7), STEPS, alone),
        kept(params),
        [*map(kept, gradients)],
    )
    for path in paths:
        np.testing.assert_array_equal(found[path], expected[path])
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 2 * (8 + 1) + 2  # and counts


@pytest.mark.parametrize("image", [None, CLIP], ids=["siglip", "clip"])
def test_a_list_of_regexes_says_the_same_as_the_default_mask(image):
    params = shapes(image, patch_embedder=True)
    matrices = r".*/(kernel|embedding|position_embedding|class_token)"
    config = make(weight_decays=((matrices, 0.1), (".*", 0.0)))
    assert optimizer.weight_decays(config, params) == optimizer.weight_decays(make(), params)


@pytest.mark.parametrize("image", [None, CLIP], ids=["siglip", "clip"])
def test_layers_fall_from_the_head_to_the_embeddings(image):
    params = shapes(image, patch_embedder=True)
    found = optimizer.layer_multipliers(parameters.flatten(params), 0.5)
    for path, value in found.items():
        tower, _, rest = path.partition("/")
        depth = {"image_tower": 3, "text_tower": 2}.get(tower)
        name = rest.split("/")[0]
        if depth is None or name in ("norm_post", "head", "projection"):
            expected = 1.0
        elif name.startswith("block_"):
            expected = 0.5 ** (depth - int(name[-1]))
        else:
            assert "embedding" in name or name in ("class_token", "norm_pre")
            expected = 0.5 ** (depth + 1)
        assert value == expected, path


@pytest.mark.parametrize(
    ("frozen", "trained"),
    [
        ("image", {"text_tower", "embedder", "log_scale", "bias"}),
        ("text", {"image_tower", "embedder", "log_scale", "bias"}),
        ("towers", {"embedder", "log_scale", "bias"}),
    ],
)
def test_what_the_names_of_parts_freeze(frozen, trained):
    params = shapes(patch_embedder=True)
    found = optimizer.trainable_paths(make(frozen=frozen), params)
    assert found == {p for p in parameters.flatten(params) if p.split("/")[0] in trained}
    # The list goes on where the name ends, and may name what is frozen already.
    both = make(frozen=frozen, lr_multipliers=((".*_tower/.*", 1.0), ("log_scale|bias", None)))
    with pytest.raises(ValueError, match="nothing about embedder/"):
        optimizer.trainable_paths(both, params)
    both.lr_multipliers += (("embedder/.*", 2.0),)
    assert optimizer.trainable_paths(both, params) == found - {"log_scale", "bias"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frozen": "vision"}, "frozen = 'vision'; use one of .*'image'"),
        ({"frozen": "towers"}, "nothing to train but log_scale and bias.*patch_embedder = True"),
        ({"layer_decay": 1.5}, r"layer_decay = 1\.5; it must be above 0 and at most 1"),
        ({"layer_decay": 0.0}, r"layer_decay = 0\.0"),
        ({"lr_multipliers": (("head/.*", 0.1), (".*", 1.0))}, "lr_multipliers holds 'head/"),
        ({"lr_multipliers": (("image_tower/.*", 0.1),)}, "lr_multipliers says nothing about"),
        ({"lr_multipliers": ((".*", -1.0),)}, r"lr_multipliers holds the value -1\.0"),
        ({"lr_multipliers": ((".*", "1"),)}, "lr_multipliers holds the value '1'"),
        ({"weight_decays": ((".*", None),)}, "weight_decays holds the value None.*'default'"),
        ({"weight_decays": ((".*/kernel", 0.1),)}, "weight_decays says nothing about"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_data_is_read(changes, message):
    config = default_config()
    config.model.preset = "tiny"
    with config.unlocked():
        config.data.source = {"kind": "scenes"}
    config.optimizer.update(changes)
    with pytest.raises(ValueError, match=message):
        check_config(config)

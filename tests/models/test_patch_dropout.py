"""Patch dropout: how many patches stay, and that those that stay are seen as they are."""

import jax
import numpy as np
import pytest

from ccl_jax.models.image_tower import ImageTower, draw_patches
from ccl_jax.models.presets import build_model

TOWER = {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2}
CLS = {"pool": "cls", "embed_dim": 12}
IMAGE = np.float32(np.random.default_rng(0).normal(size=(3, 16, 16, 3)))


@pytest.mark.parametrize(
    ("patches", "dropout", "count"), [(196, 0.5, 98), (196, 0.0, 196), (49, 0.5, 24), (4, 0.95, 1)]
)
def test_so_many_different_patches_are_kept(patches, dropout, count):
    kept = np.asarray(draw_patches(jax.random.key(0), 50, patches, dropout))
    assert kept.shape == (50, count)
    assert kept.min() >= 0 and kept.max() < patches
    assert (np.diff(kept, axis=1) > 0).all()  # ascending, so no patch twice


def test_every_patch_is_kept_as_often():
    kept = draw_patches(jax.random.key(3), 4000, 16, 0.5)
    counts = np.bincount(np.asarray(kept).ravel(), minlength=16)
    # Each is binomial of 4000 draws at 1/2: 5 standard deviations are 158.
    assert abs(counts - 2000).max() < 158


def test_a_draw_is_a_function_of_its_key():
    key = jax.random.key(1)
    first, again = (np.asarray(draw_patches(key, 8, 64, 0.5)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = np.asarray(draw_patches(jax.random.fold_in(key, 1), 8, 64, 0.5))
    assert (first != other).any(axis=1).all()  # every image draws anew
    assert len({row.tobytes() for row in first}) == 8  # and none as another


@pytest.mark.parametrize("pool", ["map", "cls"])
def test_the_tower_sees_the_kept_patches_alone(pool):
    """One patch of each image is what a tower for that patch sees, at its position."""
    options = CLS if pool == "cls" else {}
    tower, small = (
        ImageTower(**TOWER, **options),
        ImageTower(**(TOWER | {"image_size": 8}), **options),
    )
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: tower.init(jax.random.key(0), IMAGE, tokens=True))
    params = jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape, scale=0.5)), shapes)
    kept = np.array([[3], [0], [2]])
    found = jax.jit(lambda p: tower.apply(p, IMAGE, tokens=True, kept=kept))(params)
    assert found.tokens.shape[1] == found.patches.shape[1] == 1

    alone = jax.jit(lambda p, x: small.apply(p, x, tokens=True))
    table = params["params"]["position_embedding"]
    for i, place in enumerate(kept[:, 0]):
        top, left = 8 * (place // 2), 8 * (place % 2)
        rows = [0, 1 + place] if pool == "cls" else [place]
        own = {"params": params["params"] | {"position_embedding": table[rows]}}
        expected = alone(own, IMAGE[i : i + 1, top : top + 8, left : left + 8])
        for name in ("pooled", "tokens", "patches"):
            a, b = getattr(found, name)[i], getattr(expected, name)[0]
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=name)


def test_the_model_drops_patches_only_where_it_is_told_to():
    config = {"image": TOWER, "text": TOWER | {"vocab_size": 5, "length": 4}}
    for part in ("image_size", "patch_size"):
        config["text"].pop(part)
    key = jax.random.key(0)
    assert build_model(config, eot_id=2).draw_patches(key, 3) is None
    model = build_model(config | {"patch_dropout": 0.5}, eot_id=2)
    kept = model.draw_patches(key, 3)
    assert kept.shape == (3, 2)
    shapes = jax.eval_shape(lambda: model.init(key, IMAGE, image_tokens=True))
    count = lambda **given: jax.eval_shape(  # noqa: E731
        lambda p: model.apply(p, IMAGE, image_tokens=True, **given), shapes
    ).image_tokens.shape[1]
    assert (count(kept_patches=kept), count()) == (2, 4)

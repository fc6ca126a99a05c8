"""The predictor: batches over devices, kinds of tokens, and what its fingerprint tells apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax.data.text import Tokenizer
from ccl_jax.evaluation.embeddings import Predictor
from ccl_jax.models.presets import build_model

IMAGE = {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2}
TEXT = {"vocab_size": 64, "length": 6, "width": 16, "depth": 1, "heads": 2}


@pytest.fixture(autouse=True)
def quick():
    """The models are small: compiling is what takes long."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["a red dog", "a blue cat", "two birds"], 64)


def make(tokenizer, *, embedder=False, batch_size=8, **options):
    model = build_model(
        {"image": IMAGE, "text": TEXT, "patch_embedder": embedder}, eot_id=tokenizer.eot_id
    )
    shapes = jax.eval_shape(
        lambda: model.init(
            jax.random.key(0), jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 6), jnp.int32),
            patch_emb=embedder,
        )["params"]
    )  # fmt: skip
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), shapes)
    return Predictor(model, params, tokenizer, batch_size=batch_size, **options)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (19, 16, 16, 3), np.uint8)


def test_batches_over_devices_are_the_whole_at_once(tokenizer, pixels):
    assert jax.device_count() == 8
    predictor = make(tokenizer)
    found = predictor.images(pixels)
    assert len(jax.tree.leaves(predictor.params)[0].sharding.device_set) == 8
    params = jax.tree.map(np.asarray, predictor.params)
    image = (pixels.astype(np.float32) / 255 - 0.5) / 0.5
    whole = jax.jit(lambda p, x: predictor.model.apply({"params": p}, image=x))(params, image)
    np.testing.assert_allclose(found, whole.image, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    # A batch that does not divide by the devices is made larger.
    predictor.batch_size = 5
    np.testing.assert_allclose(predictor.images(pixels), found, atol=1e-5)
    # Parameters on one device give the same.
    predictor.params = jax.device_put(jax.tree.map(np.asarray, predictor.params), jax.devices()[3])
    np.testing.assert_allclose(predictor.images(pixels), found, atol=1e-5)


def test_kinds_of_tokens(tokenizer, pixels):
    plain, pacl = make(tokenizer), make(tokenizer, embedder=True)
    assert plain.image_tokens(pixels[:2]).shape == (2, 4, 16)
    own, other = (pacl.image_tokens(pixels[:2], kind) for kind in ("patch_emb", "image_tokens"))
    np.testing.assert_array_equal(pacl.image_tokens(pixels[:2]), own)
    assert not np.allclose(own, other)
    np.testing.assert_allclose(np.linalg.norm(own, axis=-1), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="no patch embedder"):
        plain.image_tokens(pixels[:2], "patch_emb")
    with pytest.raises(ValueError, match="must be one of"):
        plain.image_tokens(pixels[:2], "patches")


def test_nothing_to_embed(tokenizer):
    with pytest.raises(ValueError, match="nothing to embed"):
        make(tokenizer).images(np.zeros((0, 16, 16, 3), np.uint8))


def test_fingerprint_tells_models_apart(tokenizer):
    prints = {
        "same": make(tokenizer).fingerprint(),
        "mean": make(tokenizer, mean=(0.4, 0.5, 0.5)).fingerprint(),
        "transform": make(tokenizer, transform="center_crop").fingerprint(),
        "tokenizer": make(Tokenizer.train(["other words here"], 64)).fingerprint(),
    }
    changed = make(tokenizer)
    changed.params["bias"] = changed.params["bias"] + np.float32(1)
    prints["weights"] = changed.fingerprint()
    assert len(set(prints.values())) == len(prints)
    # Neither the batch nor where the parameters lie matters.
    again = make(tokenizer, batch_size=4)
    again.params = jax.tree.map(jnp.asarray, again.params)
    assert again.fingerprint() == prints["same"]

"""Dense, in blocks and sharded: one value, one gradient, one set of metrics."""

import functools
import types

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ARRAYS, CASES
from jax.sharding import AxisType, PartitionSpec

from ccl_jax import losses
from ccl_jax.losses import blocks

# Between them they go through every line that a layout has; ccl is SigLIP, NPC and XAC.
NAMES = [
    "ccl",
    "gathered",
    "xac_normalized",
    "clip_masked",
    "clip_many",
    "siglip_many",
    "pacl_many",
]
SPLIT, WHOLE = PartitionSpec("data"), PartitionSpec()


def program(**layout):
    """`(arrays, integers) -> (sum of all losses by weight, {name: (loss, metrics)})`.

    One program for all losses: a layout then costs one compilation.
    """

    def loss(arrays, integers):
        x = types.SimpleNamespace(**arrays, **integers)
        found = {}
        for name in NAMES:
            options = dict(layout)
            if not name.startswith("siglip"):
                options.pop("exchange", None)
            found[name] = CASES[name].loss(x, **options)
        return sum(k * found[name][0] for k, name in enumerate(NAMES, 1)), found

    return loss


@functools.cache
def dense():
    return jax.jit(jax.value_and_grad(program(), has_aux=True))


def assert_same(found, expected):
    (_, found), gradients = found
    (_, values), expected_gradients = expected
    for name in NAMES:
        loss, metrics = values[name]
        np.testing.assert_allclose(found[name][0], loss, rtol=1e-5, err_msg=name)
        assert found[name][1].keys() == metrics.keys()
        for key, value in metrics.items():
            np.testing.assert_allclose(
                found[name][1][key], value, rtol=1e-5, atol=1e-6, err_msg=f"{name} {key}"
            )
    for key, value in expected_gradients.items():
        # The sum of seven losses, weighted up to seven times.
        np.testing.assert_allclose(gradients[key], value, rtol=1e-4, atol=2e-5, err_msg=key)


@pytest.mark.parametrize(("chunk_size", "texts"), [(3, 5), (100, 128)])
def test_blocks_give_what_dense_gives(chunk_size, texts, inputs, monkeypatch):
    monkeypatch.setattr(blocks, "text_block", lambda images, rows: texts)
    run = jax.jit(jax.value_and_grad(program(chunk_size=chunk_size), has_aux=True))
    arguments = cases.arguments(inputs)
    assert_same(run(*arguments), dense()(*arguments))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((64, 196, 768), 8),  # 13 would leave a block of 12
        ((128, 256, 1152), 4),
        ((63, 36, 64), 63),  # all at once
        ((4096, 768), 2048),
        ((8, 2048, 2048), 1),
        ((62, 196, 768), 13),  # no divisor near
    ],
)
def test_auto_chooses_blocks_that_fit(shape, expected):
    spec = blocks.Spec(None, "negative", 0.0, "auto")
    assert blocks.resolve(spec, jax.ShapeDtypeStruct(shape, np.float32)).chunk_size == expected


def sharded(function, devices, out_specs, check_vma=True):
    """`function(arrays, integers)` under shard_map, images and texts split over devices."""
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    arrays = {name: SPLIT for name in ARRAYS} | {"scale": WHOLE, "bias": WHOLE}
    return jax.shard_map(
        function, mesh=mesh, in_specs=(arrays, SPLIT), out_specs=out_specs, check_vma=check_vma
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "layout"),
    [
        (1, {"chunk_size": 3}),
        (2, {"chunk_size": 3, "exchange": "ring"}),
        (8, {"exchange": "ring"}),
        (8, {"chunk_size": 1}),
    ],
    ids=str,
)
@pytest.mark.parametrize("check_vma", [True, False])
def test_sharded_gives_what_one_device_gives(devices, layout, check_vma, inputs):
    mapped = sharded(program(**layout, axis_name="data"), devices, WHOLE, check_vma)
    run = jax.jit(jax.value_and_grad(mapped, has_aux=True))
    arguments = cases.arguments(inputs)
    assert_same(run(*arguments), dense()(*arguments))


@pytest.mark.slow
def test_gradient_taken_inside_shard_map_is_that_of_the_global_batch(inputs):
    inside = jax.value_and_grad(program(chunk_size=2, axis_name="data"), has_aux=True)
    gradients = {name: SPLIT for name in ARRAYS} | {"scale": WHOLE, "bias": WHOLE}
    run = jax.jit(sharded(inside, 4, (WHOLE, gradients)))
    arguments = cases.arguments(inputs)
    assert_same(run(*arguments), dense()(*arguments))


def test_a_ring_over_two_axes(inputs):
    mesh = jax.make_mesh((2, 2), ("a", "b"), (AxisType.Auto,) * 2, devices=jax.devices()[:4])
    split = PartitionSpec(("a", "b"))

    def loss(image, text, scale):
        options = {"scale": scale, "bias": -3.0, "axis_name": ("a", "b"), "exchange": "ring"}
        return losses.siglip_loss(image, text, **options)[0]

    mapped = jax.shard_map(loss, mesh=mesh, in_specs=(split, split, WHOLE), out_specs=WHOLE)
    image, text = np.float32(inputs.image), np.float32(inputs.text)
    found = jax.jit(jax.value_and_grad(mapped, argnums=(0, 1, 2)))(image, text, 8.0)
    expected = jax.jit(
        jax.value_and_grad(
            lambda *x: losses.siglip_loss(*x[:2], scale=x[2], bias=-3.0)[0], argnums=(0, 1, 2)
        )
    )(image, text, 8.0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected
    )


@pytest.mark.parametrize("layout", [{}, {"chunk_size": 3}], ids=str)
def test_what_is_masked_may_be_nan(layout, inputs):
    """Padding, masked captions, images and tokens reach neither value nor gradient."""
    arrays, integers = cases.arguments(inputs)
    hidden = {
        "phrase": ~(inputs.phrase_where & (inputs.phrase_image >= 0)),
        "text": ~inputs.image_where,
        "image": ~inputs.image_where,
        "tokens": ~inputs.token_where,
    }
    reads = {
        "clip_masked": ("text", "image"),
        "siglip_masked": ("text", "image"),
        "pacl_many": ("phrase", "text", "tokens"),
    }

    def loss(arrays):
        x = types.SimpleNamespace(**arrays, **integers)
        return sum(CASES[name].loss(x, **layout)[0] for name in reads)

    spoilt = dict(arrays)
    for key, mask in hidden.items():
        spoilt[key] = jnp.where(
            mask[(..., *[None] * (arrays[key].ndim - mask.ndim))], jnp.nan, arrays[key]
        )
    run = jax.jit(jax.value_and_grad(loss))
    value, gradients = run(spoilt)
    expected, expected_gradients = run(arrays)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for key, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected_gradients[key], rtol=1e-5, atol=1e-7)
        if key in hidden:
            np.testing.assert_array_equal(gradient[hidden[key]], 0)


@pytest.mark.parametrize("layout", [{}, {"chunk_size": 3}], ids=str)
def test_nan_that_counts_is_not_hidden(layout, inputs):
    loss, _ = losses.siglip_loss(
        np.float32(inputs.image).copy(),
        np.full((8, 12), np.nan, np.float32),
        scale=1.0,
        bias=0.0,
        **layout,
    )
    assert np.isnan(loss)


@pytest.mark.parametrize("scores", ["dot", "cosine"])
@pytest.mark.parametrize("values", ["raw", "normalized"])
@pytest.mark.parametrize("texts", [3, 16])  # pooled vectors, and products of tokens
def test_pooled_similarity_in_blocks(scores, values, texts, inputs):
    tokens, text = np.float32(inputs.raw_tokens), np.float32(inputs.phrase[:texts])
    weights = np.float32(np.random.default_rng(0).normal(size=(8, texts)))

    def total(chunk_size):
        def loss(tokens, text):
            similarity = losses.pooled_similarity(
                tokens,
                text,
                sharpness=2.0,
                scores=scores,
                values=values,
                token_where=inputs.token_where,
                chunk_size=chunk_size,
            )
            return jnp.sum(weights * similarity), similarity

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(tokens, text)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), total(3), total(None)
    )


def test_effective_patches_is_the_perplexity_of_the_attention(inputs):
    tokens, phrase = inputs.tokens[:2], inputs.phrase[:2]
    owner = np.array([0, 1], np.int32)
    _, metrics = losses.xac_loss(
        np.float32(tokens), np.float32(phrase), owner, scale=1.0, bias=0.0, sharpness=6.0
    )
    expected = []
    for patches, query in zip(tokens, phrase, strict=True):
        weights = np.exp(6 * patches @ query)
        weights /= weights.sum()
        expected.append(np.exp(-np.sum(weights * np.log(weights))))
    np.testing.assert_allclose(metrics["effective_patches"], np.mean(expected), rtol=1e-5)
    assert 1 < metrics["effective_patches"] < 5

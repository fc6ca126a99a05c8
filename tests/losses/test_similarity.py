"""The primitive: text queries against images pooled under their attention."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ccl_jax import losses

OPTIONS = list(itertools.product(("dot", "cosine"), ("raw", "normalized")))
every_option = pytest.mark.parametrize(("scores", "values"), OPTIONS)


@functools.cache
def compiled(scores, values):
    """Jitted `(weights, tokens, queries) -> (similarity, gradients of its weighted sum)`."""

    def weighted(weights, tokens, queries):
        out = losses.pooled_similarity(tokens, queries, sharpness=6.0, scores=scores, values=values)
        return jnp.sum(weights * out), out

    def run(*arguments):
        gradients, out = jax.grad(weighted, (1, 2), has_aux=True)(*arguments)
        return out, gradients

    return jax.jit(run)


def run(options, tokens, queries, weights=None):
    weights = np.ones((len(tokens), len(queries))) if weights is None else weights
    arguments = (jnp.asarray(x, jnp.float32) for x in (weights, tokens, queries))
    return jax.tree.map(np.asarray, compiled(*options)(*arguments))


@every_option
def test_equals_the_loop(scores, values, inputs):
    found, _ = run((scores, values), inputs.raw_tokens, inputs.phrase)
    expected = oracles.pooled(inputs.raw_tokens, inputs.phrase, 6.0, scores, values)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert abs(expected).max() <= 1


@every_option
def test_gradient_equals_differences_of_the_loop(scores, values, inputs):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(8, 16))
    at = {"tokens": inputs.raw_tokens, "queries": inputs.phrase}
    _, gradients = run((scores, values), *at.values(), weights)
    for (name, value), gradient in zip(at.items(), gradients, strict=True):
        step = rng.normal(size=value.shape)
        step *= 1e-5 / np.linalg.norm(step)
        up, down = (
            np.sum(weights * oracles.pooled(*moved.values(), 6.0, scores, values))
            for moved in (at | {name: value + step}, at | {name: value - step})
        )
        slope = np.sum(gradient * step) / 1e-5
        np.testing.assert_allclose(slope, (up - down) / 2e-5, rtol=1e-3, atol=1e-4, err_msg=name)


def test_by_hand():
    # Attention exp(log 3) : 1, so p = (3, 1) / 4 and the cosine with (1, 0) is 3 / sqrt 10.
    tokens = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
    found = losses.pooled_similarity(tokens, jnp.eye(2)[:1], sharpness=float(np.log(3)))
    np.testing.assert_allclose(found, [[3 / np.sqrt(10)]], rtol=1e-6)


def test_one_token_is_a_cosine_whatever_the_sharpness(inputs):
    tokens = np.float32(inputs.raw_tokens[:, :1])
    found = losses.pooled_similarity(tokens, np.float32(inputs.phrase), sharpness=123.0)
    unit = tokens[:, 0] / np.linalg.norm(tokens[:, 0], axis=-1, keepdims=True)
    np.testing.assert_allclose(found, unit @ inputs.phrase.T, rtol=1e-4, atol=1e-6)


@every_option
@pytest.mark.parametrize("zeros", ["one token", "one image", "one query"])
def test_zero_vectors_give_finite_gradients(scores, values, zeros, inputs):
    tokens, queries = inputs.raw_tokens.copy(), inputs.phrase.copy()
    {"one token": tokens[2, 3], "one image": tokens[2], "one query": queries[5]}[zeros][...] = 0
    found, gradients = run((scores, values), tokens, queries)
    assert np.isfinite(found).all()
    for gradient in gradients:
        # Not merely finite: a gradient of 1e19 would end a run as a NaN does.
        assert abs(gradient).max() < 1e3
    if zeros == "one image":
        np.testing.assert_array_equal(found[2], 0)


def test_unit_keeps_zero_and_its_gradient_finite():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(losses.unit(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    gradient = jax.grad(lambda x: losses.unit(x)[:, 0].sum())(x)
    # d(x / |x|) / dx = (1 - u u^T) / |x|, first row of it: (1 - 0.36, -0.48) / 5.
    np.testing.assert_allclose(gradient, [[0.128, -0.096], [0, 0]], atol=1e-7)


def test_sharpness_has_a_gradient():
    tokens, query = jnp.array([[[1.0, 0.0], [0.0, 1.0]]]), jnp.array([[0.8, 0.6]])
    found = jax.grad(lambda s: losses.pooled_similarity(tokens, query, sharpness=s)[0, 0])(1.0)
    # Attention (e, 1 - e), e = sigmoid(0.2 s), gives f(e) = (0.8 e + 0.6 (1 - e)) / |(e, 1 - e)|.
    e = 1 / (1 + np.exp(-0.2))
    norm = np.hypot(e, 1 - e)
    df_de = 0.2 / norm - (0.6 + 0.2 * e) * (2 * e - 1) / norm**3
    np.testing.assert_allclose(found, df_de * e * (1 - e) * 0.2, rtol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "queries", "options", "message"),
    [
        ((2, 3), (4, 3), {}, r"\(2, 3\)"),
        ((2, 5, 3), (3,), {}, r"\(3,\)"),
        ((2, 5, 3), (4, 2), {}, "same width"),
        ((2, 5, 3), (4, 3), {"scores": "cosin"}, "'dot' or 'cosine'"),
        ((2, 5, 3), (4, 3), {"values": "unit"}, "'raw' or 'normalized'"),
    ],
)
def test_what_does_not_fit_is_named(tokens, queries, options, message):
    with pytest.raises(ValueError, match=message):
        losses.pooled_similarity(jnp.ones(tokens), jnp.ones(queries), **options)

"""Losses small enough to work out on paper, their metrics, and what they refuse."""

import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ccl_jax import losses
from ccl_jax.losses import targets

EYE = jnp.eye(2)
SHARED = {"scale": 2.0, "bias": 1.0}


def softplus(x):
    return np.log1p(np.exp(x))


def test_clip():
    # Both rows and columns of 3 I: log(e^3 + e^0) - 3.
    loss, _ = losses.clip_loss(EYE, EYE, scale=3.0)
    np.testing.assert_allclose(loss, np.log(np.exp(3) + 1) - 3, rtol=1e-5)


def test_clip_averages_both_directions():
    # logits (0, 0 | ln 3, 0): rows cost ln 2 and ln 4, columns ln 4 and ln 2.
    image = jnp.array([[0.0, 0.0], [np.log(3), 0.0]], jnp.float32)
    loss, _ = losses.clip_loss(image, EYE, scale=1.0)
    np.testing.assert_allclose(loss, (np.log(2) + np.log(4)) / 2, rtol=1e-6)


def test_siglip_divides_by_images():
    # Two pairs with logit 2 + 1, two others with logit 1; two images.
    loss, metrics = losses.siglip_loss(EYE, EYE, **SHARED)
    np.testing.assert_allclose(loss, softplus(-3) + softplus(1), rtol=1e-6)
    assert {k: float(v) for k, v in metrics.items()} == {
        **dict.fromkeys([f"positive_logit_{k}" for k in ("mean", "min", "max")], 3.0),
        **dict.fromkeys([f"negative_logit_{k}" for k in ("mean", "min", "max")], 1.0),
        "image_norm": 1.0,
        "text_norm": 1.0,
    }


@pytest.mark.parametrize(
    ("duplicates", "pairs", "positives"),
    [
        # Image 0 has cosine 1 with both phrases, image 1 has 0; both say the same phrase.
        ("negative", [softplus(-3), softplus(1), softplus(-1), softplus(3)], [3, 1]),
        ("ignore", [softplus(-3), softplus(-1)], [3, 1]),
        ("positive", [softplus(-3), softplus(-1), softplus(-1), softplus(-3)], [3, 1, 3, 1]),
    ],
)
def test_npc_of_a_phrase_that_two_images_share(duplicates, pairs, positives):
    loss, metrics = losses.npc_loss(
        EYE,
        EYE[jnp.array([0, 0])],
        jnp.array([0, 1]),
        phrase_ids=jnp.array([[7, 2], [7, 2]]),
        duplicates=duplicates,
        **SHARED,
    )
    np.testing.assert_allclose(loss, sum(pairs) / 2, rtol=1e-6)
    np.testing.assert_allclose(metrics["positive_logit_mean"], np.mean(positives))


def test_numpy_arrays_do_as_well():
    owner, ids = np.array([0, 1], np.int32), np.array([[7], [8]], np.int32)
    arrays = np.eye(2, dtype=np.float32)[:, None], np.eye(2, dtype=np.float32), owner
    options = {"phrase_ids": ids, "duplicates": "positive", **SHARED}
    for chunk_size in (None, 1, "auto"):
        loss, _ = losses.xac_loss(*arrays, chunk_size=chunk_size, **options)
        np.testing.assert_allclose(loss, softplus(-3) + softplus(1), rtol=1e-6)


def test_targets_with_padding_that_reads_like_a_phrase():
    image, ids = jnp.array([0, 1, -1]), jnp.array([[7], [8], [7]])
    pairing = targets.pair(image, image >= 0, ids)
    positive, where = targets.block_targets(pairing, jnp.arange(2), 0, 3, "positive")
    np.testing.assert_array_equal(positive, [[True, False, False], [False, True, False]])
    np.testing.assert_array_equal(where, [[True, True, False], [True, True, False]])


def test_xac_of_one_image():
    # The pooled similarity of `test_similarity.test_by_hand`: 3 / sqrt 10.
    tokens = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
    loss, _ = losses.xac_loss(tokens, EYE[:1], jnp.array([0]), sharpness=float(np.log(3)), **SHARED)
    np.testing.assert_allclose(loss, softplus(-(2 * 3 / np.sqrt(10) + 1)), rtol=1e-6)


@pytest.mark.parametrize("scores", ["dot", "cosine"])
@pytest.mark.parametrize("values", ["raw", "normalized"])
def test_pacl_options_equal_the_loop(scores, values, inputs):
    tokens, text = np.float32(inputs.raw_tokens), np.float32(inputs.text)
    options = {"scale": 8.0, "sharpness": 3.0, "scores": scores, "values": values}
    loss, _ = losses.pacl_loss(tokens, text, **options)
    np.testing.assert_allclose(loss, oracles.pacl(tokens, text, **options), rtol=1e-4)


def test_metrics_of_no_pair_are_zero():
    _, metrics = losses.siglip_loss(EYE[:1], EYE[:1], **SHARED)
    assert [float(metrics[f"negative_logit_{k}"]) for k in ("mean", "min", "max")] == [0, 0, 0]


ROWS = jnp.array([0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.clip_loss(EYE, jnp.eye(3), scale=1.0), "widths 2 and 3"),
        (lambda: losses.clip_loss(EYE, EYE.astype(int), scale=1.0), "text_emb.*floating.*int32"),
        (lambda: losses.siglip_loss(EYE[0], EYE[0], **SHARED), r"image_emb.*\(b, d\).*\(2,\)"),
        (lambda: losses.siglip_loss(EYE, EYE[:1], **SHARED), "pass text_image"),
        (lambda: losses.siglip_loss(EYE, EYE, where=ROWS, **SHARED), "where.*bool.*int32"),
        (
            lambda: losses.siglip_loss(EYE, EYE, image_where=ROWS[:1] > 0, **SHARED),
            r"image_where.*\(2,\).*\(1,\)",
        ),
        (
            lambda: losses.siglip_loss(EYE, EYE, hard_text_emb=jnp.eye(3), **SHARED),
            r"hard_text_emb.*\(3, 3\)",
        ),
        (lambda: losses.siglip_loss(EYE, EYE, exchange="rign", **SHARED), "'gather' or 'ring'"),
        (lambda: losses.siglip_loss(EYE, EYE, chunk_size=0, **SHARED), "chunk_size=0"),
        (lambda: losses.siglip_loss(EYE, EYE, label_smoothing=1.5, **SHARED), "label_smoothing"),
        (lambda: losses.siglip_loss(EYE, EYE, axis_name="data", **SHARED), "jax.shard_map"),
        (lambda: losses.npc_loss(EYE, jnp.ones((2, 3)), ROWS, **SHARED), "widths 2 and 3"),
        (lambda: losses.npc_loss(EYE, EYE[:0], ROWS[:0], **SHARED), r"phrase_emb.*\(0, 2\)"),
        (lambda: losses.npc_loss(EYE, EYE, jnp.array([0]), **SHARED), r"\(2,\).*\(1,\)"),
        (lambda: losses.npc_loss(EYE, EYE, EYE[0], **SHARED), "phrase_image.*integer.*float"),
        (lambda: losses.npc_loss(EYE, EYE[0], ROWS, **SHARED), r"phrase_emb.*\(n, d\).*\(2,\)"),
        (lambda: losses.xac_loss(EYE, EYE, ROWS, **SHARED), r"image_tokens.*\(b, l, d\)"),
        (
            lambda: losses.xac_loss(
                EYE[:, None], EYE, ROWS, sharpness=jnp.ones(()), chunk_size=1, **SHARED
            ),
            "Python number",
        ),
        (lambda: losses.pacl_loss(EYE[:, None], EYE[:1], scale=1.0), "1 captions for 2 images"),
        (
            lambda: losses.pacl_loss(EYE[:, None], EYE, scale=1.0, token_where=ROWS > 0),
            r"token_where.*\(2, 1\)",
        ),
        (
            lambda: losses.npc_loss(EYE, EYE, ROWS, duplicates="positive", **SHARED),
            "pass phrase_ids",
        ),
        (lambda: losses.npc_loss(EYE, EYE, **SHARED), "pass phrase_image"),
        (
            lambda: losses.npc_loss(EYE, losses.gather_phrases(EYE, ROWS), ROWS, **SHARED),
            "leave phrase_image and phrase_ids out",
        ),
        (
            lambda: losses.xac_loss(
                EYE[:, None], losses.gather_phrases(EYE, ROWS), duplicates="ignore", **SHARED
            ),
            "pass phrase_ids",
        ),
        (
            lambda: losses.npc_loss(EYE, EYE, ROWS, duplicates="positives", **SHARED),
            "'negative'.*'ignore' or 'positive'",
        ),
        (
            lambda: losses.ccl_loss(EYE, EYE[:1], EYE[:, None], EYE, ROWS, **SHARED),
            "1 captions for 2 images",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""What holds for every loss; `cases.CASES` lists them."""

import copy
import subprocess
import sys

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ARRAYS, CASES, CONCEPT_CASES

every_loss = pytest.mark.parametrize("name", CASES)
every_concept_loss = pytest.mark.parametrize("name", CONCEPT_CASES)


def changed(x, **fields):
    x = copy.copy(x)
    for name, value in fields.items():
        setattr(x, name, value)
    return x


@every_loss
def test_value_equals_the_loop(name, inputs):
    loss, metrics, _ = cases.run(name, inputs)
    np.testing.assert_allclose(loss, CASES[name].oracle(inputs), rtol=1e-5)
    assert all(value.shape == () for value in (loss, *metrics.values()))


@every_loss
def test_gradient_equals_differences_of_the_loop(name, inputs):
    _, _, gradients = cases.run(name, inputs)
    rng = np.random.default_rng(0)
    for argument in (*ARRAYS, "scale", "bias"):
        at = np.asarray(getattr(inputs, argument), np.float64)
        step = rng.normal(size=at.shape)
        step *= 1e-5 / np.linalg.norm(step)
        up, down = (
            CASES[name].oracle(changed(inputs, **{argument: at + sign * step})) for sign in (1, -1)
        )
        slope = np.sum(gradients[argument] * step) / 1e-5
        np.testing.assert_allclose(
            slope, (up - down) / 2e-5, rtol=1e-3, atol=1e-5, err_msg=argument
        )


@every_loss
def test_order_of_images_and_phrases_does_not_matter(name, inputs):
    rng = np.random.default_rng(1)
    images, phrases = rng.permutation(8), rng.permutation(16)
    new_row = np.append(np.argsort(images), -1)  # of old row i; -1 stays -1
    moved = changed(
        inputs,
        image=inputs.image[images],
        text=inputs.text[images],
        tokens=inputs.tokens[images][:, ::-1],
        phrase=inputs.phrase[phrases],
        phrase_image=new_row[inputs.phrase_image[phrases]].astype(np.int32),
        phrase_ids=inputs.phrase_ids[phrases],
        phrase_where=inputs.phrase_where[phrases],
        image_where=inputs.image_where[images],
        token_where=inputs.token_where[images][:, ::-1],
    )
    loss, metrics, gradients = cases.run(name, inputs)
    moved_loss, moved_metrics, moved_gradients = cases.run(name, moved)
    np.testing.assert_allclose(moved_loss, loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), metrics, moved_metrics)
    expected = {key: gradients[key][images] for key in ("image", "text", "tokens")}
    expected["tokens"] = expected["tokens"][:, ::-1]
    expected["phrase"] = gradients["phrase"][phrases]
    for key, value in expected.items():
        np.testing.assert_allclose(moved_gradients[key], value, rtol=1e-4, atol=1e-6)


@every_loss
def test_logits_of_ten_thousand_stay_finite(name, inputs):
    # Every image and every text lies on one line, so that all cosines are 1 or -1.
    line, signs = inputs.image[0], np.array([1, 1, -1, 1, -1, -1, 1, -1.0])
    extreme = changed(
        inputs,
        scale=1e4,
        bias=0.0,
        image=signs[:, None] * line,
        text=signs[::-1, None] * line,
        tokens=signs[:, None, None] * np.broadcast_to(line, (8, 5, 12)),
        phrase=np.concatenate([signs, -signs])[:, None] * line,
    )
    loss, metrics, gradients = cases.run(name, extreme)
    np.testing.assert_allclose(loss, CASES[name].oracle(extreme), rtol=1e-5)
    assert loss > 1_000
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((metrics, gradients)))


@pytest.mark.slow
@every_loss
def test_bfloat16_inputs_give_a_float32_loss(name, inputs):
    rounded = changed(
        inputs, **{k: np.asarray(jnp.bfloat16(getattr(inputs, k)), np.float64) for k in ARRAYS}
    )
    loss, metrics, gradients = cases.run(name, rounded, jnp.bfloat16)
    assert {value.dtype for value in (loss, *metrics.values())} == {np.dtype(np.float32)}
    assert {gradients[k].dtype for k in ARRAYS} == {jnp.dtype(jnp.bfloat16)}
    # Rounded inputs are all that bf16 costs: products and sums are float32's.
    np.testing.assert_allclose(loss, CASES[name].oracle(rounded), rtol=1e-5)


@every_loss
def test_another_batch_does_not_compile_again(name, inputs):
    cases.run(name, inputs)
    before = cases.traces[name]
    assert before > 0
    other = changed(
        inputs,
        image=-inputs.image,
        scale=3.0,
        bias=0.5,
        phrase_image=np.full(16, -1, np.int32),
        phrase_ids=inputs.phrase_ids[::-1].copy(),
    )
    cases.run(name, other)
    assert cases.traces[name] == before


@every_concept_loss
def test_padding_equals_removal(name, inputs):
    real = np.flatnonzero(inputs.phrase_image >= 0)
    removed = changed(
        inputs,
        **{
            k: getattr(inputs, k)[real]
            for k in ("phrase", "phrase_image", "phrase_ids", "phrase_where")
        },
    )
    loss, metrics, gradients = cases.run(name, inputs)
    short_loss, short_metrics, short_gradients = cases.run(name, removed)
    assert len(real) == 13
    np.testing.assert_allclose(loss, short_loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), metrics, short_metrics)
    padding = np.setdiff1d(np.arange(16), real)
    np.testing.assert_array_equal(gradients["phrase"][padding], 0)
    gradients["phrase"] = gradients["phrase"][real]
    for key, value in gradients.items():
        np.testing.assert_allclose(value, short_gradients[key], rtol=1e-5, atol=1e-7)


@every_concept_loss
def test_no_phrase_at_all_gives_zero(name, inputs):
    none = changed(inputs, phrase_image=np.full(16, -1, np.int32))
    loss, metrics, gradients = cases.run(name, none)
    about_images = {"image_norm", "token_norm"}
    assert {key for key, value in metrics.items() if value != 0} <= about_images
    for leaf in jax.tree.leaves((loss, gradients)):
        np.testing.assert_array_equal(leaf, 0)


def test_ccl_without_phrases_is_siglip(inputs):
    none = changed(inputs, phrase_image=np.full(16, -1, np.int32))
    loss, metrics, gradients = cases.run("ccl", none)
    siglip, _, siglip_gradients = cases.run("siglip", inputs)
    np.testing.assert_allclose(loss, siglip, rtol=1e-6)
    np.testing.assert_allclose(gradients["image"], siglip_gradients["image"], rtol=1e-5, atol=1e-7)
    assert (metrics["npc"], metrics["xac"]) == (0, 0)


def test_ccl_reports_its_parts_unweighted(inputs):
    _, metrics, _ = cases.run("ccl", inputs)
    parts = {"contrastive": "siglip", "npc": "npc_positive", "xac": "xac_positive"}
    assert {key for key in metrics if "/" not in key} == parts.keys()
    assert "npc/positive_logit_mean" in metrics
    assert "xac/effective_patches" in metrics
    for key, name in parts.items():
        np.testing.assert_allclose(metrics[key], CASES[name].oracle(inputs), rtol=1e-5)


def test_importing_the_losses_imports_nothing_heavy():
    heavy = set(
        "PIL clu flax matplotlib ml_collections optax orbax tensorboard tensorflow "
        "tensorflow_datasets tokenizers transformers".split()
    )
    program = "import sys, ccl_jax.losses; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "ccl_jax" in loaded
    assert not loaded & heavy

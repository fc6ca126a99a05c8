"""No silent promotion of types or ranks in any test of a loss; one set of shapes to compile."""

import types

import jax
import numpy as np
import pytest

IMAGES, TOKENS, PHRASES, WIDTH = 8, 5, 16, 12


@pytest.fixture(autouse=True)
def strict():
    """Types and ranks have to fit as they are."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def inputs():
    """Float64 arrays: 8 images, 16 phrases of which 3 are padding, some said of two images.

    `words[n]` is a number that stands for the phrase's text, `phrase_ids` its tokens. The
    phrases of images 2k, 2k + 1 are the rows 4k to 4k + 3, as the pipeline packs them.
    """
    rng = np.random.default_rng(7)
    words = np.array([0, 1, 2, 0, 1, 3, 4, 4, 0, 5, 6, 7, 2, 2, 8, 9])
    phrase_image = np.array([0, 0, 1, 1, 2, 3, 3, -1, 4, 4, 5, -1, 6, 7, 7, -1], np.int32)
    # The second token alone tells some words apart, so that a comparison of one is not enough.
    phrase_ids = np.stack([words // 4 + 5, words % 4, 0 * words], axis=1).astype(np.int32)
    return types.SimpleNamespace(
        image=_unit(rng.normal(size=(IMAGES, WIDTH))),
        text=_unit(rng.normal(size=(IMAGES, WIDTH))),
        tokens=_unit(rng.normal(size=(IMAGES, TOKENS, WIDTH))),
        raw_tokens=rng.normal(size=(IMAGES, TOKENS, WIDTH)),
        phrase=_unit(rng.normal(size=(PHRASES, WIDTH))),
        phrase_image=phrase_image,
        phrase_ids=phrase_ids,
        phrase_where=np.arange(PHRASES) % 5 != 4,
        image_where=np.arange(IMAGES) != 2,
        # One token of an image at least, and not of every image the same.
        token_where=(np.arange(TOKENS) + np.arange(IMAGES)[:, None]) % 3 != 0,
        words=words,
        scale=8.0,
        bias=-3.0,
    )

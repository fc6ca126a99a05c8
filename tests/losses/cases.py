"""Every loss as a function of the same inputs, next to its oracle."""

import collections
import functools
import types
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles

from ccl_jax import losses

ARRAYS = ("image", "text", "tokens", "phrase")


class Case(NamedTuple):
    """`loss(x)` -> (loss, metrics) and `oracle(x)` -> loss; x has the names of `inputs`."""

    loss: Callable
    oracle: Callable


def _clip(x):
    return losses.clip_loss(x.image, x.text, scale=x.scale)


def _siglip(x):
    return losses.siglip_loss(x.image, x.text, scale=x.scale, bias=x.bias)


def _phrases(x):
    return {"scale": x.scale, "bias": x.bias, "phrase_ids": x.phrase_ids}


def _npc(x, duplicates):
    return losses.npc_loss(x.image, x.phrase, x.phrase_image, duplicates=duplicates, **_phrases(x))


def _npc_oracle(x, duplicates):
    similarity = x.image @ x.phrase.T
    return oracles.concept(similarity, x.phrase_image, x.scale, x.bias, x.words, duplicates)


def _xac(x, duplicates, sharpness=4.0):
    return losses.xac_loss(
        x.tokens,
        x.phrase,
        x.phrase_image,
        sharpness=sharpness,
        duplicates=duplicates,
        **_phrases(x),
    )


def _xac_oracle(x, duplicates, sharpness=4.0):
    similarity = oracles.pooled(x.tokens, x.phrase, sharpness)
    return oracles.concept(similarity, x.phrase_image, x.scale, x.bias, x.words, duplicates)


def _ccl(x):
    return losses.ccl_loss(
        x.image,
        x.text,
        x.tokens,
        x.phrase,
        x.phrase_image,
        npc_weight=0.7,
        xac_weight=0.3,
        sharpness=4.0,
        duplicates="positive",
        **_phrases(x),
    )


def _ccl_oracle(x):
    npc, xac = _npc_oracle(x, "positive"), _xac_oracle(x, "positive")
    return oracles.siglip(x.image, x.text, x.scale, x.bias) + 0.7 * npc + 0.3 * xac


_MODES = ("negative", "ignore", "positive")
CASES = {
    "clip": Case(_clip, lambda x: oracles.clip(x.image, x.text, x.scale)),
    "siglip": Case(_siglip, lambda x: oracles.siglip(x.image, x.text, x.scale, x.bias)),
    **{
        f"npc_{mode}": Case(
            functools.partial(_npc, duplicates=mode),
            functools.partial(_npc_oracle, duplicates=mode),
        )
        for mode in _MODES
    },
    **{
        f"xac_{mode}": Case(
            functools.partial(_xac, duplicates=mode),
            functools.partial(_xac_oracle, duplicates=mode),
        )
        for mode in _MODES
    },
    "ccl": Case(_ccl, _ccl_oracle),
    "pacl": Case(
        lambda x: losses.pacl_loss(x.tokens, x.text, scale=x.scale),
        lambda x: oracles.pacl(x.tokens, x.text, x.scale, 10.0, "cosine", "raw"),
    ),
}
CONCEPT_CASES = [name for name in CASES if name[:3] in ("npc", "xac")]

traces = collections.Counter()


@functools.cache
def compiled(name):
    """Jitted `(arrays, phrase_image, phrase_ids) -> ((loss, metrics), gradients)`."""

    def loss(arrays, phrase_image, phrase_ids):
        traces[name] += 1
        x = types.SimpleNamespace(**arrays, phrase_image=phrase_image, phrase_ids=phrase_ids)
        return CASES[name].loss(x)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def arguments(x, dtype=np.float32):
    """What `compiled(name)` takes, from the fixture `inputs`."""
    arrays = {name: jnp.asarray(getattr(x, name), dtype) for name in ARRAYS}
    arrays |= {name: jnp.asarray(getattr(x, name), jnp.float32) for name in ("scale", "bias")}
    return arrays, jnp.asarray(x.phrase_image), jnp.asarray(x.phrase_ids)


def run(name, x, dtype=np.float32):
    """Loss, metrics and gradients as NumPy arrays; gradients of ARRAYS, scale and bias."""
    (loss, metrics), gradients = compiled(name)(*arguments(x, dtype))
    return jax.tree.map(np.asarray, (loss, metrics, gradients))

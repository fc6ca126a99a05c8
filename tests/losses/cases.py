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
    """`loss(x, **layout)` -> (loss, metrics) and `oracle(x)` -> loss; x is as `inputs`."""

    loss: Callable
    oracle: Callable


def _clip(x, **layout):
    return losses.clip_loss(x.image, x.text, scale=x.scale, **layout)


def _siglip(x, **layout):
    return losses.siglip_loss(x.image, x.text, scale=x.scale, bias=x.bias, **layout)


def _phrases(x):
    return {"scale": x.scale, "bias": x.bias, "phrase_ids": x.phrase_ids}


def _npc(x, duplicates, **layout):
    return losses.npc_loss(
        x.image, x.phrase, x.phrase_image, duplicates=duplicates, **_phrases(x), **layout
    )


def _npc_oracle(x, duplicates):
    similarity = x.image @ x.phrase.T
    return oracles.concept(similarity, x.phrase_image, x.scale, x.bias, x.words, duplicates)


def _xac(x, duplicates, sharpness=4.0, **options):
    return losses.xac_loss(
        x.tokens,
        x.phrase,
        x.phrase_image,
        sharpness=sharpness,
        duplicates=duplicates,
        **_phrases(x),
        **options,
    )


def _xac_oracle(x, duplicates, sharpness=4.0, **options):
    similarity = oracles.pooled(x.tokens, x.phrase, sharpness, **options)
    return oracles.concept(similarity, x.phrase_image, x.scale, x.bias, x.words, duplicates)


def _ccl(x, **layout):
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
        **layout,
    )


def _ccl_oracle(x):
    npc, xac = _npc_oracle(x, "positive"), _xac_oracle(x, "positive")
    return oracles.siglip(x.image, x.text, x.scale, x.bias) + 0.7 * npc + 0.3 * xac


# Phrases gathered once, for two terms that count the same phrase of two images differently.


def _gathered(x, **layout):
    phrases = losses.gather_phrases(
        x.phrase, x.phrase_image, phrase_ids=x.phrase_ids, axis_name=layout.get("axis_name")
    )
    scalars = {"scale": x.scale, "bias": x.bias}
    npc, metrics = losses.npc_loss(x.image, phrases, **scalars, **layout)
    xac, _ = losses.xac_loss(
        x.tokens, phrases, sharpness=4.0, duplicates="ignore", **scalars, **layout
    )
    return npc + 0.5 * xac, metrics


def _gathered_oracle(x):
    return _npc_oracle(x, "negative") + 0.5 * _xac_oracle(x, "ignore")


# The phrases as captions, several or none an image, and the captions as hard negatives.


def _many(x, duplicates):
    return {
        "text_image": x.phrase_image,
        "where": x.phrase_where,
        "text_ids": x.phrase_ids,
        "duplicates": duplicates,
        "hard_text_emb": x.text,
        "hard_where": x.image_where,
        "label_smoothing": 0.2,
    }


def _many_answers(x, duplicates):
    hard = len(x.text)
    image = np.concatenate([x.phrase_image, np.full(hard, -1)])
    real = np.concatenate([(x.phrase_image >= 0) & x.phrase_where, x.image_where])
    words = np.concatenate([x.words, -1 - np.arange(hard)])
    return oracles.answers(image, real, words, len(x.image), duplicates)


def _clip_many(x, duplicates, **layout):
    return losses.clip_loss(x.image, x.phrase, scale=x.scale, **_many(x, duplicates), **layout)


def _clip_many_oracle(x, duplicates):
    logits = x.scale * x.image @ np.concatenate([x.phrase, x.text]).T
    return oracles.smooth_softmax(logits, *_many_answers(x, duplicates), 0.2)


def _siglip_many(x, duplicates, **layout):
    return losses.siglip_loss(
        x.image, x.phrase, scale=x.scale, bias=x.bias, **_many(x, duplicates), **layout
    )


def _siglip_many_oracle(x, duplicates):
    logits = x.scale * x.image @ np.concatenate([x.phrase, x.text]).T + x.bias
    captions = np.sum((x.phrase_image >= 0) & x.phrase_where)
    return oracles.smooth_sigmoid(logits, *_many_answers(x, duplicates), 0.2, captions)


_PACL_MANY = {"sharpness": 3.0, "scores": "cosine", "values": "raw"}


def _pacl_many(x, duplicates, **layout):
    return losses.pacl_loss(
        2 * x.tokens,
        x.phrase,
        scale=x.scale,
        token_where=x.token_where,
        **_PACL_MANY,
        **_many(x, duplicates),
        **layout,
    )


def _pacl_many_oracle(x, duplicates):
    texts = np.concatenate([x.phrase, x.text])
    phi = oracles.pooled(2 * x.tokens, texts, **_PACL_MANY, token_where=x.token_where)
    return oracles.smooth_softmax(x.scale * phi, *_many_answers(x, duplicates), 0.2)


# An image that does not count, and its caption.


def _masked(loss, *names):
    def masked(x, **layout):
        scalars = {name: getattr(x, name) for name in names}
        masks = {"where": x.image_where, "image_where": x.image_where}
        return loss(x.image, x.text, **scalars, **masks, **layout)

    return masked


_MODES = ("negative", "ignore", "positive")


def _by_mode(name, loss, oracle):
    return {
        f"{name}_{mode}": Case(
            functools.partial(loss, duplicates=mode), functools.partial(oracle, duplicates=mode)
        )
        for mode in _MODES
    }


CASES = {
    "clip": Case(_clip, lambda x: oracles.clip(x.image, x.text, x.scale)),
    "siglip": Case(_siglip, lambda x: oracles.siglip(x.image, x.text, x.scale, x.bias)),
    **_by_mode("npc", _npc, _npc_oracle),
    **_by_mode("xac", _xac, _xac_oracle),
    "xac_normalized": Case(
        functools.partial(_xac, duplicates="negative", values="normalized"),
        functools.partial(_xac_oracle, duplicates="negative", values="normalized"),
    ),
    "ccl": Case(_ccl, _ccl_oracle),
    "gathered": Case(_gathered, _gathered_oracle),
    "pacl": Case(
        lambda x, **layout: losses.pacl_loss(x.tokens, x.text, scale=x.scale, **layout),
        lambda x: oracles.pacl(x.tokens, x.text, x.scale, 10.0, "cosine", "raw"),
    ),
    "clip_masked": Case(
        _masked(losses.clip_loss, "scale"),
        lambda x: oracles.clip(x.image[x.image_where], x.text[x.image_where], x.scale),
    ),
    "siglip_masked": Case(
        _masked(losses.siglip_loss, "scale", "bias"),
        lambda x: oracles.siglip(x.image[x.image_where], x.text[x.image_where], x.scale, x.bias),
    ),
    "clip_many": Case(
        functools.partial(_clip_many, duplicates="positive"),
        functools.partial(_clip_many_oracle, duplicates="positive"),
    ),
    "siglip_many": Case(
        functools.partial(_siglip_many, duplicates="ignore"),
        functools.partial(_siglip_many_oracle, duplicates="ignore"),
    ),
    "pacl_many": Case(
        functools.partial(_pacl_many, duplicates="ignore"),
        functools.partial(_pacl_many_oracle, duplicates="ignore"),
    ),
}
CONCEPT_CASES = [name for name in CASES if name[:3] in ("npc", "xac")]

traces = collections.Counter()


_INTEGERS = ("phrase_image", "phrase_ids", "phrase_where", "image_where", "token_where")


@functools.cache
def compiled(name):
    """Jitted `(arrays, integers) -> ((loss, metrics), gradients)`."""

    def loss(arrays, integers):
        traces[name] += 1
        return CASES[name].loss(types.SimpleNamespace(**arrays, **integers))

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def arguments(x, dtype=np.float32):
    """What `compiled(name)` takes, from the fixture `inputs`."""
    arrays = {name: jnp.asarray(getattr(x, name), dtype) for name in ARRAYS}
    arrays |= {name: jnp.asarray(getattr(x, name), jnp.float32) for name in ("scale", "bias")}
    return arrays, {name: jnp.asarray(getattr(x, name)) for name in _INTEGERS}


def run(name, x, dtype=np.float32):
    """Loss, metrics and gradients as NumPy arrays; gradients of ARRAYS, scale and bias."""
    (loss, metrics), gradients = compiled(name)(*arguments(x, dtype))
    return jax.tree.map(np.asarray, (loss, metrics, gradients))

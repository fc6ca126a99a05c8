"""Averages of weights: over the steps of a run (EMA), and of its start and end (WiSE-FT)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ccl_jax.training.parameters import Params


def update_ema(ema: Params, params: Params, step: Int[Array, ""], decay: float) -> Params:
    """The exponential moving average after a step: d * ema + (1 - d) * params.

    d = min(decay, (1 + n) / (10 + n)) after n steps, so that an average that begins with
    random weights soon forgets them, as `tf.train.ExponentialMovingAverage` has it.

    Args:
      ema: the average before, a tree as `params`.
      params: after the step.
      step: n, the number of steps taken, this one included.
      decay: `config.train.ema_decay`.
    """
    n = step.astype(jnp.float32)
    weight = jnp.minimum(decay, (1 + n) / (10 + n))
    return jax.tree.map(lambda old, new: old + (1 - weight) * (new - old), ema, params)


def interpolate(start: Params, trained: Params, alpha: float) -> Params:
    """(1 - alpha) * start + alpha * trained, for every parameter; exact at 0 and 1.

    Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT, 2022): between the
    two lie models that keep what the start knew and most of what training added.
    """
    return jax.tree.map(lambda old, new: (1 - alpha) * old + alpha * new, start, trained)

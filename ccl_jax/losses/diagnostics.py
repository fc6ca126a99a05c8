"""What the losses report beside their value; cheap enough to leave on, never differentiated."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ccl_jax.losses.collectives import AxisName

Metrics = dict[str, Float[Array, ""]]
# Sums, counts and extremes over pairs, which add up over blocks and devices.
Counts = dict[str, Float[Array, ""]]

_KINDS = ("positive", "negative")


def logit_metrics(
    logits: Float[Array, "b n"],
    positive: Bool[Array, "b n"],
    where: Bool[Array, "b n"] | None = None,
) -> Metrics:
    """Mean, minimum and maximum of positive and negative logits, over pairs in `where`.

    One sees a contrastive run go wrong here first. Not differentiated. An empty set of
    pairs gives 0.
    """
    where = jnp.ones_like(positive) if where is None else where
    return summarize(count(logits, positive, where, None))


def count(
    logits: Float[Array, "c n"],
    positive: Bool[Array, "c n"],
    where: Bool[Array, "c n"],
    effective: Float[Array, "c n"] | None,
) -> Counts:
    """The counts of a block of pairs; `effective` patches attended are those of positives."""
    logits = jax.lax.stop_gradient(logits)
    counts = {}
    for name, chosen in zip(_KINDS, (positive & where, ~positive & where), strict=True):
        counts[f"{name}_sum"] = jnp.sum(logits, where=chosen)
        counts[f"{name}_count"] = jnp.sum(chosen, dtype=logits.dtype)
        counts[f"{name}_min"] = jnp.min(logits, where=chosen, initial=jnp.inf)
        counts[f"{name}_max"] = jnp.max(logits, where=chosen, initial=-jnp.inf)
    if effective is not None:
        effective = jax.lax.stop_gradient(effective)
        counts["effective_sum"] = jnp.sum(effective, where=positive & where)
    return counts


def nothing(dtype: jnp.dtype, effective: bool) -> Counts:
    """The counts of no pair at all."""
    starts = {"sum": 0.0, "count": 0.0, "min": jnp.inf, "max": -jnp.inf}
    counts = {f"{name}_{kind}": starts[kind] for name in _KINDS for kind in starts}
    if effective:
        counts["effective_sum"] = 0.0
    return {name: jnp.asarray(value, dtype) for name, value in counts.items()}


def merge(left: Counts, right: Counts) -> Counts:
    """The counts of both."""
    return {name: _how(name)[0](left[name], right[name]) for name in left}


def over_devices(counts: Counts, axis_name: AxisName | None) -> Counts:
    """The counts of all devices."""
    if axis_name is None:
        return counts
    counts = jax.lax.stop_gradient(counts)
    return {name: _how(name)[1](value, axis_name) for name, value in counts.items()}


def summarize(counts: Counts) -> Metrics:
    """Metrics from the counts of all pairs."""
    metrics = {}
    for name in _KINDS:
        pairs = counts[f"{name}_count"]
        metrics[f"{name}_logit_mean"] = counts[f"{name}_sum"] / jnp.maximum(pairs, 1)
        for end in ("min", "max"):
            metrics[f"{name}_logit_{end}"] = jnp.where(pairs > 0, counts[f"{name}_{end}"], 0)
    if "effective_sum" in counts:
        pairs = jnp.maximum(counts["positive_count"], 1)
        metrics["effective_patches"] = counts["effective_sum"] / pairs
    return metrics


def mean_norm(
    x: Float[Array, "*batch d"], where: Bool[Array, "*batch"] | None, axis_name: AxisName | None
) -> Float[Array, ""]:
    """Mean over rows, of all devices, of the norm over the last axis; 0 for no row at all."""
    x = jax.lax.stop_gradient(x)
    dtype = x.dtype if x.dtype == jnp.float64 else jnp.float32
    norm = jnp.sqrt(jnp.sum(jnp.square(x.astype(dtype)), axis=-1))
    if where is None:
        total, rows = jnp.sum(norm), jnp.asarray(norm.size, dtype)
    else:
        total, rows = jnp.sum(norm, where=where), jnp.sum(where, dtype=dtype)
    if axis_name is not None:
        total, rows = jax.lax.psum((total, rows), axis_name)
    return total / jnp.maximum(rows, 1)


def _how(name):
    if name.endswith("_min"):
        return jnp.minimum, jax.lax.pmin
    if name.endswith("_max"):
        return jnp.maximum, jax.lax.pmax
    return jnp.add, jax.lax.psum

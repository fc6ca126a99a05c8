"""Scaled dot-product attention, by the implementation that suits the backend."""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

ATTENTION = ("auto", "xla", "cudnn", "folded")

_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Chooses as on "tpu", "gpu" or "cpu" in what is traced inside, whatever is at hand.

    For programs that are compiled ahead of time for another machine.
    """
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def attend(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h d"],
    *,
    causal: bool = False,
    implementation: str = "auto",
) -> Float[Array, "b q h d"]:
    """softmax(query key^T / sqrt(d)) value for every head.

    Args:
      query: of each position and head.
      key: as queries.
      value: as keys.
      causal: whether position i sees keys up to i alone.
      implementation: "auto" for that of `attention_implementation`; "xla", "folded", or
        "cudnn", which is an error where it is not the one for "auto".

    Raises:
      ValueError: if "cudnn" is asked for and cannot be had.
    """
    best = attention_implementation(query.shape[1], query.shape[-1], query.dtype)
    if implementation == "cudnn" != best:
        raise ValueError(
            "config.model.attention = 'cudnn' computes heads of up to 128 dimensions, in "
            f"multiples of 8, in bfloat16 on NVIDIA GPUs from Ampere on; here are heads of "
            f"{query.shape[-1]} in {query.dtype.name} on {jax.local_devices()[0].device_kind}: "
            "use 'auto'"
        )
    how = best if implementation == "auto" else implementation
    if how == "folded":
        return _folded(query, key, value, causal)
    return jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation=how)


def attention_implementation(queries: int, head_dim: int, dtype: Any) -> str:
    """How attention is best computed on the backend at hand.

    "cudnn" is flash attention: the (queries, keys) weights are never in memory. It takes
    half-precision heads of up to 128 dimensions, in multiples of 8, on NVIDIA GPUs from
    Ampere on; a single query, as in the MAP head, gains nothing by it. "folded" is for a CPU,
    where passes over the weights cost as much as the products: it divides by the sum of the
    softmax after the product with the values. "xla" leaves everything to the compiler.

    Args:
      queries: number of queries.
      head_dim: width of a head.
      dtype: of the computation.
    """
    device = jax.local_devices()[0]
    platform = _platform.get() or device.platform
    if platform == "cpu":
        return "folded"
    fits = (
        jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
        and head_dim <= 128
        and head_dim % 8 == 0
        and queries > 1
    )
    nvidia = platform == device.platform == "gpu" and "NVIDIA" in device.device_kind
    return "cudnn" if nvidia and fits and float(device.compute_capability) >= 8 else "xla"


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _folded(query, key, value, causal):
    return _folded_forward(query, key, value, causal)[0]


def _folded_forward(query, key, value, causal):
    scale = query.shape[-1] ** -0.5
    # Heads first once, here, instead of in each of the six products.
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (query * scale, key, value))
    logits = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    if causal:
        seen = jnp.tril(jnp.ones(logits.shape[-2:], bool))
        logits = jnp.where(seen, logits, jnp.finfo(logits.dtype).min)
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights.astype(v.dtype)
    out = jnp.einsum("bhqk,bhkd->bhqd", weights, v, preferred_element_type=jnp.float32) / total
    return jnp.swapaxes(out, 1, 2).astype(query.dtype), (q, k, v, weights, total, out)


def _folded_backward(causal, saved, gradient):
    q, k, v, weights, total, out = saved
    dtype = v.dtype
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    over_total = jnp.swapaxes(gradient, 1, 2).astype(jnp.float32) / total
    # What the division by the sum takes back from every weight.
    shared = jnp.sum(over_total * out, axis=-1, keepdims=True)
    over_total = over_total.astype(dtype)
    of_value = product("bhqk,bhqd->bhkd", weights, over_total)
    of_logits = weights * (product("bhqd,bhkd->bhqk", over_total, v) - shared)
    of_logits = of_logits.astype(dtype)
    of_query = product("bhqk,bhkd->bhqd", of_logits, k) * q.shape[-1] ** -0.5
    of_key = product("bhqk,bhqd->bhkd", of_logits, q)
    return tuple(jnp.swapaxes(x, 1, 2).astype(dtype) for x in (of_query, of_key, of_value))


_folded.defvjp(_folded_forward, _folded_backward)

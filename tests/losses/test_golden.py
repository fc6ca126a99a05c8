"""Values and every gradient of the released single-process loss, stored in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import losses

ARRAYS = ("image_emb", "text_emb", "image_tokens", "phrase_emb")


def loss_and_gradients(golden, dtype):
    weights = {k: float(golden[k]) for k in ("npc_weight", "xac_weight")}
    rows = jnp.asarray(golden["phrase_image"], jnp.int32)

    @jax.jit
    def run(arrays, scale, bias):
        def loss(arrays, scale, bias):
            return losses.ccl_loss(*arrays, rows, scale=scale, bias=bias, **weights)

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(arrays, scale, bias)

    arrays = tuple(jnp.asarray(golden[name], dtype) for name in ARRAYS)
    scale, bias = (jnp.asarray(golden[k], dtype) for k in ("logit_scale", "logit_bias"))
    (total, parts), (grads, grad_scale, grad_bias) = run(arrays, scale, bias)
    found = {"total": total, **parts, "grad_logit_scale": grad_scale, "grad_logit_bias": grad_bias}
    return found | {f"grad_{name}": grad for name, grad in zip(ARRAYS, grads, strict=True)}


@pytest.mark.parametrize("name", ["small", "medium", "weights"])
@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-9), (False, 1e-4)])
def test_equals_the_release(shared, name, x64, tolerance):
    golden = np.load(shared / "golden" / f"ccl_{name}.npz")
    dtype = np.float64 if x64 else np.float32
    with jax.enable_x64(x64):
        found = {k: np.asarray(v) for k, v in loss_and_gradients(golden, dtype).items()}
    for key in ("contrastive", "npc", "xac", "total", *(k for k in golden if "grad_" in k)):
        assert found[key].dtype == dtype
        # Relative to the largest entry: single entries of a gradient can be next to 0.
        largest = abs(golden[key]).max()
        assert abs(found[key] - golden[key]).max() <= tolerance * largest, key

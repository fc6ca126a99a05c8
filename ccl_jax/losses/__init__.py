"""Contrastive losses as pure functions; needs jax and jaxtyping, nothing else of ours.

Every loss takes arrays by position and hyper-parameters by keyword, expects L2-normalised
embeddings unless it says otherwise, accumulates in float32 (float64 for float64 inputs) and
returns `(loss, metrics)`. `scale` is always the multiplier exp(log_scale).
"""

from ccl_jax.losses.ccl import ccl_loss, gather_phrases, npc_loss, xac_loss
from ccl_jax.losses.contrastive import clip_loss, siglip_loss
from ccl_jax.losses.diagnostics import Metrics, logit_metrics
from ccl_jax.losses.gradcache import micro_batched
from ccl_jax.losses.pacl import pacl_loss
from ccl_jax.losses.similarity import pooled_similarity, unit

__all__ = [
    "Metrics",
    "ccl_loss",
    "clip_loss",
    "gather_phrases",
    "logit_metrics",
    "micro_batched",
    "npc_loss",
    "pacl_loss",
    "pooled_similarity",
    "siglip_loss",
    "unit",
    "xac_loss",
]

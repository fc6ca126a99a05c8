"""Pretrained towers in and out: Hugging Face, OpenCLIP and big_vision checkpoints.

`load` gives the fields of our towers and their parameters; `to_huggingface` and `save` go the
other way. No torch is needed, and pickles are never opened.
"""

from ccl_jax.weights.adapt import adapt, check_vocabulary, merge, resample_positions
from ccl_jax.weights.huggingface import save, to_huggingface
from ccl_jax.weights.loading import Pretrained, load, model_config, side_files

__all__ = [
    "Pretrained",
    "adapt",
    "check_vocabulary",
    "load",
    "merge",
    "model_config",
    "resample_positions",
    "save",
    "side_files",
    "to_huggingface",
]

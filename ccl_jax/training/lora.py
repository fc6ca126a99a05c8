"""Low-rank updates of kernels (LoRA), as a function on the tree of parameters.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2022). The model knows nothing
of them: a step, an evaluation and an export see kernels W + alpha / rank * A B. That keeps
towers and weights simple; it saves the optimiser's memory, but not the gradient of a kernel,
which is computed on the way to those of A and B.
"""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ccl_jax.training import parameters
from ccl_jax.training.parameters import LORA, Params


def add(config: ConfigDict, params: Params, seed: int) -> Params:
    """The parameters with `lora/PATH/a` and `lora/PATH/b` for every target; as given if rank 0.

    A is normal with variance 1 / inputs, B is zero: the model starts exactly as without.

    Args:
      config: `config.lora`.
      params: of the towers.
      seed: of A.

    Raises:
      ValueError: for a target that matches no parameter, or one that is no matrix.
    """
    if config.rank < 0:
        raise ValueError(f"config.lora.rank = {config.rank}; use 0 for none, or a rank above it")
    if not config.rank:
        return params
    flat = parameters.flatten(params)
    field, added = "config.lora.targets", {}
    targets = set()
    for pattern in config.targets:
        targets |= set(parameters.matching(pattern, list(flat), field))
    if not targets:
        raise ValueError(f"{field} is empty; name kernels by regexes, or set config.lora.rank = 0")
    for index, path in enumerate(sorted(targets)):
        if flat[path].ndim != 2:
            raise ValueError(
                f"{field} selects {path} of shape {flat[path].shape}; only matrices have "
                "low-rank updates: narrow the regex"
            )
        inputs, outputs = flat[path].shape
        # Another stream than that of the towers, one number for each target.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 0x10A), index)
        added[f"{LORA}/{path}/a"] = jax.random.normal(key, (inputs, config.rank)) / inputs**0.5
        added[f"{LORA}/{path}/b"] = jnp.zeros((config.rank, outputs))
    return parameters.merge(params, parameters.unflatten(added))


def without(params: Params) -> dict[str, Any]:
    """The towers' own parameters."""
    return {name: value for name, value in params.items() if name != LORA}


def effective(config: ConfigDict, params: Params) -> Params:
    """The parameters that the model computes with: W + alpha / rank * A B in place of W.

    Args:
      config: `config.lora`.
      params: as `add` gave them.
    """
    if LORA not in params:
        return params
    updates = parameters.flatten(params[LORA])
    flat = parameters.flatten(without(params))
    for name, a in updates.items():
        path, _, factor = name.rpartition("/")
        if factor == "a":
            update = jnp.matmul(a, updates[f"{path}/b"], precision="highest")
            flat[path] = flat[path] + config.alpha / config.rank * update
    return parameters.unflatten(flat)

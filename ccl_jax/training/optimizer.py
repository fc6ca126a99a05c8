"""AdamW with the mask and the schedule of the recipes."""

import jax
import optax
from ml_collections import ConfigDict


def learning_rate(config: ConfigDict, steps: int) -> optax.Schedule:
    """Linear warm-up from 0 over `warmup_steps`, then cosine to 0 at `steps`."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=steps,
    )


def decay_mask(params) -> dict:
    """True for the parameters that weight decay applies to.

    As in the recipes: matrices and embeddings decay; norms, biases, the learnt scale and
    bias (all below two dimensions) and the MAP head's probe do not.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, value: value.ndim >= 2 and path[-1].key != "probe", params
    )


def create_optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """AdamW as `config.optimizer` says, for a run of `steps` steps."""
    adamw = optax.adamw(
        learning_rate(config, steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )
    if not config.clip_norm:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)

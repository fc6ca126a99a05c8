"""AdamW with the schedule of the recipes; what is trained, how fast and with what decay."""

import re
from collections.abc import Iterable, Mapping

import jax
import optax
from ml_collections import ConfigDict

from ccl_jax.training import parameters

# config.optimizer.frozen -> what it freezes, adapters (training/lora.py) included.
FROZEN: dict[str, tuple[str, ...]] = {
    "": (),
    "image": (r"(lora/)?image_tower/.*",),
    "text": (r"(lora/)?text_tower/.*",),
    "towers": (r"(lora/)?(image|text)_tower/.*",),
}
_FIRST_LAYER = frozenset(
    "patch_embedding token_embedding position_embedding class_token norm_pre".split()
)


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


def lr_multipliers(config: ConfigDict, params: parameters.Params) -> dict[str, float]:
    """What the learning rate of each parameter is multiplied by; 0 for frozen ones.

    The product of two factors: the first match in what `config.frozen` stands for, then the
    pairs of `config.lr_multipliers` (1 for all without any); and `layer_multipliers`.

    Args:
      config: `config.optimizer`.
      params: of the model, or their shapes.

    Returns:
      {path: multiplier}.

    Raises:
      ValueError: for an unknown `frozen`, a list that does not fit the parameters, or one
        that leaves nothing to train but the scale and bias of the similarities.
    """
    field = "config.optimizer.lr_multipliers"
    if config.frozen not in FROZEN:
        raise ValueError(
            f"config.optimizer.frozen = {config.frozen!r}; use one of "
            f"{', '.join(map(repr, FROZEN))}, or a value of 0 in {field}"
        )
    paths = parameters.flatten(params)
    rules = [(pattern, 0.0) for pattern in FROZEN[config.frozen]]
    if parameters.LORA in params:
        # Low-rank updates are instead of the towers' own.
        rules.append((r"(image|text)_tower/.*", 0.0))
    rules += config.lr_multipliers or [(".*", 1.0)]
    found = parameters.assign(rules, paths, field)
    found = {path: _number(value or 0.0, field) for path, value in found.items()}
    if not any(found[path] for path in paths.keys() - {"log_scale", "bias"}):
        raise ValueError(
            "config.optimizer leaves nothing to train but log_scale and bias: change frozen or "
            "lr_multipliers, or set config.model.patch_embedder = True for PACL"
        )
    layers = layer_multipliers(paths, config.layer_decay)
    return {path: found[path] * layers[path] for path in paths}


def tower_multipliers(config: ConfigDict, params: parameters.Params) -> dict[str, float]:
    """The highest multiplier in each tower that is trained; empty where all are 1.

    Args:
      config: `config.optimizer`.
      params: of the model, or their shapes.

    Returns:
      {"image_tower": multiplier, "text_tower": multiplier}.

    Raises:
      ValueError: as `lr_multipliers` does.
    """
    found = lr_multipliers(config, params)
    if all(value in (0, 1) for value in found.values()):
        return {}
    highest: dict[str, float] = {}
    for path, value in found.items():
        tower = re.match(r"(?:lora/)?(image_tower|text_tower)/", path)
        if tower and value:
            highest[tower[1]] = max(value, highest.get(tower[1], 0.0))
    return highest


def layer_multipliers(paths: Iterable[str], decay: float) -> dict[str, float]:
    """Layer-wise decay of the learning rate: decay ** (depth + 1 - layer), in each tower.

    Layer 0 holds the embeddings (of patches or tokens, positions, the class token, and the
    norm before the blocks), layer i + 1 is `block_i`, and layer depth + 1, whose factor is
    1, holds what follows the blocks: last norm, attention pooling, projection. Parameters
    outside the towers have 1. As in BEiT (Bao et al., 2022) and MAE (He et al., 2022).

    Args:
      paths: of all parameters.
      decay: in (0, 1]; 1 for none.

    Raises:
      ValueError: for another `decay`.

    >>> paths = ["text_tower/token_embedding/embedding", "text_tower/block_0/mlp/up/kernel",
    ...          "text_tower/projection/kernel", "log_scale"]
    >>> list(layer_multipliers(paths, 0.5).values())
    [0.25, 0.5, 1.0, 1.0]
    """
    if not 0 < decay <= 1:
        raise ValueError(
            f"config.optimizer.layer_decay = {decay}; it must be above 0 and at most 1"
        )
    places = {path: re.match(r"(?:lora/)?(image_tower|text_tower)/(\w+)", path) for path in paths}
    blocks: dict[str, set[str]] = {"image_tower": set(), "text_tower": set()}
    for place in filter(None, places.values()):
        if place[2].startswith("block_"):
            blocks[place[1]].add(place[2])
    multipliers = {}
    for path, place in places.items():
        above = 0  # layers above this one
        if place and place[2] in _FIRST_LAYER:
            above = len(blocks[place[1]]) + 1
        elif place and place[2] in blocks[place[1]]:
            above = len(blocks[place[1]]) - int(place[2].removeprefix("block_"))
        multipliers[path] = float(decay**above)
    return multipliers


def weight_decays(config: ConfigDict, params: parameters.Params) -> dict[str, float]:
    """The weight decay of each parameter.

    Without `config.weight_decays`: `config.weight_decay` where `decay_mask` says so, else 0;
    a value of "default" in the list means the same.

    Args:
      config: `config.optimizer`.
      params: of the model, or their shapes.

    Returns:
      {path: weight decay}.

    Raises:
      ValueError: for a list that does not fit the parameters.
    """
    field = "config.optimizer.weight_decays"
    mask = parameters.flatten(decay_mask(params))
    default = {path: config.weight_decay if decays else 0.0 for path, decays in mask.items()}
    found = parameters.assign(config.weight_decays or [(".*", "default")], default, field)
    return {
        path: default[path] if value == "default" else _number(value, field, " or 'default'")
        for path, value in found.items()
    }


def trainable_paths(config: ConfigDict, params: parameters.Params) -> frozenset[str]:
    """Paths of the parameters that are not frozen.

    Raises:
      ValueError: as `lr_multipliers` does.
    """
    return frozenset(path for path, value in lr_multipliers(config, params).items() if value)


def create_optimizer(
    config: ConfigDict, steps: int, params: parameters.Params
) -> optax.GradientTransformation:
    """AdamW as `config.optimizer` says, for a run of `steps` steps.

    A parameter of multiplier m and weight decay w moves by
    -m * learning_rate * (adam + w * parameter), as with the parameter groups of PyTorch.
    Frozen parameters are no part of it: its `init` and `update` take the trees of the
    trainable ones alone (`parameters.split` at `trainable_paths`), so that there are no
    moments of frozen ones, and neither decay nor the clipping of gradients sees them.

    Args:
      config: `config.optimizer`.
      steps: of the run.
      params: all parameters of the model, frozen ones included, or their shapes.

    Raises:
      ValueError: for lists that do not fit the parameters.
    """
    multipliers = lr_multipliers(config, params)
    decays = weight_decays(config, params)
    trainable = [path for path, value in multipliers.items() if value]
    if config.weight_decays:
        decay = _add_decays({path: decays[path] for path in trainable})
    else:
        decay = optax.add_decayed_weights(config.weight_decay, decay_mask)
    parts = [
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        decay,
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    ]
    if any(multipliers[path] != 1 for path in trainable):
        parts.append(_scale({path: multipliers[path] for path in trainable}))
    adamw = optax.chain(*parts)
    if not config.clip_norm:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def _add_decays(decays: Mapping[str, float]) -> optax.GradientTransformation:
    tree = parameters.unflatten(decays)
    return optax.stateless(
        lambda updates, params: jax.tree.map(
            lambda u, p, decay: u + decay * p if decay else u, updates, params, tree
        )
    )


def _scale(multipliers: Mapping[str, float]) -> optax.GradientTransformation:
    tree = parameters.unflatten(multipliers)
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, m: u if m == 1 else m * u, updates, tree)
    )


def _number(value, field: str, alternative: str = "") -> float:
    if isinstance(value, bool | str) or not isinstance(value, int | float) or not value >= 0:
        raise ValueError(f"{field} holds the value {value!r}; use numbers from 0{alternative}")
    return float(value)

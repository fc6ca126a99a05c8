"""The training state and the jitted step over it."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from ccl_jax.models.presets import build_model
from ccl_jax.models.two_towers import Embeddings, TwoTowers, normalize_image
from ccl_jax.training import averaging, lora, parameters
from ccl_jax.training import objective as objectives
from ccl_jax.training.optimizer import create_optimizer, trainable_paths
from ccl_jax.training.sharding import DATA_AXIS, replicated, sharded

Metrics = dict[str, Float[Array, ""]]


@flax.struct.dataclass
class TrainState:
    """Everything that training changes; with the config, all that a resumed run needs.

    There is no random key: the step has no randomness of its own, and the data's is a
    function of seed and step.

    Attributes:
      step: number of steps taken.
      params: of the model; with `config.lora`, its low-rank updates as `lora`.
      opt_state: of the optimiser, about the parameters that are not frozen alone.
      ema: the average of those over the steps; None unless `config.train.ema_decay`.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    ema: Any = None


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The compiled parts of a run.

    Attributes:
      model: the towers.
      init: `() -> TrainState`, created on the devices.
      step: `(state, batch) -> (state, metrics)`; the state passed in is used up.
      start: `(state, params) -> state`: a fresh state that begins with other weights of the
        towers; the state passed in is used up.
      evaluated: `state -> params`, the parameters to evaluate: the averaged ones where there
        are, with low-rank updates added to their kernels.
    """

    model: TwoTowers
    init: Callable[[], TrainState]
    step: Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, Metrics]]
    start: Callable[[TrainState, Any], TrainState]
    evaluated: Callable[[TrainState], Any]


def create_trainer(config: ConfigDict, mesh: Mesh, *, eot_id: int) -> Trainer:
    """Builds model, optimiser and step for `config` on the devices of `mesh`.

    Raises:
      ValueError: if lists of `config.optimizer` or `config.lora` do not fit the parameters.
    """
    model_config = config.model.to_dict()
    model_config["dtype"] = jnp.dtype(model_config["dtype"])
    model = build_model(model_config, eot_id=eot_id)
    shapes = jax.eval_shape(lambda: initial_params(config, model))
    trainable = trainable_paths(config.optimizer, shapes)
    optimizer = create_optimizer(config.optimizer, config.train.steps, shapes)
    whole = replicated(mesh)

    def average(params):
        # A copy: state is donated, and a buffer cannot be donated twice.
        trained = parameters.split(params, trainable)[0]
        return jax.tree.map(jnp.copy, trained) if config.train.ema_decay else None

    def init() -> TrainState:
        params = initial_params(config, model)
        opt_state = optimizer.init(parameters.split(params, trainable)[0])
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state, average(params))

    def start(state: TrainState, params) -> TrainState:
        params = parameters.merge(state.params, params)
        return state.replace(params=params, ema=average(params))

    @functools.partial(jax.jit, out_shardings=whole)
    def effective(params):
        return lora.effective(config.lora, params)

    def evaluated(state: TrainState):
        params = parameters.merge(state.params, state.ema) if state.ema else state.params
        return effective(params) if config.lora.rank else params

    step = jax.jit(
        _make_step(config, model, optimizer, trainable, mesh),
        in_shardings=(whole, sharded(mesh)),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )
    return Trainer(model, jax.jit(init, out_shardings=whole), step, start, evaluated)


def initial_params(config: ConfigDict, model: TwoTowers):
    """Freshly initialised parameters of a run, with the low-rank updates of `config.lora`.

    Raises:
      ValueError: if `config.lora` does not fit them.
    """
    return lora.add(config.lora, parameters.initial(model, config.seed), config.seed)


def abstract_state(trainer: Trainer, mesh: Mesh) -> TrainState:
    """Shapes, types and placement of the state, without making it."""
    whole = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
        jax.eval_shape(trainer.init),
    )


def _make_step(config, model, optimizer, trainable, mesh):
    objective = config.objective.to_dict()
    wanted = objectives.needs(objective)
    max_log_scale = math.log(config.optimizer.max_scale)
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    total_loss = _sharded_loss(objective, mesh)

    def loss_fn(trained, frozen, batch):
        embeddings = model.apply(
            {"params": lora.effective(config.lora, parameters.merge(frozen, trained))},
            image=normalize_image(batch["image"], mean, std),
            text=batch["text"] if "text" in wanted else None,
            phrase_text=batch["phrase_text"] if "phrase" in wanted else None,
            image_tokens="image_tokens" in wanted,
            patch_emb="patch_emb" in wanted,
        )
        return total_loss(embeddings, {k: x for k, x in batch.items() if k != "image"})

    def step(state: TrainState, batch) -> tuple[TrainState, Metrics]:
        # Only what is trained is differentiated: frozen towers have no backward pass.
        trained, frozen = parameters.split(state.params, trainable)
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, metrics), grads = gradient(trained, frozen, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        if "log_scale" in trained:
            trained["log_scale"] = jnp.clip(trained["log_scale"], 0.0, max_log_scale)
        count, ema = state.step + 1, state.ema
        if ema is not None:
            ema = averaging.update_ema(ema, trained, count, config.train.ema_decay)
        params = parameters.merge(frozen, trained)
        metrics |= {
            "loss": loss,
            "gradient_norm": optax.tree.norm(grads),
            "scale": jnp.exp(params["log_scale"]),
            "bias": params["bias"],
        }
        return TrainState(count, params, opt_state, ema), metrics

    return step


def _sharded_loss(objective, mesh: Mesh):
    """`(embeddings, batch) -> (loss, metrics)` of the global batch, split over the devices.

    Under `shard_map`, so that what crosses devices is what the losses say: left to itself
    the partitioner would gather image tokens.
    """
    if mesh.size == 1:
        return functools.partial(objectives.total_loss, objective)
    split, whole = PartitionSpec(DATA_AXIS), PartitionSpec()
    specs = dict.fromkeys(objectives.needs(objective), split) | {"scale": whole, "bias": whole}
    mapped = jax.shard_map(
        functools.partial(objectives.total_loss, objective, axis_name=DATA_AXIS),
        mesh=mesh,
        in_specs=(Embeddings(**specs), split),
        out_specs=whole,
    )

    def total_loss(embeddings: Embeddings, batch):
        read = {name: getattr(embeddings, name) for name in specs}
        return mapped(Embeddings(**read), batch)

    return total_loss

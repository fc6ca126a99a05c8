"""The training state and the jitted step over it."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from ccl_jax.models.presets import build_model
from ccl_jax.models.two_towers import Embeddings, TwoTowers
from ccl_jax.training import (
    averaging,
    flops,
    forward,
    lora,
    parameters,
    partition,
    tower_outputs,
)
from ccl_jax.training import objective as objectives
from ccl_jax.training.optimizer import (
    create_optimizer,
    learning_rate,
    tower_multipliers,
    trainable_paths,
)
from ccl_jax.training.sharding import AXES, BATCH_AXES, TENSOR_AXIS, replicated, sharded

Metrics = dict[str, Float[Array, ""]]


@flax.struct.dataclass
class TrainState:
    """Everything that training changes; with the config, all that a resumed run needs.

    There is no random key: what is random, in the data and in patch dropout, is a function of
    seed and step.

    Attributes:
      step: number of steps taken.
      params: of the model; with `config.lora`, its low-rank updates as `lora`.
      opt_state: of the optimiser, about the parameters that are not frozen alone.
      ema: the average of those over the steps; None unless `config.train.ema_decay`.
      skipped: (2,) steps whose loss or gradient was not finite, so that they changed nothing
        but `step`: of the whole run, and in a row up to now.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    ema: Any = None
    skipped: Int[Array, "2"] | None = None


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
        are, with low-rank updates added to their kernels; whole on every device.
      placements: of the state, a `NamedSharding` for each array.
      flops: operations of the matrix products of a step, over all devices (`flops.model_flops`).
    """

    model: TwoTowers
    init: Callable[[], TrainState]
    step: Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, Metrics]]
    start: Callable[[TrainState, Any], TrainState]
    evaluated: Callable[[TrainState], Any]
    placements: TrainState
    flops: int


def create_trainer(config: ConfigDict, mesh: Mesh, *, eot_id: int) -> Trainer:
    """Builds model, optimiser and step for `config` on the devices of `mesh`.

    Raises:
      ValueError: if lists of `config.optimizer`, `config.lora` or `config.sharding` do not fit
        the parameters.
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
        step, skipped = jnp.zeros((), jnp.int32), jnp.zeros(2, jnp.int32)
        return TrainState(step, params, opt_state, average(params), skipped)

    placed = partition.place(shapes, config.sharding.rules, mesh)
    placements = partition.shardings(jax.eval_shape(init), placed, mesh)

    def start(state: TrainState, params) -> TrainState:
        params = parameters.merge(state.params, params)
        params = jax.device_put(params, placements.params)
        return state.replace(params=params, ema=average(params))

    effective = jax.jit(functools.partial(lora.effective, config.lora), out_shardings=whole)

    def evaluated(state: TrainState):
        params = parameters.merge(state.params, state.ema) if state.ema else state.params
        split = any(not x.is_fully_replicated for x in jax.tree.leaves(params))
        return effective(params) if config.lora.rank or split else params

    step = jax.jit(
        _make_step(config, model, optimizer, shapes, mesh),
        in_shardings=(placements, sharded(mesh)),
        out_shardings=(placements, whole),
        donate_argnums=0,
    )
    init = jax.jit(init, out_shardings=placements)
    needed = flops.model_flops(config, model, trainable)
    return Trainer(model, init, step, start, evaluated, placements, needed)


def initial_params(config: ConfigDict, model: TwoTowers):
    """Freshly initialised parameters of a run, with the low-rank updates of `config.lora`.

    Raises:
      ValueError: if `config.lora` does not fit them.
    """
    return lora.add(config.lora, parameters.initial(model, config.seed), config.seed)


def abstract_state(trainer: Trainer) -> TrainState:
    """Shapes, types and placement of the state, without making it."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(trainer.init),
        trainer.placements,
    )


def _make_step(config, model, optimizer, shapes, mesh):
    objective = config.objective.to_dict()
    trainable = trainable_paths(config.optimizer, shapes)
    rates = tower_multipliers(config.optimizer, shapes)
    max_log_scale = math.log(config.optimizer.max_scale)
    if config.tower_store.folder:
        embed = tower_outputs.create_forward(config, model)
    else:
        embed = forward.create_forward(config, model, mesh)
    total_loss = _sharded_loss(objective, mesh)
    schedule = learning_rate(config.optimizer, config.train.steps)

    def loss_fn(trained, frozen, batch, step):
        params = lora.effective(config.lora, parameters.merge(frozen, trained))
        embeddings = embed(params, batch, step)
        return total_loss(embeddings, {k: x for k, x in batch.items() if k != "image"})

    def step(state: TrainState, batch) -> tuple[TrainState, Metrics]:
        # Only what is trained is differentiated: frozen towers have no backward pass.
        before, frozen = parameters.split(state.params, trainable)
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, metrics), grads = gradient(before, frozen, batch, state.step)
        norms = _gradient_norms(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, before)
        trained = optax.apply_updates(before, updates)
        if "log_scale" in trained:
            trained["log_scale"] = jnp.clip(trained["log_scale"], 0.0, max_log_scale)
        count, ema = state.step + 1, state.ema
        if ema is not None:
            ema = averaging.update_ema(ema, trained, count, config.train.ema_decay)
        finite = jnp.isfinite(loss) & jnp.isfinite(norms["gradient_norm"])
        keep = functools.partial(jax.tree.map, functools.partial(jnp.where, finite))
        trained = keep(trained, before)
        opt_state, ema = keep(opt_state, state.opt_state), keep(ema, state.ema)
        skipped = jnp.where(finite, state.skipped * jnp.array([1, 0]), state.skipped + 1)
        params = parameters.merge(frozen, trained)
        rate = schedule(state.step)
        metrics |= norms | {f"learning_rate/{name}": rate * m for name, m in rates.items()}
        metrics |= {
            "loss": loss,
            "scale": jnp.exp(params["log_scale"]),
            "bias": params["bias"],
            "learning_rate": rate,
            "skipped_steps": skipped[0],
            "skipped_in_a_row": skipped[1],
        }
        return TrainState(count, params, opt_state, ema, skipped), metrics

    return step


def _gradient_norms(grads) -> Metrics:
    """Of the whole gradient, and of the part of it in each tower that is trained."""
    parts = {name: part for name, part in grads.items() if name.endswith("_tower")}
    norms = {f"gradient_norm/{name}": optax.tree.norm(part) for name, part in parts.items()}
    return norms | {"gradient_norm": optax.tree.norm(grads)}


def _sharded_loss(objective, mesh: Mesh):
    """`(embeddings, batch) -> (loss, metrics)` of the global batch, split over the devices.

    Under `shard_map`, so that what crosses devices is what the losses say: left to itself
    the partitioner would gather image tokens.
    """
    loss = functools.partial(objectives.total_loss, objective)
    names, whole = objectives.needs(objective), PartitionSpec()

    def total_loss(embeddings: Embeddings, batch):
        # Here and nowhere before: towers that split their images further gather them again.
        read = {name: getattr(embeddings, name) for name in names}
        if mesh.size > 1:
            read = jax.lax.with_sharding_constraint(read, sharded(mesh))
        axes = _loss_axes(mesh, jax.tree.leaves((read, batch)))
        if math.prod(mesh.shape[name] for name in axes) == 1:
            return loss(embeddings, batch)
        split = PartitionSpec(axes)
        specs = dict.fromkeys(names, split) | {"scale": whole, "bias": whole}
        mapped = jax.shard_map(
            functools.partial(loss, axis_name=axes),
            mesh=mesh,
            in_specs=(Embeddings(**specs), split),
            out_specs=whole,
        )
        scalars = {"scale": embeddings.scale, "bias": embeddings.bias}
        return mapped(Embeddings(**read, **scalars), batch)

    return total_loss


def _loss_axes(mesh: Mesh, arrays: Sequence[Array]) -> tuple[str, ...]:
    """The axes that share the loss: the tensor axis too, if it divides the rows of a device.

    Towers give their outputs to all devices of that axis, which would all do the same.
    """
    everywhere = all(len(x) % mesh.size == 0 for x in arrays)
    return AXES if mesh.shape[TENSOR_AXIS] > 1 and everywhere else BATCH_AXES

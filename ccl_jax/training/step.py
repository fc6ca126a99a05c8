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
from ccl_jax.training import objective as objectives
from ccl_jax.training.optimizer import create_optimizer
from ccl_jax.training.sharding import DATA_AXIS, replicated, sharded

Metrics = dict[str, Float[Array, ""]]


@flax.struct.dataclass
class TrainState:
    """Everything that training changes; with the config, all that a resumed run needs.

    There is no random key: the step has no randomness of its own, and the data's is a
    function of seed and step.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The compiled parts of a run.

    Attributes:
      model: the towers.
      init: `() -> TrainState`, created on the devices.
      step: `(state, batch) -> (state, metrics)`; the state passed in is used up.
    """

    model: TwoTowers
    init: Callable[[], TrainState]
    step: Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, Metrics]]


def create_trainer(config: ConfigDict, mesh: Mesh, *, eot_id: int) -> Trainer:
    """Builds model, optimiser and step for `config` on the devices of `mesh`."""
    model_config = config.model.to_dict()
    model_config["dtype"] = jnp.dtype(model_config["dtype"])
    model = build_model(model_config, eot_id=eot_id)
    optimizer = create_optimizer(config.optimizer, config.train.steps)
    whole = replicated(mesh)

    def init() -> TrainState:
        size = model.image["image_size"]
        params = model.init(
            jax.random.key(config.seed),
            jnp.zeros((1, size, size, 3)),
            jnp.zeros((1, model.text["length"]), jnp.int32),
            image_tokens=True,
            patch_emb=model.patch_embedder,
        )["params"]
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    step = jax.jit(
        _make_step(config, model, optimizer, mesh),
        in_shardings=(whole, sharded(mesh)),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )
    return Trainer(model, jax.jit(init, out_shardings=whole), step)


def abstract_state(trainer: Trainer, mesh: Mesh) -> TrainState:
    """Shapes, types and placement of the state, without making it."""
    whole = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
        jax.eval_shape(trainer.init),
    )


def _make_step(config, model, optimizer, mesh):
    objective = config.objective.to_dict()
    wanted = objectives.needs(objective)
    max_log_scale = math.log(config.optimizer.max_scale)
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    total_loss = _sharded_loss(objective, mesh)

    def loss_fn(params, batch):
        embeddings = model.apply(
            {"params": params},
            image=normalize_image(batch["image"], mean, std),
            text=batch["text"] if "text" in wanted else None,
            phrase_text=batch["phrase_text"] if "phrase" in wanted else None,
            image_tokens="image_tokens" in wanted,
            patch_emb="patch_emb" in wanted,
        )
        return total_loss(embeddings, {k: x for k, x in batch.items() if k != "image"})

    def step(state: TrainState, batch) -> tuple[TrainState, Metrics]:
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, metrics), grads = gradient(state.params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params["log_scale"] = jnp.clip(params["log_scale"], 0.0, max_log_scale)
        metrics |= {
            "loss": loss,
            "gradient_norm": optax.tree.norm(grads),
            "scale": jnp.exp(params["log_scale"]),
            "bias": params["bias"],
        }
        return TrainState(state.step + 1, params, opt_state), metrics

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

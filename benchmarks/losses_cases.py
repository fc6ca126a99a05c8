"""What `losses.py` times: every loss as one function of arrays, its layouts, its arithmetic."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ccl_jax import losses
from ccl_jax.training.flops import loss_flops

# "dense", images of a block, "auto" for as many as fit caches, or "loop": the reference that
# goes over the texts one by one.
Layout = int | str

SCALE, BIAS = 10.0, -5.0


class Case(NamedTuple):
    """Sizes of a batch; a caption for every image unless said otherwise."""

    images: int
    phrases: int
    tokens: int
    width: int
    captions: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Case":
        """Reads "64x256x196x768": images, phrases, tokens, width."""
        sizes = [int(n) for n in text.split("x")]
        if len(sizes) != 4 or min(sizes) < 1:
            raise ValueError(f"{text!r}: use images x phrases x tokens x width, as 64x256x196x768")
        return cls(*sizes)

    def __str__(self) -> str:
        return "x".join(str(n) for n in self[:4])


class Loss(NamedTuple):
    """A loss of the library.

    Attributes:
      function: the loss.
      arrays: names of the arrays that it takes by position.
      scalars: names of the scalars that it takes by keyword, after them here.
      pooled: name of the texts that attend to image tokens, if any do.
    """

    function: Callable
    arrays: tuple[str, ...]
    scalars: tuple[str, ...] = ("scale", "bias")
    pooled: str | None = None


_PHRASES = ("phrase", "phrase_image")
LOSSES = {
    "ccl": Loss(losses.ccl_loss, ("image", "text", "tokens", *_PHRASES), pooled="phrase"),
    "xac": Loss(losses.xac_loss, ("tokens", *_PHRASES), pooled="phrase"),
    "pacl": Loss(losses.pacl_loss, ("tokens", "text"), ("scale",), pooled="text"),
    "npc": Loss(losses.npc_loss, ("image", *_PHRASES)),
    "siglip": Loss(losses.siglip_loss, ("image", "text")),
    "clip": Loss(losses.clip_loss, ("image", "text"), ("scale",)),
}


def shapes(name: str, case: Case, dtype: str = "float32") -> tuple[jax.ShapeDtypeStruct, ...]:
    """Arguments of a loss as shapes, arrays first, then scalars."""
    images, phrases, tokens, width, captions = case
    sizes = {
        "image": (images, width),
        "text": (captions or images, width),
        "tokens": (images, tokens, width),
        "phrase": (phrases, width),
    }
    arrays = [
        jax.ShapeDtypeStruct((phrases,), jnp.int32)
        if array == "phrase_image"
        else jax.ShapeDtypeStruct(sizes[array], jnp.dtype(dtype))
        for array in LOSSES[name].arrays
    ]
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    return *arrays, *(scalar for _ in LOSSES[name].scalars)


def draw(name: str, case: Case, dtype: str = "float32") -> tuple[jax.Array, ...]:
    """Random arguments of a loss: unit rows, phrases spread evenly, one in 16 padding."""
    arrays = []
    for array, shape in zip(LOSSES[name].arrays, shapes(name, case, dtype), strict=False):
        if array == "phrase_image":
            n = jnp.arange(case.phrases, dtype=jnp.int32)
            owner = n * case.images // case.phrases
            arrays.append(jnp.where(n % 16 == 15, -1, owner))
        else:
            key = jax.random.fold_in(jax.random.key(0), sum(map(ord, array)))
            arrays.append(_unit_rows(key, shape.shape, shape.dtype))
    return *arrays, *(jnp.float32({"scale": SCALE, "bias": BIAS}[s]) for s in LOSSES[name].scalars)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _unit_rows(key, shape, dtype):
    return losses.unit(jax.random.normal(key, shape)).astype(dtype)


def value_and_grad(
    name: str, layout: Layout = "dense", *, mesh: Mesh | None = None, **options: Any
) -> Callable:
    """`((loss, metrics), gradients) = f(*arguments)`, of all arguments but indices.

    Args:
      name: of the loss.
      layout: "dense", "loop", or the images of a block, "auto" included.
      mesh: if given, images and texts are split over all its axes.
      **options: further keyword arguments of the loss.
    """
    loss = LOSSES[name]
    if layout not in ("dense", "loop"):
        options["chunk_size"] = layout
    if mesh is not None:
        options["axis_name"] = mesh.axis_names if len(mesh.axis_names) > 1 else mesh.axis_names[0]
    function = functools.partial(LOOPS[name] if layout == "loop" else loss.function, **options)

    def call(*arguments):
        arrays, scalars = arguments[: len(loss.arrays)], arguments[len(loss.arrays) :]
        return function(*arrays, **dict(zip(loss.scalars, scalars, strict=True)))

    if mesh is not None:
        call = jax.shard_map(call, mesh=mesh, in_specs=_specs(name, mesh), out_specs=_WHOLE)
    names = loss.arrays + loss.scalars
    wanted = tuple(i for i, argument in enumerate(names) if argument != "phrase_image")
    return jax.value_and_grad(call, argnums=wanted, has_aux=True)


def compile_(
    name: str,
    case: Case,
    layout: Layout = "dense",
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    **options: Any,
) -> jax.stages.Compiled:
    """`value_and_grad` compiled for the shapes of a case; runs nothing."""
    arguments = shapes(name, case, dtype)
    if mesh is not None:
        arguments = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
            for x, spec in zip(arguments, _specs(name, mesh), strict=True)
        ]
    if case.captions is not None and name in ("ccl", "pacl", "siglip", "clip"):
        options["text_image"] = jnp.arange(case.captions, dtype=jnp.int32)
    function = value_and_grad(name, layout, mesh=mesh, **options)
    return jax.jit(function).lower(*arguments).compile()


_WHOLE = PartitionSpec()


def _specs(name, mesh):
    split = PartitionSpec(mesh.axis_names)
    return (split,) * len(LOSSES[name].arrays) + (_WHOLE,) * len(LOSSES[name].scalars)


def needed_flops(name: str, case: Case) -> int:
    """`flops.loss_flops` of a case."""
    return loss_flops(name, *case)


def _similarity_loop(tokens, texts, sharpness=1.0, cosine=False):
    """`pooled_similarity` one text at a time, each against all images, as in released code."""

    def one(text):
        products = tokens @ text
        norms = jnp.linalg.norm(tokens, axis=-1) if cosine else 1.0
        attention = jax.nn.softmax(sharpness * products / norms, axis=-1)
        return losses.unit(jnp.einsum("bl,bld->bd", attention, tokens)) @ text

    return jax.lax.map(one, texts).T


def _xac_loop(tokens, phrase, phrase_image, *, scale, bias):
    logits = scale * _similarity_loop(tokens, phrase) + bias
    positive = phrase_image[None, :] == jnp.arange(tokens.shape[0])[:, None]
    terms = jax.nn.softplus(jnp.where(positive, -logits, logits))
    real = phrase_image >= 0
    return jnp.sum(terms, where=real[None, :]) / jnp.sum(real), {}


def _ccl_loop(image, text, tokens, phrase, phrase_image, *, scale, bias):
    shared = {"scale": scale, "bias": bias}
    contrastive, _ = losses.siglip_loss(image, text, **shared)
    npc, _ = losses.npc_loss(image, phrase, phrase_image, **shared)
    return contrastive + npc + 0.01 * _xac_loop(tokens, phrase, phrase_image, **shared)[0], {}


def _pacl_loop(tokens, text, *, scale):
    logits = scale * _similarity_loop(tokens, text, sharpness=10.0, cosine=True)
    right = jnp.arange(logits.shape[0])
    terms = (jax.nn.log_softmax(logits, axis)[right, right] for axis in (0, 1))
    return -sum(jnp.mean(term) for term in terms) / 2, {}


# A loop of XLA over the texts (lax.map), not one unrolled by Python.
LOOPS = {"xac": _xac_loop, "ccl": _ccl_loop, "pacl": _pacl_loop}

"""What the losses ask of `shard_map`: gathered texts, sums over devices, varying types."""

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Shaped

AxisName = str | tuple[str, ...]
Tree = TypeVar("Tree", bound=PyTree)


def check_axis(axis_name: AxisName | None) -> None:
    """Checks that a mapped axis of that name is in scope.

    Raises:
      ValueError: if there is none.
    """
    if axis_name is None:
        return
    try:
        jax.lax.axis_size(axis_name)
    except NameError:
        raise ValueError(
            f"axis_name={axis_name!r} is not the name of a mapped axis here: call the loss "
            "inside jax.shard_map over a mesh with that axis, or leave axis_name out"
        ) from None


def gather(tree: Tree, axis_name: AxisName | None) -> Tree:
    """Every device's rows, in the order of the devices; the gradient is scattered back.

    Bytes received by a device for n rows over W devices: (W - 1) / W of the whole array,
    and as many in the backward pass.
    """
    if axis_name is None:
        return tree
    names = (axis_name,) if isinstance(axis_name, str) else axis_name
    # One axis after the other: over a whole torus at once the TPU compiler scatters nothing,
    # but sums the gradients of all rows on all devices. The last one first keeps the order.
    for name in reversed(names):
        tree = jax.tree.map(functools.partial(_gather, name), tree)
    return tree


def _gather(name, x):
    return jax.lax.all_gather(x, name, tiled=True)


def shift(tree: Tree, axis_name: AxisName) -> Tree:
    """Every device's arrays, handed to the next device of the ring."""
    devices = jax.lax.axis_size(axis_name)
    ring = [(i, (i + 1) % devices) for i in range(devices)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axis_name, ring), tree)


def add(tree: Tree, axis_name: AxisName | None) -> Tree:
    """Sum over the devices."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def logsumexp(x: Shaped[Array, " n"], axis_name: AxisName | None) -> Shaped[Array, " n"]:
    """log of the sum over the devices of exp(x), without overflow."""
    if axis_name is None:
        return x
    top = jax.lax.pmax(jax.lax.stop_gradient(x), axis_name)
    return top + jnp.log(jax.lax.psum(jnp.exp(x - top), axis_name))


def first_row(rows: int, axis_name: AxisName | None) -> Int[Array, ""] | int:
    """Row of the global batch that this device's first row is."""
    return 0 if axis_name is None else jax.lax.axis_index(axis_name) * rows


def unify(*trees: PyTree) -> tuple[PyTree, ...]:
    """Makes all arrays vary over every mapped axis that one of them varies over.

    `shard_map` tracks this in the types of arrays, and loops want it alike throughout. The
    gradient of an array that was the same on all devices is then summed over them.
    """
    axes = frozenset().union(*map(_axes, jax.tree.leaves(trees)))
    return jax.tree.map(lambda x: _vary(x, axes), trees)


def like(tree: Tree, reference: Array) -> Tree:
    """`tree` varying as `reference` does; for the zeros that a loop starts from."""
    return jax.tree.map(lambda x: _vary(x, _axes(reference)), tree)


def _axes(x) -> frozenset:
    kind = jax.typeof(x)
    # JAX renamed the attribute in 0.10.
    return kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma


def _vary(x, axes):
    missing = tuple(axes - _axes(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x

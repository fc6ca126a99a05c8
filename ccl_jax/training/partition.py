"""Which parameters are split over which devices: ordered rules, checked against the mesh.

A rule says, for the parameters that its regex matches, over which axes of the mesh their
dimensions are split: `("fsdp", "tensor")` splits the first dimension of a matrix over one and
the second over the other, `(None, "tensor")` the second alone. `"fsdp"` splits the largest
dimension that divides, and `"replicated"` none.

Optimiser state and moving averages lie as the parameter that they belong to.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ccl_jax.training import parameters
from ccl_jax.training.sharding import FSDP_AXIS, TENSOR_AXIS

_FIELD = "config.sharding.rules"

# Shoeybi et al., "Megatron-LM" (2019), section 3: what makes heads and hidden units is split
# by its columns, what reads them by its rows, so that a block needs two sums over devices.
# The other dimension is split over the FSDP axis.
TENSOR_RULES = (
    (r".*/attention/(query|key|value)/kernel", (FSDP_AXIS, TENSOR_AXIS)),
    (r".*/attention/(query|key|value)/bias", (TENSOR_AXIS,)),
    (r".*/attention/out/kernel", (TENSOR_AXIS, FSDP_AXIS)),
    (r".*/mlp/up/kernel", (FSDP_AXIS, TENSOR_AXIS)),
    (r".*/mlp/up/bias", (TENSOR_AXIS,)),
    (r".*/mlp/down/kernel", (TENSOR_AXIS, FSDP_AXIS)),
    (".*", "fsdp"),
)


class Placed(NamedTuple):
    """A parameter and how it lies on the mesh.

    Attributes:
      shape: of the whole parameter.
      spec: axis, axes or None for each dimension.
      bytes: of the part that one device holds.
    """

    shape: tuple[int, ...]
    spec: PartitionSpec
    bytes: int


def place(
    params: parameters.Params, rules: Iterable[Sequence[Any]], mesh: Mesh
) -> dict[str, Placed]:
    """How every parameter lies on the mesh.

    Args:
      params: arrays or their `jax.eval_shape`.
      rules: (regex, rule) pairs as the module says; the first that matches a whole path
        counts. Empty: `TENSOR_RULES` where the mesh has a tensor axis, else "fsdp" for all.
      mesh: of `sharding.create_mesh`.

    Returns:
      {path: Placed}.

    Raises:
      ValueError: naming the parameter that a rule does not fit and why, or as
        `parameters.assign` does.
    """
    shapes = parameters.flatten(params)
    rules = list(rules)
    if not rules and mesh.shape[TENSOR_AXIS] > 1:
        # Of a model without LoRA, say, some of the rules match nothing.
        rules = [rule for rule in TENSOR_RULES if any(re.fullmatch(rule[0], p) for p in shapes)]
    chosen = parameters.assign(rules or [(".*", "fsdp")], shapes, _FIELD)
    placed = {}
    for path, leaf in shapes.items():
        spec = _spec(path, leaf.shape, chosen[path], mesh)
        size = math.prod(leaf.shape) * leaf.dtype.itemsize // _parts(spec, mesh)
        placed[path] = Placed(tuple(leaf.shape), spec, size)
    return placed


def shardings(tree: Any, placed: Mapping[str, Placed], mesh: Mesh) -> Any:
    """A sharding for every leaf of a training state.

    A leaf whose path ends in that of a parameter, and which has its shape, lies as that one:
    moments of the optimiser and averages of the weights. Others are whole on every device.

    Args:
      tree: arrays or their `jax.eval_shape`.
      placed: of `place`.
      mesh: the same.

    Returns:
      `NamedSharding`s in the structure of `tree`.
    """

    def of_leaf(keys, leaf):
        names = [jax.tree_util.keystr((key,), simple=True) for key in keys]
        for start in range(len(names)):
            found = placed.get("/".join(names[start:]))
            if found and found.shape == tuple(leaf.shape):
                return NamedSharding(mesh, found.spec)
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def device_bytes(tree: Any, placements: Any) -> int:
    """Bytes that one device holds of a tree of arrays with these shardings."""
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(placements), strict=True)
    return sum(
        math.prod(sharding.shard_shape(tuple(leaf.shape))) * leaf.dtype.itemsize
        for leaf, sharding in leaves
    )


def table(placed: Mapping[str, Placed], mesh: Mesh) -> str:
    """A line for every parameter: path, shape, spec and bytes on a device, and their sum.

    Numbered layers that lie alike share a line, with `*` for their numbers.
    """
    groups: dict[tuple, list[Placed]] = {}
    for path, one in placed.items():
        key = (re.sub(r"_\d+(?=/|$)", "_*", path), one.shape, one.spec)
        groups.setdefault(key, []).append(one)
    rows = [("parameter", "shape", "split over", "kB a device")]
    for (path, shape, spec), members in groups.items():
        times = f" x {len(members)}" if len(members) > 1 else ""
        size = sum(one.bytes for one in members)
        dimensions = " x ".join(f"{n:,}" for n in shape) or "scalar"
        rows.append((path + times, dimensions, _words(spec), f"{size / 1e3:,.1f}"))
    total = sum(one.bytes for one in placed.values())
    whole = sum(one.bytes * _parts(one.spec, mesh) for one in placed.values())
    mesh_words = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    rows.append((f"all, mesh {mesh_words}", f"{whole / 1e3:,.1f} kB", "", f"{total / 1e3:,.1f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}"
        for a, b, c, d in rows
    )


def _spec(path: str, shape: Sequence[int], rule: Any, mesh: Mesh) -> PartitionSpec:
    if rule == "replicated":
        return PartitionSpec()
    if rule == "fsdp":
        return _largest(shape, mesh)
    if isinstance(rule, str) or not isinstance(rule, list | tuple):
        raise ValueError(
            f"{_FIELD} gives {path} the rule {rule!r}; use 'fsdp', 'replicated' or a tuple with "
            "an axis or None for each dimension"
        )
    if len(rule) != len(shape):
        raise ValueError(
            f"{_FIELD} gives {path}, of shape {tuple(shape)}, {len(rule)} axes: {tuple(rule)}; "
            f"give {len(shape)}"
        )
    axes = [tuple(axis) if isinstance(axis, list | tuple) else axis for axis in rule]
    for size, axis in zip(shape, axes, strict=True):
        parts = _axis_size(path, axis, mesh)
        if size % parts:
            raise ValueError(
                f"{_FIELD} splits {size} in {path}, of shape {tuple(shape)}, over {axis!r}, "
                f"{parts} devices, which does not divide: change config.mesh, or give this "
                "parameter an earlier rule"
            )
    return PartitionSpec(*axes)


def _largest(shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    parts = mesh.shape[FSDP_AXIS]
    dividing = [i for i, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or not dividing:
        return PartitionSpec()
    # Of dimensions of one size the last: rows of a matrix stay whole.
    at = max(dividing, key=lambda i: (shape[i], i))
    return PartitionSpec(*(FSDP_AXIS if i == at else None for i in range(at + 1)))


def _axis_size(path: str, axis: Any, mesh: Mesh) -> int:
    names = axis if isinstance(axis, tuple) else (axis,) if axis else ()
    for name in names:
        if name not in mesh.shape:
            raise ValueError(
                f"{_FIELD} splits {path} over {name!r}; the axes are {', '.join(mesh.shape)}"
            )
    return math.prod(mesh.shape[name] for name in names)


def _parts(spec: PartitionSpec, mesh: Mesh) -> int:
    return math.prod(_axis_size("", axis, mesh) for axis in spec)


def _words(spec: PartitionSpec) -> str:
    if not any(spec):
        return "-"
    return ", ".join("+".join(axis) if isinstance(axis, tuple) else axis or "-" for axis in spec)

"""Tables between our parameters and the tensors of a checkpoint, for both directions.

A family of checkpoints is a list of `Entry`: a tensor's name, the paths of ours that it holds,
and how to get from one to the other and back. Reading and writing use the same list, so that
what is read and written again has not changed by a bit.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util

from ccl_jax.models.two_towers import TwoTowers
from ccl_jax.weights.files import Tensor, Tensors


class Layout(NamedTuple):
    """How a checkpoint's tensor holds arrays of ours.

    Attributes:
      read: tensor -> our arrays.
      write: our arrays -> tensor; undoes `read`.
    """

    read: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    write: Callable[..., np.ndarray]


class Entry(NamedTuple):
    """A row of a table.

    Attributes:
      name: of the checkpoint's tensor.
      paths: of the parameters in it, as in "image_tower/block_0/mlp/up/kernel".
      layout: how.
    """

    name: str
    paths: tuple[str, ...]
    layout: Layout


def _one(read: Callable, write: Callable) -> Layout:
    return Layout(lambda x: (read(x),), write)


SAME = _one(lambda x: x, lambda x: x)
TRANSPOSED = _one(lambda x: x.T, lambda x: x.T)
SCALAR = _one(lambda x: x.reshape(()), lambda x: x)
ONE_VALUE = _one(lambda x: x.reshape(()), lambda x: x.reshape(1))  # a scalar, as a vector of one
BATCHED = _one(lambda x: x[0], lambda x: x[None])  # (1, n, d), ours (n, d)
UNBATCHED = _one(lambda x: x[None, None], lambda x: x[0, 0])  # (d,), ours (1, 1, d)
# Ours is (row x column x channel, d).
IMAGE_KERNEL = _one(  # (row, column, channel, d)
    lambda x: x.reshape(-1, x.shape[-1]),
    lambda x: x.reshape(*(math.isqrt(len(x) // 3),) * 2, 3, -1),
)
CONV_KERNEL = _one(  # torch's Conv2d: (d, channel, row, column)
    lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
    lambda x: IMAGE_KERNEL.write(x).transpose(3, 2, 0, 1),
)


def stacked(count: int, *, transposed: bool) -> Layout:
    """`count` arrays one after the other along the first axis, as torch fuses projections."""

    def read(x):
        parts = np.split(x, count)
        return tuple(part.T for part in parts) if transposed else tuple(parts)

    return Layout(read, lambda *parts: np.concatenate([p.T if transposed else p for p in parts]))


def dense(path: str, name: str) -> list[Entry]:
    """A torch Linear with bias."""
    return [
        Entry(f"{name}.weight", (f"{path}/kernel",), TRANSPOSED),
        Entry(f"{name}.bias", (f"{path}/bias",), SAME),
    ]


def norm(path: str, name: str) -> list[Entry]:
    """A torch LayerNorm."""
    return [
        Entry(f"{name}.weight", (f"{path}/scale",), SAME),
        Entry(f"{name}.bias", (f"{path}/bias",), SAME),
    ]


def fused(path: str, parts: Sequence[str], weight: str, bias: str) -> list[Entry]:
    """Several Linear layers in one weight and one bias."""
    return [
        Entry(
            weight, tuple(f"{path}/{p}/kernel" for p in parts), stacked(len(parts), transposed=True)
        ),
        Entry(
            bias, tuple(f"{path}/{p}/bias" for p in parts), stacked(len(parts), transposed=False)
        ),
    ]


def blocks(path: str, name: str, depth: int, rows: Callable[[str, str], list[Entry]]):
    """The entries of every block of a tower; `name` has the number's place as `{}`."""
    return [entry for i in range(depth) for entry in rows(f"{path}/block_{i}", name.format(i))]


def parameter_shapes(model: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Paths and shapes of the parameters of `TwoTowers`; nothing is computed.

    Raises:
      ValueError: for sizes that no model has.
    """
    # All blocks of a tower are alike: tracing one of them is enough.
    single = {part: dict(fields) | {"depth": 1} for part, fields in model.items()}
    size, length = single["image"]["image_size"], single["text"]["length"]
    variables = jax.eval_shape(
        TwoTowers(**single).init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
        jax.ShapeDtypeStruct((1, length), jnp.int32),
    )
    shapes = {}
    for path, leaf in traverse_util.flatten_dict(variables["params"], sep="/").items():
        tower, *_ = path.split("_")
        copies = model[tower]["depth"] if "/block_0/" in path else 1
        for i in range(copies):
            shapes[path.replace("/block_0/", f"/block_{i}/")] = leaf.shape
    return shapes


def read(
    entries: Sequence[Entry],
    tensors: Tensors,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    ignored: Mapping[str, str],
    source: str,
) -> dict[str, np.ndarray]:
    """Our parameters from a checkpoint's tensors.

    Args:
      entries: the family's table.
      tensors: the checkpoint's; shapes are checked before anything is read.
      shapes: of our parameters, by path.
      ignored: regular expression of a tensor's whole name -> why it is left over.
      source: what to call the checkpoint in messages.

    Returns:
      Float32 arrays by path.

    Raises:
      ValueError: naming tensors that are missing, surplus, of another shape or not of floats.
    """
    table = {entry.name: entry for entry in entries}
    expected = {entry.name: _tensor_shape(entry, shapes) for entry in entries}
    left = {}
    for name in tensors.keys() - table.keys():
        left[name] = next((why for r, why in ignored.items() if re.fullmatch(r, name)), None)
    problems = {
        "missing": sorted(table.keys() - tensors.keys()),
        "surplus": sorted(name for name, why in left.items() if why is None),
        "of another shape": [
            f"{name} {tensors[name].shape}, not {shape}"
            for name, shape in expected.items()
            if name in tensors and not _fits(tensors[name].shape, shape)
        ],
    }
    found = [f"{len(names)} {what}: {_some(names)}" for what, names in problems.items() if names]
    if found:
        raise ValueError(
            f"{source} does not hold the weights of the model that its config describes. "
            f"Tensors {'; '.join(found)}. See that config and weights belong together"
        )
    for name, why in sorted(left.items()):
        logging.info("%s: %s is left over, %s", source, name, why)
    params = {}
    for name, entry in table.items():
        parts = entry.layout.read(_floats(name, tensors[name], source))
        for path, part in zip(entry.paths, parts, strict=True):
            params[path] = np.array(part, np.float32, order="C")
    return params


def write(
    entries: Sequence[Entry], params: Mapping[str, np.ndarray], *, left: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """A checkpoint's tensors from our parameters; undoes `read`.

    Args:
      entries: the family's table.
      params: float32 arrays by path.
      left: regular expressions of whole paths that the family has no place for.

    Returns:
      Float32 arrays by the checkpoint's names.

    Raises:
      ValueError: naming parameters that are missing or that the family has no place for.
    """
    needed = {path for entry in entries for path in entry.paths}
    surplus = [p for p in params.keys() - needed if not any(re.fullmatch(r, p) for r in left)]
    if missing := sorted(needed - params.keys()):
        raise ValueError(f"the parameters lack {_some(missing)}; give those of the whole model")
    if surplus:
        raise ValueError(f"the format has no place for the parameters {_some(sorted(surplus))}")
    for path in sorted(params.keys() - needed):
        logging.warning("The format has no place for the parameter %s: it is left out", path)
    return {
        entry.name: np.array(
            entry.layout.write(*(np.asarray(params[p], np.float32) for p in entry.paths)),
            order="C",
        )
        for entry in entries
    }


def _tensor_shape(entry: Entry, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    return entry.layout.write(*(np.empty(shapes[path], np.int8) for path in entry.paths)).shape


def _fits(found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    # Families save the scale as a scalar or as a vector of one, and not always the same way.
    return found == expected or {found, expected} == {(), (1,)}


def _floats(name: str, tensor: Tensor, source: str) -> np.ndarray:
    array = tensor.load()
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"{source}: {name} is {array.dtype}; quantised weights are not read, take the "
            "float32, float16 or bfloat16 version"
        )
    return array


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

"""What a device computes and reads in a compiled program, loops turned; from its HLO text.

XLA's own `cost_analysis` counts the body of a loop once.
"""

import math
import re
from collections.abc import Callable

from ccl_jax.training import hlo
from ccl_jax.training.hlo import Computation, Instruction, Module

# They name, order or hand on arrays that are there already.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all "
    "optimization-barrier partition-id replica-id".split()
)


def flops(text: str) -> int:
    """Floating-point operations of all matrix products and convolutions on one device.

    A multiplication and an addition are two. Elementwise work is not counted: it is bound by
    memory, not by arithmetic.

    Raises:
      ValueError: if a product is in a loop of which the text does not tell how often it turns.
    """
    module, total = hlo.parse(text), 0
    for computation, one, times in hlo.walk(module, module.entry, 1):
        if one.opcode in ("dot", "convolution"):
            count = _dot if one.opcode == "dot" else _convolution
            total += _known(times, one) * count(computation, one)
    return total


def memory_bytes(text: str) -> int:
    """Bytes that one device reads from and writes to its main memory, at the most.

    Every kernel reads its operands and writes its results; of an operand that it only takes a
    slice of, the slice. Arrays that the compiler keeps on the chip (memory space 1) are free. A
    loop that turns as often as the data say counts once.
    """
    module, total = hlo.parse(text), 0
    for computation, one, times in hlo.walk(module, module.entry, 1, fusions=False):
        ahead = one.opcode in ("copy-start", "slice-start")
        later = one.opcode.endswith(("-start", "-done", "-update")) and not ahead
        if one.opcode not in _FREE and not later:
            total += (1 if times is None else times) * _traffic(module, computation, one)
    return total


def _known(times: int | None, one: Instruction) -> int:
    if times is None:
        raise ValueError(f"{one.name} is in a loop of unknown turns")
    return times


def _dot(computation: Computation, one: Instruction) -> int:
    left = hlo.dimensions(computation[one.operands[0]].shape)
    contracted = _numbers(one, "lhs_contracting_dims")
    return 2 * math.prod(hlo.dimensions(one.shape)) * math.prod(left[i] for i in contracted)


def _convolution(computation: Computation, one: Instruction) -> int:
    """Counts the products that fall on real elements, not on padding between or around them.

    The TPU compiler writes batched matrix products as convolutions that slide over padding.
    """
    labels = re.search(r"dim_labels=([^_]+)_([^-]+)->([^,\s]+)", one.rest)
    left, kernel, out = (list(labels[i]) for i in (1, 2, 3))
    shapes = [hlo.dimensions(computation[name].shape) for name in one.operands[:2]]
    shapes.append(hlo.dimensions(one.shape))
    size = lambda which, label: shapes[which][(left, kernel, out)[which].index(label)]  # noqa: E731
    spatial = sorted(label for label in kernel if label.isdigit())
    positions = math.prod(
        _positions(size(0, label), size(1, label), size(2, label), one, at)
        for at, label in enumerate(spatial)
    )
    # Kernel features are those of one group already.
    return 2 * size(2, "b") * size(2, "f") * size(1, "i") * positions // _batch_groups(one)


def _batch_groups(one: Instruction) -> int:
    found = re.search(r"batch_group_count=(\d+)", one.rest)
    return int(found[1]) if found else 1


def _positions(left: int, kernel: int, out: int, one: Instruction, at: int) -> int:
    """Pairs (output, kernel element) along a spatial axis that meet an element of the input."""
    field = _window(one, at)
    stride, low = field("stride", "1"), field("pad", "0_0", 0)
    dilate_left, dilate_kernel = field("lhs_dilate", "1"), field("rhs_dilate", "1")
    count = 0
    for k in range(kernel):
        # Positions o * stride + k * dilate - low in the dilated input that are multiples.
        offset = k * dilate_kernel - low
        step = math.gcd(stride, dilate_left)
        if offset % step:
            continue
        period = dilate_left // step
        reach = (left - 1) * dilate_left
        first = max(0, -(offset // stride))
        last = min(out - 1, (reach - offset) // stride)
        start = next(
            (o for o in range(first, first + period) if not (o * stride + offset) % dilate_left),
            None,
        )
        if start is not None and last >= start:
            count += (last - start) // period + 1
    return count


def _window(one: Instruction, at: int) -> Callable[..., int]:
    text = re.search(r"window=\{([^}]*)\}", one.rest)
    given = dict(part.split("=") for part in text[1].split()) if text else {}

    def field(name: str, default: str, which: int | None = None) -> int:
        entry = given[name].split("x")[at] if name in given else default
        return int(entry.split("_")[which]) if which is not None else int(entry)

    return field


def _traffic(module: Module, computation: Computation, one: Instruction) -> int:
    sizes = [
        hlo.main_memory_bytes(computation[name].layout)
        for name in one.operands
        if name in computation
    ]
    written = hlo.main_memory_bytes(one.layout)
    if one.opcode == "copy-start":  # (result, source, state); where they lie is in the layout
        return written
    if one.opcode == "slice-start":  # ((source), result, state)
        return hlo.shape_bytes(hlo.elements(one.shape)[1])
    if one.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * written
    if one.opcode == "dynamic-update-slice":
        return 2 * sizes[1]
    if one.opcode != "fusion":
        return sum(sizes) + written
    inside = module.computations[hlo.called(one)[0]]
    root = next(inner for inner in inside.values() if inner.root)
    reads = [_read_of(module, one, at, size) if size else 0 for at, size in enumerate(sizes)]
    if root.opcode == "dynamic-update-slice" and written:
        return sum(reads) + hlo.shape_bytes(inside[root.operands[1]].shape)
    return sum(reads) + written


def _read_of(module: Module, fusion: Instruction, at: int, size: int) -> int:
    """Bytes of a fusion's operand that it reads: slices alone, if nothing else uses it."""
    inside = module.computations[hlo.called(fusion)[0]]
    name = next(
        inner.name
        for inner in inside.values()
        if inner.opcode == "parameter" and int(inner.operands[0]) == at
    )
    total = 0
    for user in inside.values():
        for place in (k for k, operand in enumerate(user.operands) if operand == name):
            if user.root and user.opcode == "dynamic-update-slice" and place == 0:
                continue  # written in place
            if user.opcode in ("dynamic-slice", "slice", "gather"):
                total += hlo.shape_bytes(user.shape)
            elif user.opcode == "fusion":
                total += _read_of(module, user, place, size)
            else:
                return size
    return min(size, total)


def _numbers(one: Instruction, name: str) -> list[int]:
    found = re.search(rf"{name}=\{{([\d,]*)\}}", one.rest)
    return [int(n) for n in found[1].split(",") if n] if found else []

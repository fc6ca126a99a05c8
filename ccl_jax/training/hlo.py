"""What a compiled program sends between devices, read from its HLO text.

    found = hlo.collectives(jax.jit(f).lower(*shapes).compile().as_text())
    print(hlo.table(found))

Reads the text of XLA for CPU, GPU and TPU after optimisation: shapes are those of one device,
and an operation inside a loop counts as often as the loop turns.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
    "collective-broadcast",
    "ragged-all-to-all",
)
_BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|called_computations|true_computation|false_computation)="
)


class Collective(NamedTuple):
    """One operation; bytes are of one device and one turn.

    Attributes:
      kind: one of KINDS.
      count: how often it runs.
      operand_bytes: of all its operands.
      result_bytes: of all its results.
      devices: that take part in one group.
      shape: of the result, as written.
      source: the JAX operation it came from, where the text says so.
    """

    kind: str
    count: int
    operand_bytes: int
    result_bytes: int
    devices: int
    shape: str
    source: str

    @property
    def received(self) -> float:
        """Bytes that a device receives in all turns, at the least."""
        others = (self.devices - 1) / self.devices
        one = {
            "all-gather": others * self.result_bytes,
            "all-reduce": 2 * others * self.operand_bytes,
            "reduce-scatter": others * self.operand_bytes,
            "all-to-all": others * self.operand_bytes,
        }.get(self.kind, self.result_bytes)
        return self.count * one


class Instruction(NamedTuple):
    """A line of a computation.

    Attributes:
      name: of the instruction.
      shape: of the result, as written.
      opcode: as in "fusion" or "all-gather-start".
      operands: names, or the literal of a constant.
      rest: attributes, metadata and backend configuration.
      root: whether it is what the computation returns.
      layout: the shape with layouts and memory spaces, as written.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    root: bool
    layout: str = ""


Computation = dict[str, Instruction]


class Module(NamedTuple):
    """A program: its computations by name, the name of the first, and its devices."""

    computations: dict[str, Computation]
    entry: str
    devices: int


def parse(text: str) -> Module:
    """Reads the text of a compiled program.

    Raises:
      ValueError: if it has no entry computation.
    """
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (start := _INSTRUCTION.match(line)):
            current[start[2]] = _instruction(start[2], line[start.end() :], bool(start[1]))
    if entry is None:
        raise ValueError("no ENTRY computation: pass the text of a compiled program")
    head = text.splitlines()[0]
    counts = [int(n) for n in re.findall(r"(?:num_partitions|replica_count)=(\d+)", head)]
    return Module(computations, entry, math.prod(counts))


def collectives(text: str) -> list[Collective]:
    """Every collective operation of a compiled program, in the order they are met.

    Both branches of a condition count. An asynchronous operation counts once, where it starts.

    Raises:
      ValueError: if one is in a loop of which the text does not tell how often it turns.
    """
    module = parse(text)
    return [
        _collective(module, computation, instruction, times)
        for computation, instruction, times in walk(module, module.entry, 1)
        if _kind(instruction)
    ]


def estimated_cycles(text: str) -> int:
    """Sum of the TPU compiler's own estimates, loops turned; 0 where there are none."""
    module = parse(text)
    total = 0
    for _, instruction, times in walk(module, module.entry, 1, fusions=False):
        found = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
        total += (times or 0) * int(found[1]) if found else 0
    return total


def received(found: list[Collective]) -> dict[str, float]:
    """Bytes that a device receives, by kind of operation."""
    total = dict.fromkeys(KINDS, 0.0)
    for one in found:
        total[one.kind] += one.received
    return {kind: size for kind, size in total.items() if size}


def table(found: list[Collective], least: int = 0) -> str:
    """A Markdown table of the operations that move at least `least` bytes."""
    lines = [
        "| operation | turns | operand bytes | result bytes | devices | received | result | from |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.kind} | {one.count} | {one.operand_bytes:,} | {one.result_bytes:,} | "
        f"{one.devices} | {one.received:,.0f} | `{one.shape}` | {one.source} |"
        for one in sorted(found, key=lambda one: -one.received)
        if one.received >= least
    ]
    return "\n".join(lines)


def shape_bytes(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple; layouts do not count."""
    total = 0
    for kind, dimensions in _ARRAY.findall(shape):
        bits = _BITS.get(kind)
        if bits is None:
            bits = int(re.search(r"\d+", kind)[0])  # as in f32, s4, bf16, f8e4m3fn
        sizes = [int(n.strip("<=")) for n in dimensions.split(",") if n]
        total += (math.prod(sizes) * bits + 7) // 8
    return total


def dimensions(shape: str) -> list[int]:
    """Sizes of an array's dimensions."""
    return [int(n.strip("<=")) for n in _ARRAY.search(shape)[2].split(",") if n]


def main_memory_bytes(layout: str) -> int:
    """Bytes of the arrays that are not kept on the chip, as memory space 1 is."""
    on_chip = r"[a-z]+\d*[a-z0-9]*\[[\d,<=]*\]\{[^{}]*S\(1\)[^{}]*\}"
    return shape_bytes(re.sub(r"\{[^{}]*\}", "", re.sub(on_chip, "", layout)))


def _instruction(name: str, text: str, root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    operands = re.findall(r"%([\w.\-]+)", inside) or ([inside] if inside else [])
    layout, shape = shape, re.sub(r"\{[^{}]*\}|/\*index=\d+\*/", "", shape)
    attributes = rest[closing + 1 :]
    return Instruction(name, shape, rest[:opening], tuple(operands), attributes, root, layout)


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def elements(shape: str) -> list[str]:
    """The parts of a tuple shape; of another, itself."""
    if not shape.startswith("("):
        return [shape]
    parts, depth = [""], 0
    for letter in shape[1:-1]:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _kind(instruction: Instruction) -> str | None:
    # The TPU compiler writes a reduce-scatter as a fusion of all-reduce, padding and slice.
    if instruction.opcode == "fusion" and called(instruction)[0].startswith("all-reduce-scatter"):
        return "reduce-scatter"
    base = instruction.opcode.removesuffix("-start")
    return base if base in KINDS else None


def called(instruction: Instruction) -> list[str]:
    """Names of the computations that an instruction calls; of a loop, none."""
    names = []
    for match in _CALLED.finditer(instruction.rest):
        listed = re.match(r"\{([^}]*)\}|(%?[\w.\-]+)", instruction.rest[match.end() :])
        names += (listed[1] or listed[2]).split(", ")
    branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
    names += branches[1].split(", ") if branches else []
    return [name.strip("%") for name in names]


def walk(
    module: Module, name: str, times: int | None, fusions: bool = True
) -> Iterator[tuple[Computation, Instruction, int | None]]:
    """Instructions that run, and how often; None in a loop of unknown turns.

    Args:
      module: the program.
      name: of the computation to begin with.
      times: how often that one runs.
      fusions: whether to go into fusions.

    Yields:
      (computation, one of its instructions, how often it runs).
    """
    computation = module.computations[name]
    for instruction in computation.values():
        yield computation, instruction, times
        if _kind(instruction) or instruction.opcode.endswith(("-update", "-done")):
            continue
        if instruction.opcode == "while":
            turns = _turns(module, computation, instruction)
            inside = None if None in (turns, times) else turns * times
            yield from walk(module, _attribute(instruction, "body"), inside, fusions)
        elif instruction.opcode != "fusion" or fusions:
            for inner in called(instruction):
                if inner not in module.computations:
                    continue
                again = _goes_on(module, inner)
                for found in walk(module, inner, times, fusions):
                    if not (again and _kind(found[1])):
                        yield found


def _goes_on(module: Module, name: str) -> bool:
    """Whether a fusion of the TPU compiler repeats the message that another one has started.

    It writes a message that goes on beside other work as a fusion that starts it, fusions of
    that work that repeat its line, and one that ends it.
    """
    inside = module.computations[name].values()
    return name.startswith("async_collective_fusion") or any(
        '"AsyncCollectiveDone"' in one.rest for one in inside if one.opcode == "custom-call"
    )


def _attribute(instruction: Instruction, name: str) -> str:
    return re.search(rf"\b{name}=%?([\w.\-]+)", instruction.rest)[1]


def _collective(module, computation, instruction, times) -> Collective:
    kind = _kind(instruction)
    source = re.search(r'op_name="([^"]*)"', instruction.rest)
    source = source[1].split("shard_map/")[-1] if source else ""
    if times is None:
        raise ValueError(f"{instruction.name} ({source}) is in a loop of unknown turns")
    operand = sum(shape_bytes(computation[name].shape) for name in instruction.operands)
    shape, groups = instruction.shape, instruction
    if instruction.opcode == "fusion":
        inner = module.computations[called(instruction)[0]].values()
        groups = next(one for one in inner if one.opcode.startswith("all-reduce"))
        # A shape of its own if it is a tuple: the compiler adds scratch space.
        shape = elements(shape)[0]
    elif instruction.opcode.endswith("-start") and kind != "all-reduce":
        # (operands, results, and what the device needs to keep track)
        shape = elements(shape)[1]
    devices = _group_size(groups.rest, module.devices)
    return Collective(kind, times, operand, shape_bytes(shape), devices, shape, source)


def _group_size(rest: str, devices: int) -> int:
    """Devices of a group: of {{0,1},{2,3}}, of [2,4]<=[8], or all of them for none."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    if listed:
        return len(listed[1].split(","))
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest)
    return int(iota[1]) if iota else devices


def _turns(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """How often a loop turns: as the compiler says, or from its counter; None if unknown."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
    if known:
        return int(known[1])
    first = list(computation[loop.operands[0]].operands)
    body = module.computations[_attribute(loop, "body")]
    condition = module.computations[_attribute(loop, "condition")]
    test, bound = _comparison(module, condition)
    if test is None:
        return None
    direction, (counter, offset), (limit, constant) = bound
    following = _root(body).operands
    if limit is not None:  # carried along unchanged
        carried = _value(module, body, following[limit])
        start = _value(module, computation, first[limit])
        if carried != (limit, 0) or start is None or start[0] is not None:
            return None
        constant += start[1]
    start = _value(module, computation, first[counter])
    step = _value(module, body, following[counter])
    if start is None or start[0] is not None or step is None or step[0] != counter or not step[1]:
        return None
    distance = constant - start[1] - offset
    if direction in ("LE", "GE"):
        distance += int(math.copysign(1, step[1]))
    return max(0, -(-distance // step[1]))


def _comparison(module, computation, bindings=()):
    """The test of a loop's condition: ("compare", (direction, counter, limit)) or Nones."""
    root = _root(computation)
    if root.opcode in ("fusion", "call"):
        values = [_value(module, computation, name, bindings) for name in root.operands]
        return _comparison(module, module.computations[called(root)[0]], values)
    if root.opcode != "compare":
        return None, None
    direction = _attribute(root, "direction")
    left, right = (_value(module, computation, name, bindings) for name in root.operands)
    if left is None or right is None or direction == "EQ":
        return None, None
    if left[0] is None:
        left, right = right, left
    return (None, None) if left[0] is None else ("compare", (direction, left, right))


def _value(module, computation, name, bindings=()):
    """A scalar as (index of what a loop carries, or None; constant added), or None."""
    one = computation[name]
    if one.opcode == "constant":
        return (None, int(one.operands[0])) if re.fullmatch(r"-?\d+", one.operands[0]) else None
    if one.opcode == "parameter":
        return bindings[int(one.operands[0])] if bindings else None
    if one.opcode == "get-tuple-element":
        source = computation[one.operands[0]]
        index = int(re.search(r"index=(\d+)", one.rest)[1])
        return (index, 0) if source.opcode == "parameter" else None
    if one.opcode in ("copy", "bitcast", "convert", "reshape"):
        return _value(module, computation, one.operands[0], bindings)
    values = [_value(module, computation, operand, bindings) for operand in one.operands]
    if None in values or not values:
        return None
    if one.opcode in ("fusion", "call"):
        inner = module.computations[called(one)[0]]
        return _value(module, inner, _root(inner).name, values)
    if one.opcode == "add" and None in (values[0][0], values[1][0]):
        left, right = values
        return (right[0] if left[0] is None else left[0], left[1] + right[1])
    return None


def _root(computation: Computation) -> Instruction:
    return next(one for one in computation.values() if one.root)

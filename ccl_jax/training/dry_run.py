"""Compiles the training step of a config for a TPU slice that is not there, and reads it.

The TPU compiler comes with `jax[tpu]` and needs no TPU. Nothing is executed: memory, products
and messages are those of the compiled program, times what the chip's published rates allow.
"""

import dataclasses
import math
import os
import re
import time

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from ml_collections import ConfigDict

from ccl_jax.models.attention import traced_for
from ccl_jax.models.presets import build_model
from ccl_jax.training import config as configs
from ccl_jax.training import hlo, hlo_costs, partition
from ccl_jax.training.sharding import batch_devices, create_mesh, sharded
from ccl_jax.training.step import abstract_state, create_trainer, initial_params

_ANY_EOT = 1


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published rates of a TPU chip, of one device of JAX.

    Attributes:
      memory: bytes of its HBM.
      peak: FLOP/s in bfloat16.
      bandwidth: bytes/s of its HBM.
      interconnect: bytes/s that it receives over the links to its neighbours, all together.
    """

    memory: float
    peak: float
    bandwidth: float
    interconnect: float


# cloud.google.com/tpu/docs, pages of v4, v5e, v5p and v6e (read in November 2026); the
# interconnect there is in Gbit/s: 2,400, 1,600, 4,800 and 3,200. A chip of v4 and v5p has two
# cores, which are one device.
CHIPS = {
    "v4": Chip(32e9, 275e12, 1228e9, 300e9),
    "v5e": Chip(16e9, 197e12, 819e9, 200e9),
    "v5p": Chip(95e9, 459e12, 2765e9, 600e9),
    "v6e": Chip(32e9, 918e12, 1600e9, 400e9),
}


@dataclasses.dataclass(frozen=True)
class DryRun:
    """What one device of the slice does in a step.

    Attributes:
      topology: as asked for.
      devices: of the slice.
      chip: what they are.
      compile_seconds: that the compiler took.
      memory: {"arguments", "outputs", "shared", "temporaries", "program"} in bytes; "shared"
        is what outputs take over from arguments. Empty if the program does not fit.
      refusal: what the compiler said if it does not fit, else empty.
      flops: of matrix products and convolutions.
      memory_traffic: bytes read from and written to HBM, at the most.
      collectives: every message.
      state: bytes of parameters, optimiser state and averages.
    """

    topology: str
    devices: int
    chip: Chip
    compile_seconds: float
    memory: dict[str, int]
    refusal: str
    flops: int
    memory_traffic: int
    collectives: list[hlo.Collective]
    state: int

    @property
    def total_bytes(self) -> int:
        """Memory that a device needs."""
        return sum(self.memory.values()) - 2 * self.memory.get("shared", 0)

    @property
    def fits(self) -> bool:
        """Whether that is within the chip's memory."""
        return not self.refusal and self.total_bytes <= self.chip.memory

    @property
    def received(self) -> float:
        """Bytes that a device receives."""
        return sum(hlo.received(self.collectives).values())

    @property
    def seconds(self) -> dict[str, float]:
        """The least time of a step for each of compute, memory and interconnect."""
        return {
            "compute": self.flops / self.chip.peak,
            "memory": self.memory_traffic / self.chip.bandwidth,
            "interconnect": self.received / self.chip.interconnect,
        }


def slice_devices(topology: str) -> list[jax.Device]:
    """The devices of a TPU slice, by a name such as "v5e:16x16".

    Raises:
      ValueError: for a name that the compiler does not know, or without it.
    """
    kind = topology.split(":")[0]
    if kind not in CHIPS or ":" not in topology:
        raise ValueError(
            f"no topology is called {topology!r}; write v5e:2x4, v5e:16x16, v5p:4x8x8, v6e:16x16: "
            f"one of {', '.join(CHIPS)}, and the chips along each side"
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or it looks for a cloud's own server
    # No TPU is used, so that a second dry run, or a file that another user's has left, is no harm.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:
        message = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the TPU compiler gives no topology {topology!r}: {message}. It comes with "
            'pip install "ccl_jax[tpu]"; check the name otherwise'
        ) from error
    return list(found.devices)


def dry_run(config: ConfigDict, topology: str) -> DryRun:
    """Compiles the training step of `config` for a slice.

    Args:
      config: of a single run. `init_from` is not read: sizes are those of `config.model`.
      topology: as in `slice_devices`.

    Raises:
      ValueError: for a config that does not fit the slice, or an unknown slice.
    """
    devices = slice_devices(topology)
    mesh = create_mesh(devices, config.mesh.to_dict())
    configs.check_config(config, batch_devices(mesh))
    trainer = create_trainer(config, mesh, eot_id=_ANY_EOT)
    state = abstract_state(trainer)
    batch = abstract_batch(config, mesh)
    start = time.perf_counter()
    with traced_for("tpu"):
        lowered = trainer.step.lower(state, batch)
    chip = CHIPS[topology.split(":")[0]]
    held = partition.device_bytes(state, trainer.placements)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds = time.perf_counter() - start
        refusal = _out_of_memory(str(error))
        return DryRun(topology, len(devices), chip, seconds, {}, refusal, 0, 0, [], held)
    seconds = time.perf_counter() - start
    sizes, text = compiled.memory_analysis(), compiled.as_text()
    memory = {
        "arguments": sizes.argument_size_in_bytes,
        "outputs": sizes.output_size_in_bytes,
        "shared": sizes.alias_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        "program": sizes.generated_code_size_in_bytes,
    }
    return DryRun(
        topology,
        len(devices),
        chip,
        seconds,
        memory,
        "",
        hlo_costs.flops(text),
        hlo_costs.memory_bytes(text),
        hlo.collectives(text),
        held,
    )


def parameter_table(config: ConfigDict, topology: str) -> str:
    """How every parameter of `config` lies on a slice, as `partition.table` prints it.

    Raises:
      ValueError: as `dry_run`.
    """
    mesh = create_mesh(slice_devices(topology), config.mesh.to_dict())
    model = build_model(config.model.to_dict(), eot_id=_ANY_EOT)
    params = jax.eval_shape(lambda: initial_params(config, model))
    return partition.table(partition.place(params, config.sharding.rules, mesh), mesh)


def abstract_batch(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and placement of a global batch, as the pipeline makes it."""
    options = configs.pipeline_options(config)
    images, size = options.batch_size, options.image_size
    shapes = {
        "image": ((images, size, size, 3), jnp.uint8),
        "text": ((images, options.text_length), jnp.int32),
        "sample_id": ((images,), jnp.int32),
    }
    if options.group_phrases:
        phrases = images // options.phrase_group * options.group_phrases
        shapes["phrase_text"] = ((phrases, options.phrase_length), jnp.int32)
        shapes["phrase_image"] = ((phrases,), jnp.int32)
    placement = sharded(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=placement)
        for name, (shape, dtype) in shapes.items()
    }


def describe(found: DryRun, batch_size: int, least: int = 1_000_000) -> str:
    """The findings as text for a terminal.

    Args:
      found: of `dry_run`.
      batch_size: images of a step.
      least: bytes that a message must move to be listed.
    """
    lines = [
        f"{found.topology}: {found.devices} devices, compiled in {found.compile_seconds:.0f} s",
        "",
        "Memory of a device",
        f"  state            {found.state / 1e9:9.3f} GB",
    ]
    if found.refusal:
        lines += [f"  does NOT fit: {found.refusal}"]
        return "\n".join(lines)
    lines += [f"  {name:<16} {size / 1e9:9.3f} GB" for name, size in found.memory.items()]
    verdict = "fits" if found.fits else "does NOT fit"
    lines += [
        f"  {'needed':<16} {found.total_bytes / 1e9:9.3f} GB of {found.chip.memory / 1e9:.0f} GB: "
        + verdict,
        "",
        "A step of a device",
        f"  {found.flops / 1e9:10.3f} GFLOP in products",
        f"  {found.memory_traffic / 1e9:10.3f} GB from and to memory, at the most",
        f"  {found.received / 1e6:10.3f} MB received from other devices",
        "",
        "Least time of a step, by the chip's published rates",
    ]
    seconds = found.seconds
    slowest = max(seconds, key=seconds.get)
    lines += [f"  {name:<14} {1e3 * value:9.2f} ms" for name, value in seconds.items()]
    longest, together = seconds[slowest], math.fsum(seconds.values())
    lines += [
        f"  bound by {slowest}: {batch_size / longest:,.0f} images/s if all overlaps, "
        f"{batch_size / together:,.0f} if nothing does",
        f"  products take {100 * seconds['compute'] / longest:.0f} % of that time at the peak",
        "",
        f"Messages of {least / 1e6:g} MB and more",
        "",
        hlo.table(found.collectives, least=least),
    ]
    return "\n".join(lines)


def _out_of_memory(message: str) -> str:
    found = re.search(r"Used ([\d.]+[KMG]?) of ([\d.]+[KMG]?) \w+", message)
    if found:
        return f"the program needs {found[1]} of {found[2]} of memory"
    return " ".join(message.split())[:300]

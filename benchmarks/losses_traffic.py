"""What the losses send between devices, and keep on each, from compiled programs alone."""

import argparse
import math
import os
import time

import jax
import losses_cases as cases
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from losses_cases import Case

from ccl_jax.training import hlo, hlo_costs

DEVICES = 8


def cpu_mesh(devices: int = DEVICES) -> Mesh:
    """Fake devices of the CPU; call it before anything else asks JAX for its devices.

    Raises:
      RuntimeError: if JAX has started with fewer.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", devices)
    found = jax.devices("cpu")[:devices]
    if len(found) < devices:
        raise RuntimeError(f"{devices} CPU devices wanted, JAX has started with {len(found)}")
    return Mesh(np.array(found), ("data",), axis_types=(AxisType.Auto,))


def slice_mesh(topology: str, shape: str | None = None) -> Mesh:
    """Mesh over the chips of a TPU slice that is not there; `shape` as in "16x16"."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    jax.config.update("jax_platforms", "cpu")
    chips = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    sizes = [int(n) for n in shape.split("x")] if shape else [len(chips)]
    names = ("data",) if len(sizes) == 1 else tuple(f"data_{i}" for i in range(len(sizes)))
    return Mesh(np.array(chips).reshape(sizes), names, axis_types=(AxisType.Auto,) * len(sizes))


def collectives(
    name: str, case: Case, mesh: Mesh, layout: cases.Layout = "dense", **options
) -> list[hlo.Collective]:
    """What value and gradients of a loss send, images and texts split over `mesh`."""
    return hlo.collectives(cases.compile_(name, case, layout, mesh=mesh, **options).as_text())


def candidates(names: list[str]) -> list[tuple[str, dict]]:
    """Losses, and SigLIP once more round the ring."""
    return [
        (name, options)
        for name in names
        for options in ([{}, {"exchange": "ring"}] if name == "siglip" else [{}])
    ]


def on_cpu(options: argparse.Namespace) -> list[dict]:
    """Prints the collectives of every loss on 8 devices, and those with twice the tokens.

    Raises:
      AssertionError: if twice the tokens change any.
    """
    mesh, rows = cpu_mesh(), []
    for case in options.cases:
        for name, extra in candidates(options.losses):
            for layout in options.layouts:
                if layout == "loop":
                    continue
                found = collectives(name, case, mesh, layout, dtype=options.dtype, **extra)
                label = " ".join([name, *extra.values()])
                print(f"\n### {case}, {label}, layout {layout}, {DEVICES} devices\n")
                print(hlo.table(found))
                if cases.LOSSES[name].pooled:
                    twice = case._replace(tokens=2 * case.tokens)
                    again = collectives(name, twice, mesh, layout, dtype=options.dtype, **extra)
                    assert moved(again) == moved(found), f"{label}: depends on the tokens"
                    print("\nThe same with twice the tokens.")
                rows.append(
                    {"case": str(case), "loss": label, "layout": layout, "devices": DEVICES}
                    | {"received": hlo.received(found)}
                )
    return rows


def moved(found: list[hlo.Collective]) -> list[tuple]:
    """Operations on arrays and their bytes in a fixed order, to compare programs.

    Scalars (sums, counts, extremes) travel in one message or two as the compiler sees fit.
    """
    return sorted(one[:5] for one in found if "[]" not in one.shape)


def on_slice(options: argparse.Namespace) -> list[dict]:
    """Compiles for a TPU slice; prints memory and traffic of a chip."""
    mesh = slice_mesh(options.topology, options.mesh)
    chips, rows, details = math.prod(mesh.devices.shape), [], []
    kinds = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute")
    print(f"\n{options.topology}, mesh {'x'.join(map(str, mesh.devices.shape))}; of a chip:\n")
    print(
        "| case | loss | type | layout | arguments MB | temporaries MB | memory GB | "
        + " | ".join(f"{kind} MB" for kind in kinds)
        + " | estimated Gcycles | needed TFLOP | compiled in s |"
    )
    print("|---" * (10 + len(kinds)) + "|")
    for case in options.cases:
        for name, extra in candidates(options.losses):
            for dtype in options.dtype.split(","):
                for layout in options.layouts:
                    if layout == "loop":
                        continue
                    label = " ".join([name, *extra.values()])
                    row = {"case": str(case), "loss": label, "dtype": dtype, "layout": layout}
                    more, found = _on_chip(name, case, layout, dtype, mesh, extra)
                    row |= more | {"topology": options.topology}
                    row["flops"] = cases.needed_flops(name, case) / chips
                    _print_chip(row, kinds)
                    rows.append(row)
                    details.append(
                        f"\n### {case}, {label}, {dtype}, layout {layout}: what moves 1 kB or "
                        f"more\n\n{hlo.table(found, least=1000)}"
                    )
    print("\n".join(details))
    return rows


def _on_chip(name, case, layout, dtype, mesh, extra):
    start = time.perf_counter()
    compiled = cases.compile_(name, case, layout, dtype=dtype, mesh=mesh, **extra)
    seconds = time.perf_counter() - start
    sizes, text = compiled.memory_analysis(), compiled.as_text()
    found = hlo.collectives(text)
    return {
        "arguments": sizes.argument_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        "memory_traffic": hlo_costs.memory_bytes(text),
        "received": hlo.received(found),
        "estimated_cycles": hlo.estimated_cycles(text),
        "compiled_in": seconds,
    }, found


def _print_chip(row, kinds):
    received = (f"{row['received'].get(kind, 0) / 1e6:.1f}" for kind in kinds)
    print(
        f"| {row['case']} | {row['loss']} | {row['dtype']} | {row['layout']} | "
        f"{row['arguments'] / 1e6:.1f} | {row['temporaries'] / 1e6:.1f} | "
        f"{row['memory_traffic'] / 1e9:.1f} | "
        + " | ".join(received)
        + f" | {row['estimated_cycles'] / 1e9:.3f} | {row['flops'] / 1e12:.2f} | "
        f"{row['compiled_in']:.0f} |",
        flush=True,
    )

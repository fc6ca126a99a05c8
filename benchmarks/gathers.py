"""What the TPU compiler makes of a gather over a mesh and of its gradient; needs the extra `tpu`.

    python benchmarks/gathers.py --topology v5e:16x16 --fsdp 16

Rows are split over data x fsdp. They are gathered over both axes at once, and axis after axis as
the losses do (`ccl_jax/losses/collectives.py`); the megabytes are those that a device receives.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import Mesh, PartitionSpec  # noqa: E402

from ccl_jax.losses import collectives  # noqa: E402
from ccl_jax.training import hlo  # noqa: E402
from ccl_jax.training.dry_run import slice_devices  # noqa: E402
from ccl_jax.training.sharding import BATCH_AXES, create_mesh, replicated, sharded  # noqa: E402


def at_once(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Over all axes in one message."""
    return jax.lax.all_gather(x, axes, tiled=True)


def compiled(gather: Callable, mesh: Mesh, rows: int, width: int) -> jax.stages.Compiled:
    """Gradient of a sum over gathered rows of float32, `rows` of them on a device."""
    split, whole = PartitionSpec(BATCH_AXES), PartitionSpec()

    def loss(x, weights):
        return jnp.sum(jnp.tanh(gather(x, BATCH_AXES) * weights))[None]

    mapped = jax.shard_map(loss, mesh=mesh, in_specs=(split, whole), out_specs=split)
    gradient = jax.grad(lambda x, weights: jnp.sum(mapped(x, weights)))
    rows *= mesh.size
    x = jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=sharded(mesh))
    weights = jax.ShapeDtypeStruct((rows, 1), jnp.float32, sharding=replicated(mesh))
    return jax.jit(gradient, out_shardings=sharded(mesh)).lower(x, weights).compile()


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default="v5e:16x16")
    parser.add_argument("--fsdp", type=int, default=16)
    parser.add_argument("--rows", type=int, default=128, help="of a device")
    parser.add_argument("--width", type=int, default=768)
    options = parser.parse_args()
    mesh = create_mesh(slice_devices(options.topology), {"data": -1, "fsdp": options.fsdp})
    shape = " x ".join(str(mesh.shape[name]) for name in BATCH_AXES)
    print("| slice, data x fsdp | gathered | messages: MB received | all MB | temporaries MB |")
    print("|---|---|---|---:|---:|")
    for name, gather in (("at once", at_once), ("axis by axis", collectives.gather)):
        program = compiled(gather, mesh, options.rows, options.width)
        found = hlo.received(hlo.collectives(program.as_text()))
        messages = ", ".join(f"{kind} {size / 1e6:.0f}" for kind, size in found.items())
        temporary = program.memory_analysis().temp_size_in_bytes
        print(
            f"| {options.topology}, {shape} | {name} | {messages} | "
            f"{sum(found.values()) / 1e6:.0f} | {temporary / 1e6:.0f} |"
        )


if __name__ == "__main__":
    main()

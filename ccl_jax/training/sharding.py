"""The device mesh and how batches and state lie on it."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS, FSDP_AXIS, TENSOR_AXIS = AXES = ("data", "fsdp", "tensor")
# Over these a batch is split; over the tensor axis devices share their images.
BATCH_AXES = (DATA_AXIS, FSDP_AXIS)


def create_mesh(
    devices: Sequence[jax.Device] | None = None, shape: Mapping[str, int] | None = None
) -> Mesh:
    """A mesh with the axes `data`, `fsdp` and `tensor`.

    Of several TPU slices only the axis `data` goes from one to the next.

    Args:
      devices: all that there are by default.
      shape: devices along each axis, as `config.mesh`; one of them may be -1 for all that are
        left. By default all lie along `data`.

    Raises:
      ValueError: if the axes do not multiply to the number of devices, or TPU slices do not
        divide `data`.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {DATA_AXIS: -1, FSDP_AXIS: 1, TENSOR_AXIS: 1} | dict(shape or {})
    given = ", ".join(f"{name} = {size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    if set(sizes) != set(AXES) or len(free) > 1 or min(sizes.values()) < -1 or 0 in sizes.values():
        raise ValueError(
            f"config.mesh has {given}; give data, fsdp and tensor at least 1 each, and at most "
            "one of them -1 for all devices that are left"
        )
    known = math.prod(size for size in sizes.values() if size > 0)
    if free:
        sizes[free[0]] = len(devices) // known
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"config.mesh has {given}, which does not make {len(devices)} devices; change it so "
            "that the axes multiply to that number"
        )
    shape = tuple(sizes[name] for name in AXES)
    return Mesh(_grid(devices, shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _grid(devices, shape):
    # Not `jax.make_mesh`: it refuses several slices, which GPUs of several nodes are to it, and
    # an axis that is no side of a TPU's torus.
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if devices[0].platform != "tpu" or slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if shape[0] % slices:
        raise ValueError(
            f"config.mesh has data = {shape[0]} on {slices} TPU slices; make it a multiple of "
            "their number, so that only this axis goes from slice to slice"
        )
    inside, between = (shape[0] // slices, *shape[1:]), (slices, 1, 1)
    return mesh_utils.create_hybrid_device_mesh(
        inside, between, devices, allow_split_physical_axes=True
    )


def batch_devices(mesh: Mesh) -> int:
    """Parts into which a batch is split."""
    return math.prod(mesh.shape[name] for name in BATCH_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the devices: batches."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def local_groups(mesh: Mesh, batch_size: int, group: int) -> tuple[int, ...]:
    """The groups of consecutive images of a global batch that lie on this process's devices.

    Args:
      mesh: of all processes.
      batch_size: images of the global batch.
      group: images of a group; divides what a device gets.

    Returns:
      Numbers in [0, batch_size / group), in order.
    """
    parts = sharded(mesh).addressable_devices_indices_map((batch_size,)).values()
    rows = (range(*part[0].indices(batch_size)) for part in parts)
    return tuple(sorted({row // group for part in rows for row in part[::group]}))


def to_devices(batches: Iterable[dict], mesh: Mesh, ahead: int = 2) -> Iterator[dict]:
    """Moves batches to the devices, `ahead` of them before they are asked for.

    Args:
      batches: of each global batch the rows of this process's devices (`local_groups`), in order.
      mesh: of all processes.
      ahead: batches on the way.

    Yields:
      Global arrays.
    """
    placement = sharded(mesh)
    queue = []
    for batch in batches:
        queue.append(jax.make_array_from_process_local_data(placement, batch))
        if len(queue) > ahead:
            yield queue.pop(0)
    yield from queue

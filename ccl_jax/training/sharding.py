"""The device mesh and how batches and state lie on it."""

from collections.abc import Iterable, Iterator

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def create_mesh() -> Mesh:
    """A mesh of one axis, `data`, over all devices."""
    return jax.make_mesh((jax.device_count(),), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device: parameters and optimiser state."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the devices: batches."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def to_devices(batches: Iterable[dict], mesh: Mesh, ahead: int = 2) -> Iterator[dict]:
    """Moves batches to the devices, `ahead` of them before they are asked for."""
    placement = sharded(mesh)
    queue = []
    for batch in batches:
        queue.append(jax.device_put(batch, placement))
        if len(queue) > ahead:
            yield queue.pop(0)
    yield from queue

"""The device mesh and how batches and state lie on it."""

from collections.abc import Iterable, Iterator, Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def create_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, `data`, over `devices`; over all that there are by default."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        (len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices
    )


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

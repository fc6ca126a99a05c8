"""The mesh on devices that are not there: TPU slices and nodes of GPUs."""

import dataclasses

import pytest

from ccl_jax.training.sharding import create_mesh


@dataclasses.dataclass(frozen=True)
class Device:
    """What JAX reads of a device to place it."""

    id: int
    process_index: int
    slice_index: int
    platform: str
    device_kind: str
    coords: tuple[int, int, int]
    core_on_chip: int = 0


def tpus(slices, columns, rows, kind):
    places = [(x, y, 0) for y in range(rows) for x in range(columns)]
    return [
        Device(number * len(places) + i, number, number, "tpu", kind, place)
        for number in range(slices)
        for i, place in enumerate(places)
    ]


def test_only_the_data_axis_goes_from_slice_to_slice():
    mesh = create_mesh(tpus(2, 2, 4, "TPU v5 lite"), {"data": -1, "fsdp": 4})
    assert dict(mesh.shape) == {"data": 4, "fsdp": 4, "tensor": 1}
    slices = [{device.slice_index for device in row.flat} for row in mesh.devices]
    assert slices == [{0}, {0}, {1}, {1}]


def test_slices_that_the_data_axis_cannot_span_are_refused():
    with pytest.raises(ValueError, match="data = 1 on 2 TPU slices; make it a multiple"):
        create_mesh(tpus(2, 2, 4, "TPU v5 lite"), {"data": 1, "fsdp": 16})


def test_gpus_of_several_nodes_keep_inner_axes_within_a_node():
    # JAX numbers a node's GPUs as a slice.
    gpus = [Device(8 * n + i, n, n, "gpu", "H100", (0, 0, 0)) for n in range(3) for i in range(8)]
    mesh = create_mesh(gpus[::-1], {"data": -1, "fsdp": 4, "tensor": 2})
    nodes = [{device.slice_index for device in node.flat} for node in mesh.devices]
    assert nodes == [{0}, {1}, {2}]
    assert create_mesh(gpus, {"data": 1, "fsdp": 24}).devices.size == 24


def test_an_axis_need_not_be_a_side_of_the_torus():
    mesh = create_mesh(tpus(1, 4, 4, "TPU v6 lite"), {"data": 2, "fsdp": 8})
    for row in mesh.devices:
        columns, rows = ({device.coords[k] for device in row.flat} for k in (0, 1))
        assert len(columns) * len(rows) == 8

"""Rules for how parameters are split: what they give, what is refused, and what state weighs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ccl_jax.training import hlo, partition
from ccl_jax.training.sharding import batch_devices, create_mesh
from ccl_jax.training.step import abstract_state, create_trainer

PARAMS = {
    "image_tower": {
        "block_0": {"mlp": {"up": {"kernel": jnp.zeros((16, 64)), "bias": jnp.zeros(64)}}},
        "block_1": {"mlp": {"up": {"kernel": jnp.zeros((16, 64)), "bias": jnp.zeros(64)}}},
        "odd": jnp.zeros((5, 7)),
    },
    "log_scale": jnp.zeros(()),
}
KERNEL = "image_tower/block_0/mlp/up/kernel"


def mesh(**shape):
    return create_mesh(shape=shape)


def placed(rules=(), **shape):
    return partition.place(PARAMS, rules, mesh(**shape))


def test_the_axes_of_a_mesh_multiply_to_the_devices():
    assert dict(mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert dict(mesh(data=1, fsdp=-1, tensor=2).shape) == {"data": 1, "fsdp": 4, "tensor": 2}
    assert batch_devices(mesh(fsdp=2, tensor=2)) == 4


@pytest.mark.parametrize(
    "shape", [{"fsdp": 3}, {"data": -1, "fsdp": -1}, {"data": 0}, {"data": 2, "fsdp": 2}, {"x": 2}]
)
def test_a_mesh_that_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError, match="config.mesh has"):
        mesh(**shape)


def test_by_default_the_largest_dimension_that_divides_is_split():
    found = placed(fsdp=8)
    assert found[KERNEL].spec == P(None, "fsdp")
    assert found[KERNEL].bytes == 16 * 64 * 4 // 8
    assert found["image_tower/odd"].spec == P()  # neither 5 nor 7 divides by 8
    assert found["log_scale"].spec == P()
    assert {one.spec for one in placed(data=8).values()} == {P()}


def test_a_tensor_axis_brings_its_rules():
    found = placed(fsdp=2, tensor=2)
    assert found[KERNEL].spec == P("fsdp", "tensor")
    assert found["image_tower/block_0/mlp/up/bias"].spec == P("tensor")


def test_the_first_rule_that_matches_counts():
    rules = [(".*/block_0/.*kernel", (None, ("fsdp", "tensor"))), (".*", "replicated")]
    found = placed(rules, data=2, fsdp=2, tensor=2)
    assert found[KERNEL].spec == P(None, ("fsdp", "tensor"))
    assert found[KERNEL].bytes == 16 * 64
    assert found["image_tower/block_1/mlp/up/kernel"].spec == P()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (("fsdp",), "of shape .16, 64., 1 axes"),
        (("model", None), "the axes are data, fsdp, tensor"),
        ((None, "columns"), "'columns'"),
        ("columns", "use 'fsdp', 'replicated'"),
    ],
)
def test_a_rule_that_does_not_fit_a_parameter_is_refused_by_name(rule, message):
    with pytest.raises(ValueError, match=message) as raised:
        placed([(".*/up/kernel", rule), (".*", "fsdp")], fsdp=8)
    assert KERNEL in str(raised.value)


def test_a_dimension_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="splits 5 in image_tower/odd.*does not divide"):
        placed([(".*/odd", ("fsdp", None)), (".*", "fsdp")], fsdp=8)


def test_a_list_must_cover_every_parameter():
    with pytest.raises(ValueError, match="says nothing about"):
        placed([(".*kernel", "fsdp")], fsdp=8)


def test_the_table_joins_layers_and_sums_up():
    lines = partition.table(placed(fsdp=8), mesh(fsdp=8)).splitlines()
    (kernels,) = [line for line in lines if "up/kernel" in line]
    assert kernels.split() == [
        "image_tower/block_*/mlp/up/kernel", "x", "2", "16", "x", "64", "-,", "fsdp", "1.0",
    ]  # fmt: skip
    # Two kernels and two biases in eighths; 35 numbers and a scalar whole.
    total = (2 * (16 * 64 + 64) / 8 + 35 + 1) * 4
    assert lines[-1].split()[-1] == f"{total / 1e3:,.1f}"


def test_state_falls_to_an_eighth_under_fsdp(make_config):
    config = make_config()
    sizes = {}
    for name, devices, shape in (("one", 1, {}), ("eight", 8, {"fsdp": 8})):
        grid = create_mesh(jax.devices()[:devices], shape)
        trainer = create_trainer(config, grid, eot_id=2)
        state = abstract_state(trainer)
        sizes[name] = partition.device_bytes(state, trainer.placements)
        moments = state.opt_state
        assert jax.tree.leaves(moments)
    # What does not divide by 8 (an embedding of 9 positions, scale, bias) is whole everywhere.
    assert sizes["eight"] == pytest.approx(sizes["one"] / 8, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [{"data": 1, "fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}],
    ids=["fsdp", "data-fsdp-tensor"],
)
def test_split_state_trains_as_whole_state_does(make_config, batch, shape):
    config = make_config(siglip={}, npc={}, xac={"sharpness": 4.0})
    losses, norms = {}, {}
    for name, devices, layout in (("whole", 1, {}), ("split", 8, shape)):
        grid = create_mesh(jax.devices()[:devices], layout)
        trainer = create_trainer(config, grid, eot_id=2)
        state, losses[name] = trainer.init(), []
        step = trainer.step.lower(state, batch).compile()
        for _ in range(3):
            state, metrics = step(state, batch)
            losses[name].append(float(metrics["loss"]))
        norms[name] = float(metrics["gradient_norm"])
        kernel = state.params["image_tower"]["block_0"]["mlp"]["up"]["kernel"]
        moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == kernel.shape]
        part = kernel.addressable_shards[0].data.size / kernel.size
        assert part == 1 / (devices if devices == 1 else layout["fsdp"] * layout.get("tensor", 1))
        assert all(leaf.sharding == kernel.sharding for leaf in moments)
    np.testing.assert_allclose(losses["split"], losses["whole"], rtol=1e-5)
    assert norms["split"] == pytest.approx(norms["whole"], rel=1e-4)
    found = hlo.collectives(step.as_text())
    texts = 4 * 16 * (len(batch["text"]) + len(batch["phrase_text"]))
    # Over the tensor axis, too, devices share the loss.
    assert_texts_travel_once(found, texts, grid.size)
    if shape == {"data": 1, "fsdp": 8}:
        assert_weights_travel_as_designed(found, state.params, texts)


def assert_texts_travel_once(found, texts, devices):
    """There, and the sum of their gradients back, phrases in two terms or not."""
    floats = [one for one in found if one.shape.startswith("f32")]
    by = lambda name: sum(x.received for x in floats if x.source.endswith(name))  # noqa: E731
    assert by("all_gather") == texts * (devices - 1) / devices
    assert by("reduce_scatter") == texts * (devices - 1) / devices


def assert_weights_travel_as_designed(found, params, texts):
    """Weights are gathered at most twice, and their gradients summed."""
    received, others = hlo.received(found), 7 / 8
    weights = 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert 0.95 < received["all-gather"] / (others * (weights + texts)) < 2.1
    # The compiler for CPUs sums the gradients of weights whole, and the text tower's of captions
    # and of phrases apart.
    assert received["all-reduce"] < 2 * others * 2.1 * weights

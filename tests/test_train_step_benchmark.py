"""The benchmark of the step: its arithmetic against the program, and that it runs."""

import math
import pathlib
import sys

import jax
import jax.extend.core
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))

import train_step  # noqa: E402
import train_step_cases as cases  # noqa: E402

from ccl_jax.training import flops, sharding  # noqa: E402
from ccl_jax.training.step import abstract_state, create_trainer  # noqa: E402

TOWER = {"width": 64, "depth": 2, "heads": 2}
SIGLIP = {
    "preset": None,
    "image": TOWER | {"image_size": 32, "patch_size": 4},
    "text": TOWER | {"vocab_size": 50, "length": 16},
}
CLIP = {
    "preset": None,
    "image": SIGLIP["image"] | {"pool": "cls", "embed_dim": 48, "mlp_dim": 96},
    "text": SIGLIP["text"] | {"pool": "eot", "embed_dim": 48, "eot_id": 2},
}


def products(jaxpr):
    """Operations of every matrix product of a program; loops count by their length."""
    total = 0
    for equation in jaxpr.eqns:
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            inner = math.prod(shape[axis] for axis in contracted)
            total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
        for inside in jax.extend.core.jaxprs_in_params(equation.params):
            total += times * products(inside)
    return total


@pytest.mark.parametrize(
    ("model", "objective"), [(SIGLIP, "siglip"), (SIGLIP, "ccl"), (CLIP, "clip"), (CLIP, "ccl")]
)
def test_the_arithmetic_is_that_of_the_program(model, objective):
    config = cases.make_config(model, 8, objective, phrases=2.0)
    trainer = create_trainer(config, sharding.create_mesh(jax.devices()[:1]), eot_id=2)
    batch = cases.draw_batch(config, trainer.model)
    jaxpr = jax.make_jaxpr(trainer.step)(abstract_state(trainer), batch)
    counted = flops.model_flops(config, trainer.model)
    # The program also computes what no output needs, and pooled similarities in its own way.
    assert products(jaxpr.jaxpr) == pytest.approx(counted, rel=0.05)


def test_sizes():
    size = cases.Size.parse("64x16x128x4x4x16x2x32")
    assert (size.image, size.width, size.text_depth, size.batch) == (64, 128, 2, 32)
    assert str(size) == "64x16x128x4x4x16x2x32"
    with pytest.raises(ValueError, match="image x patch x width"):
        cases.Size.parse("64x16")


def test_patch_dropout_saves_arithmetic():
    whole, half = (
        flops.model_flops(config, create_trainer(config, mesh, eot_id=2).model)
        for mesh in [sharding.create_mesh(jax.devices()[:1])]
        for config in (
            cases.make_config(SIGLIP | {"patch_dropout": share}, 8, "siglip")
            for share in (0.0, 0.5)
        )
    )
    assert 0.5 * whole < half < 0.65 * whole


def test_peaks():
    assert flops.peak("NVIDIA H200") == 989e12
    assert flops.peak("TPU v5 lite") == 197e12
    assert flops.peak("TPU v5") == 459e12
    assert flops.peak("cpu") is None


def test_what_is_not_trained_costs_less():
    config = cases.make_config(SIGLIP, 8, "siglip")
    model = create_trainer(config, sharding.create_mesh(jax.devices()[:1]), eot_id=2).model
    whole = flops.model_flops(config, model)
    image_alone = flops.model_flops(config, model, {"image_tower/norm/scale"})
    text_alone = flops.model_flops(config, model, {"text_tower/norm/scale"})
    neither = flops.model_flops(config, model, {"bias"})
    # A frozen tower takes a third; both trained or both frozen, the patch embedding apart.
    assert neither < image_alone < whole and neither < text_alone < whole
    assert image_alone + text_alone == whole + neither
    with config.unlocked():
        config.tower_store.folder = "x"
    assert flops.model_flops(config, model, {"bias"}) == flops.loss_flops("siglip", 8, 0, 64, 64)


@pytest.mark.slow
def test_it_runs(tmp_path, capsys):
    flags = "--sizes 16x8x16x1x2x4x1x8 --vocab_size 20 --rounds 1 --seconds 0.01 --matmul 64"
    rows = train_step.main([*flags.split(), "--scan_layers", "0,1", "--out", f"{tmp_path}/x.jsonl"])
    assert [row["name"] for row in rows] == ["scan_layers=False", "scan_layers=True"]
    for row in rows:
        assert row["images_per_second"] == pytest.approx(8 / row["seconds"])
        assert row["compile_seconds"] > 0 and row["temporaries"] > 0 and row["share"] > 0
    assert capsys.readouterr().out.count("| scan_layers=") == 2
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 2

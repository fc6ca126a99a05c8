"""The tables of dry runs: their cases are valid, and what is drawn from two depths."""

import math
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))

import dry_runs  # noqa: E402
import dry_runs_cases as cases  # noqa: E402
import gathers  # noqa: E402
import scaling  # noqa: E402

from ccl_jax.losses import collectives  # noqa: E402
from ccl_jax.training import config as configs  # noqa: E402
from ccl_jax.training import hlo  # noqa: E402
from ccl_jax.training.sharding import create_mesh  # noqa: E402


@pytest.mark.parametrize("table", cases.TABLES)
def test_every_case_is_a_valid_config(table):
    found = cases.TABLES[table]()
    assert len({case.key for case in found}) == len(found)
    for case in found:
        chips = math.prod(int(n) for n in case.topology.split(":")[1].split("x"))
        config = case._replace(depth=1).config()
        assert config.model.image.depth == 1
        configs.check_config(config, chips // config.mesh.tensor)


def test_a_change_of_a_field_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="has no field data.batch"):
        cases.Case("siglip_b16", "v5e:2x4", {"data.batch": 8}, "").config()


def test_a_row_lies_on_the_line_through_two_depths(tmp_path):
    case = cases.recipes()[1]  # 12 layers
    path = tmp_path / "results.jsonl"
    rows = [
        {"case": case._replace(depth=d).key, "refusal": "", "flops": 10 + 3 * d, "m": {"a": d}}
        for d in cases.DEPTHS
    ]
    path.write_text("".join(f"{dry_runs.json.dumps(row)}\n" for row in rows) + '{"case": "cut')
    found = dry_runs.row_of(case, dry_runs.read(path))
    assert (found["flops"], found["m"], found["depth"]) == (10 + 3 * 12, {"a": 12}, 12)
    assert dry_runs.row_of(cases.recipes()[0], dry_runs.read(path)) is None


def test_the_model_splits_what_the_layout_splits():
    whole, split = scaling.Layout(64), scaling.Layout(64, fsdp=64)
    assert scaling.state_bytes("B/16", whole) == 64 * scaling.state_bytes("B/16", split)
    # Sums of gradients move twice what each device keeps no part of.
    count = scaling.state_bytes("B/16", whole) / 12
    messages = scaling.message_bytes("B/16", whole, 4096)
    assert messages["gradients"] == pytest.approx(2 * 2 * count * 63 / 64)
    assert messages["weights"] == messages["tensor"] == 0
    assert scaling.step_flops("B/16", whole, 4096) == scaling.step_flops("B/16", split, 4096)


@pytest.mark.parametrize("gather", [gathers.at_once, collectives.gather])
def test_the_compiler_for_cpus_scatters_gradients_either_way(gather):
    mesh = create_mesh(shape={"data": 2, "fsdp": 4})
    program = gathers.compiled(gather, mesh, rows=2, width=16)
    found = hlo.received(hlo.collectives(program.as_text()))
    others = 4 * 7 * 2 * 16  # of 8 devices, two rows of 16 numbers each
    assert found == {"all-gather": others, "reduce-scatter": others}

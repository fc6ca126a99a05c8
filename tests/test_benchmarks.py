"""The benchmark of the losses at tiny sizes, the reader of compiled programs, and what is sent."""

import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))

import losses as benchmark  # noqa: E402
import losses_cases as cases  # noqa: E402
import losses_traffic as traffic  # noqa: E402

from ccl_jax.training import hlo  # noqa: E402

DEVICES = 8
# Tokens are 100 kB, captions and phrases together 6 kB.
CASE = cases.Case(images=16, phrases=32, tokens=49, width=32)


def program(*lines, computations=""):
    """A program for 8 devices that runs `lines`."""
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule m, num_partitions=8\n{computations}\nENTRY %main () -> f32[] {{\n{body}\n}}"


LOOP = """
%body (c: (s32[], f32[4], s32[])) -> (s32[], f32[4], s32[]) {
  %c = (s32[]{:T(128)}, f32[4]{0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %x = f32[4]{0} get-tuple-element(%c), index=1
  %last = s32[] get-tuple-element(%c), index=2
  %two = s32[] constant(2)
  %j = s32[] add(%i, %two)
  %y = f32[4]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  ROOT %t = (s32[], f32[4], s32[]) tuple(%j, %y, %last)
}

%condition (c: (s32[], f32[4], s32[])) -> pred[] {
  ROOT %r = pred[] compare(%i, %n), direction=LT
  %c = (s32[], f32[4]{0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %n = s32[] LIMIT
}
"""


def loop(limit, *, last="constant(9)", attributes=""):
    """A loop from 1 in steps of 2."""
    return program(
        "%one = s32[] constant(1)",
        "%x = f32[4]{0} parameter(0)",
        f"%last = s32[] {last}",
        "%t = (s32[], f32[4], s32[]) tuple(%one, %x, %last)",
        "ROOT %w = (s32[], f32[4], s32[]) while(%t), condition=%condition, body=%body" + attributes,
        computations=LOOP.replace("LIMIT", limit),
    )


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("f32[2,3]{1,0:T(8,128)S(1)}", 24),
        ("bf16[5]", 10),
        ("pred[7]", 7),
        ("s4[3]", 2),
        ("f8e4m3fn[6]", 6),
        ("f64[]", 8),
        ("(f32[2], (u8[3], token[]))", 11),
    ],
)
def test_bytes_of_a_shape(shape, expected):
    assert hlo.shape_bytes(shape) == expected


@pytest.mark.parametrize(
    ("line", "kind", "operand", "result", "devices"),
    [
        (
            "f32[8]{0} all-gather(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}",
            *("all-gather", 16, 32, 2),
        ),
        ("f32[16]{0} all-gather(%x), replica_groups=[2,4]<=[8]", "all-gather", 16, 64, 4),
        (
            "f32[1]{0} reduce-scatter(%x), replica_groups=[2,4]<=[4,2]T(1,0)",
            *("reduce-scatter", 16, 4, 4),
        ),
        ("f32[4]{0} all-reduce(%x), replica_groups={}, to_apply=%add", "all-reduce", 16, 16, 8),
        ("(f32[4]{0}, f32[4]{0}) all-reduce(%x, %x), to_apply=%add", "all-reduce", 32, 32, 8),
        ("(f32[4]{0}, f32[32]{0}) all-gather-start(%x)", "all-gather", 16, 128, 8),
        ("f32[4]{0} all-reduce-start(%x), to_apply=%add", "all-reduce", 16, 16, 8),
        ("((f32[4]{0}), f32[1]{0}, u32[]) reduce-scatter-start(%x)", "reduce-scatter", 16, 4, 8),
        (
            "(f32[4]{0:S(1)}, f32[4]{0}, u32[]{:S(2)}, u32[]) collective-permute-start(%x), "
            "source_target_pairs={{0,1}}",
            *("collective-permute", 16, 16, 8),
        ),
        (
            "(f32[2]{0}, f32[2]{0}) all-to-all(%x), replica_groups=[4,2]<=[8]",
            *("all-to-all", 16, 16, 2),
        ),
    ],
)
def test_one_operation(line, kind, operand, result, devices):
    text = program("%x = f32[4]{0} parameter(0)", f"ROOT %y = {line}")
    (found,) = hlo.collectives(text)
    assert found[:5] == (kind, 1, operand, result, devices)


def test_asynchronous_pairs_count_once():
    text = program(
        "%x = f32[4]{0} parameter(0)",
        "%a = (f32[4]{0}, f32[32]{0}) all-gather-start(%x), channel_id=1",
        "%b = f32[32]{0} all-gather-done(%a)",
        "%s = ((f32[4]{0}), f32[32]{0}, u32[]) async-start(%x), calls=%inside",
        "%u = ((f32[4]{0}), f32[32]{0}, u32[]) async-update(%s), calls=%inside",
        "ROOT %d = f32[32]{0} async-done(%u), calls=%inside",
        computations="%inside (p: f32[4]) -> f32[32] {\n  %p = f32[4]{0} parameter(0)\n"
        "  ROOT %g = f32[32]{0} all-gather(%p), dimensions={0}\n}",
    )
    assert [one[:4] for one in hlo.collectives(text)] == [("all-gather", 1, 16, 128)] * 2


def test_an_operation_that_runs_beside_a_loop_counts_once():
    gather = "  %g = f32[32]{0} all-gather(%p), dimensions={0}\n"
    fusion = "%NAME (p: f32[4]) -> f32[32] {\n  %p = f32[4]{0} parameter(0)\n" + gather
    end = '  ROOT %r = f32[32]{0} custom-call(%g), custom_call_target="AsyncCollectiveEND"\n}\n'
    text = loop("constant(8)").replace(
        "%y = f32[4]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}",
        "%y = f32[4]{0} fusion(%x), kind=kOutput, calls=%async_collective_fusion.2",
    )
    text = text.replace(
        "ROOT %w =",
        "%s = f32[32]{0} fusion(%x), kind=kCustom, calls=%f.1\n"
        "  %e = f32[32]{0} fusion(%x), kind=kCustom, calls=%f.3\n  ROOT %w =",
    )
    computations = (
        fusion.replace("NAME", "f.1") + end.replace("END", "Start"),
        fusion.replace("NAME", "async_collective_fusion.2") + "  ROOT %r = f32[4]{0} copy(%p)\n}\n",
        fusion.replace("NAME", "f.3") + end.replace("END", "Done"),
    )
    text = text.replace("%body (c", "".join(computations) + "%body (c")
    assert [one[:5] for one in hlo.collectives(text)] == [("all-gather", 1, 16, 128, 8)]


def test_a_reduce_scatter_written_as_a_fusion():
    text = program(
        "%x = f32[8]{0} parameter(0)",
        "ROOT %y = f32[3]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1",
        computations="%all-reduce-scatter.1 (p: f32[8]) -> f32[3] {\n"
        "  %p = f32[8]{0} parameter(0)\n  %pad = f32[12]{0} pad(%p)\n"
        "  %r = f32[12]{0} all-reduce(%pad), replica_groups={{0,1,2,3},{4,5,6,7}}\n"
        "  ROOT %s = f32[3]{0} dynamic-slice(%r)\n}",
    )
    assert [one[:5] for one in hlo.collectives(text)] == [("reduce-scatter", 1, 32, 12, 4)]


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        (loop("constant(8)"), 4),  # 1, 3, 5, 7
        (loop("constant(9)"), 4),
        (loop("constant(1)"), 0),
        (loop("get-tuple-element(%c), index=2"), 4),
        (loop("constant(8)").replace("direction=LT", "direction=LE"), 4),
        (loop("constant(9)").replace("direction=LT", "direction=LE"), 5),
        (loop("constant(8)", attributes=', backend_config={"known_trip_count":{"n":"7"}}'), 7),
    ],
)
def test_turns_of_a_loop(text, turns):
    (found,) = hlo.collectives(text)
    assert (found.kind, found.count, found.received) == ("collective-permute", turns, 16 * turns)


def test_a_loop_of_unknown_turns():
    text = loop("get-tuple-element(%c), index=2", last="parameter(1)")
    with pytest.raises(ValueError, match="loop of unknown turns"):
        hlo.collectives(text)
    assert hlo.collectives(text.replace("collective-permute", "copy")) == []


def test_collectives_of_a_real_program():
    mesh = traffic.cpu_mesh()

    def f(x):
        total = jax.lax.psum(jnp.sum(x), "data")
        every = jax.lax.all_gather(x, "data", tiled=True)
        part = jax.lax.psum_scatter(every * every, "data", tiled=True)
        step = lambda _, y: jax.lax.ppermute(y, "data", [(i, (i + 1) % 8) for i in range(8)])  # noqa: E731
        twice = lambda i, y: jax.lax.fori_loop(0, 3, step, y * 2)  # noqa: E731
        return jax.lax.fori_loop(0, 5, twice, part) + total

    spec = PartitionSpec("data")
    function = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=spec))
    found = hlo.collectives(function.lower(jnp.ones((8 * 6, 10))).compile().as_text())
    assert sorted(one[:5] for one in found) == [
        ("all-gather", 1, 240, 1920, DEVICES),
        ("all-reduce", 1, 4, 4, DEVICES),
        ("collective-permute", 15, 240, 240, DEVICES),
        ("reduce-scatter", 1, 1920, 240, DEVICES),
    ]
    assert hlo.received(found) == {
        "all-gather": 1680,
        "all-reduce": 7,
        "reduce-scatter": 1680,
        "collective-permute": 3600,
    }


@functools.cache
def sent(name, case=CASE, **options):
    """(all bytes received by a device, those of operations of 1 kB or more, the operations)."""
    found = traffic.collectives(name, case, traffic.cpu_mesh(), 1, **options)
    big = [one for one in found if max(one.operand_bytes, one.result_bytes) >= 1000]
    return sum(one.received for one in found), sum(one.received for one in big), found


@pytest.mark.parametrize(
    ("name", "texts"),
    [("clip", 16), ("pacl", 16), ("npc", 32), ("xac", 32), ("siglip", 16), ("ccl", 48)],
)
def test_a_device_receives_texts_once_and_their_gradient_once(name, texts):
    # As the docstrings say: n d floats each way, (W - 1) / W of them from others.
    everything, big, _ = sent(name)
    assert big == 2 * 4 * texts * CASE.width * (DEVICES - 1) / DEVICES
    assert everything - big < 48 * texts + 300  # owners, masks, sums, log-sum-exps


def test_a_device_of_the_ring_receives_what_the_docstring_says():
    everything, _, found = sent("siglip", exchange="ring")
    ring = [one for one in found if one.kind == "collective-permute"]
    floats = CASE.images * CASE.width
    assert sum(one.received for one in ring) == 4 * floats * (3 - 2 / DEVICES)
    assert sum(one.count for one in ring) == 3 * DEVICES - 2
    assert everything - sum(one.received for one in ring) < 8 * CASE.images + 300


@pytest.mark.parametrize("name", ["ccl", "pacl"])
def test_traffic_does_not_grow_with_tokens(name):
    everything, _, found = sent(name)
    tokens = 4 * CASE.images * CASE.tokens * CASE.width
    assert everything < tokens * (DEVICES - 1) / DEVICES / 5  # none of them on the way
    _, _, again = sent(name, CASE._replace(tokens=2 * CASE.tokens))
    assert traffic.moved(again) == traffic.moved(found)


def test_needed_arithmetic():
    case = cases.Case(images=2, phrases=5, tokens=3, width=7, captions=4)
    assert cases.needed_flops("siglip", case) == cases.needed_flops("clip", case) == 3 * 2 * 56
    assert cases.needed_flops("npc", case) == 3 * 2 * 70
    gram = 2 * 2 * (3 * 3 * 5 * 7 + 2 * 9 * 7 + 2 * 9 * 5)
    assert cases.needed_flops("xac", case) == gram
    assert cases.needed_flops("ccl", case) == gram + 3 * 2 * (56 + 70)
    # With a single text the products of all tokens do not pay.
    single = cases.Case(images=1, phrases=1, tokens=9, width=7)
    assert cases.needed_flops("xac", single) == 12 * 9 * 7


@pytest.mark.parametrize("text", ["4x4x4", "4x4x4x0", "4x4x4x4x4"])
def test_a_case_that_is_none(text):
    with pytest.raises(ValueError, match="images x phrases x tokens x width"):
        cases.Case.parse(text)


def test_table_and_figure(tmp_path, capsys):
    rows = benchmark.main(
        "--cases 4x8x5x8 --losses xac,siglip --layouts dense,2,99,auto,loop --rounds 2 --matmul 64 "
        f"--out {tmp_path}".split()
    )
    expected = [("xac", layout) for layout in ("dense", 2, "auto", "loop")]
    expected += [("siglip", layout) for layout in ("dense", 2, "auto")]
    assert [(row["loss"], row["layout"]) for row in rows] == expected
    for row in rows:
        assert 0 < row["seconds_min"] <= row["seconds"]
        assert row["gflop_per_second"] == pytest.approx(row["gflop"] / row["seconds"])
        assert row["share"] > 0 and row["temporaries"] > 0
    lines = (tmp_path / "losses.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("| xac |") == 4


def test_check_finds_a_wrong_layout(monkeypatch, capsys):
    benchmark.main("--check --losses xac --layouts 3,loop".split())
    assert capsys.readouterr().out.count("equal to dense") == 2
    right = cases.LOOPS["xac"]

    def wrong(tokens, *rest, **scalars):
        return right(tokens.at[0].multiply(-1), *rest, **scalars)

    monkeypatch.setitem(cases.LOOPS, "xac", wrong)
    with pytest.raises(AssertionError, match="xac, layout loop"):
        benchmark.main("--check --losses xac --layouts loop".split())


def test_temporaries_of_blocks_do_not_grow_with_images(capsys):
    dense, blocks = benchmark.main(
        "--memory --cases 16x32x49x32 --losses xac --layouts dense,1".split()
    )
    assert dense["temporaries_twice"] > 1.8 * dense["temporaries"]
    assert blocks["temporaries_twice"] < 1.1 * blocks["temporaries"]
    assert capsys.readouterr().out.count("| xac |") == 2


def test_tables_of_a_slice_and_of_eight_devices(monkeypatch, capsys):
    monkeypatch.setattr(traffic, "slice_mesh", lambda *_: traffic.cpu_mesh())
    flags = f"--cases {CASE} --losses xac --layouts 2".split()
    (row,) = benchmark.main([*flags, "--topology", "here"])
    # The share of a device: tokens, phrases, owners and two scalars.
    assert row["arguments"] == 4 * (2 * 49 * 32 + 4 * 32 + 4 + 2)
    assert row["flops"] * DEVICES == cases.needed_flops("xac", CASE)
    (again,) = benchmark.main([*flags, "--collectives"])
    assert again["received"] == row["received"]
    out = capsys.readouterr().out
    assert "The same with twice the tokens." in out and "| reduce-scatter | 1 |" in out

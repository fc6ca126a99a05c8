"""Costs read from compiled programs against sums by hand; a compilation for a TPU slice."""

import importlib.util
import itertools
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from ccl_jax.training import dry_run, hlo, hlo_costs
from ccl_jax.training.sharding import create_mesh
from tests.test_configs import load

ROOT = pathlib.Path(__file__).parents[2]
# A folder with the TPU compiler for a child process; here it would have JAX look for a TPU.
LIBTPU = os.environ.get("CCL_JAX_LIBTPU")


def program(*lines, computations=""):
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule m\n{computations}\nENTRY %main () -> f32[] {{\n{body}\n}}"


def test_products_count_two_operations_for_each_pair():
    text = program(
        "%a = f32[4,8,16]{2,1,0} parameter(0)",
        "%b = f32[4,16,32]{2,1,0} parameter(1)",
        "ROOT %c = f32[4,8,32]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, "
        "lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}",
    )
    assert hlo_costs.flops(text) == 2 * 4 * 8 * 32 * 16
    assert hlo_costs.memory_bytes(text) == 4 * (4 * 8 * 16 + 4 * 16 * 32 + 4 * 8 * 32)


def test_a_product_in_a_loop_counts_as_often_as_it_turns():
    carried = "(f32[8,16], f32[16,16])"
    loop = f"""%test (p: {carried}) -> pred[] {{
  %p = {carried} parameter(0)
  ROOT %t = pred[] constant(true)
}}
%body (p: {carried}) -> {carried} {{
  %p = {carried} parameter(0)
  %x = f32[8,16] get-tuple-element(%p), index=0
  %w = f32[16,16] get-tuple-element(%p), index=1
  %y = f32[8,16] dot(%x, %w), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  ROOT %r = {carried} tuple(%y, %w)
}}"""
    turns = 'backend_config={"known_trip_count":{"n":"5"}}'
    lines = (
        f"%a = {carried} parameter(0)",
        f"ROOT %l = {carried} while(%a), condition=%test, body=%body, ",
    )
    text = program(lines[0], lines[1] + turns, computations=loop)
    assert hlo_costs.flops(text) == 5 * 2 * 8 * 16 * 16
    with pytest.raises(ValueError, match="unknown turns"):
        hlo_costs.flops(program(*lines, computations=loop))


@pytest.mark.parametrize("pads", [(0, 0), (1, 2), (4, 4)])
@pytest.mark.parametrize(
    ("stride", "dilate", "spread"), [(1, 1, 1), (2, 1, 2), (1, 3, 1), (3, 2, 2)]
)
def test_convolutions_count_what_falls_on_real_elements(pads, stride, dilate, spread):
    left, kernel = 7, 3
    reach = (left - 1) * spread + 1 + sum(pads)
    out = (reach - (kernel - 1) * dilate - 1) // stride + 1
    text = program(
        f"%a = f32[2,{left},5]{{2,1,0}} parameter(0)",
        f"%b = f32[{kernel},5,6]{{2,1,0}} parameter(1)",
        f"ROOT %c = f32[2,{out},6]{{2,1,0}} convolution(%a, %b), window={{size={kernel} "
        f"stride={stride} pad={pads[0]}_{pads[1]} lhs_dilate={spread} rhs_dilate={dilate}}}, "
        "dim_labels=b0f_0io->b0f",
    )
    met = 0
    for o, k in itertools.product(range(out), range(kernel)):
        place = o * stride + k * dilate - pads[0]
        met += 0 <= place <= (left - 1) * spread and place % spread == 0
    assert hlo_costs.flops(text) == 2 * 2 * 5 * 6 * met


def test_work_beside_a_message_counts_and_its_message_once():
    def fusion(name, last):
        return [
            f"%{name} (a: f32[8,16], b: f32[16,4], c: f32[4]) -> f32[8,4] {{",
            "  %a = f32[8,16] parameter(0)",
            "  %b = f32[16,4] parameter(1)",
            "  %c = f32[4] parameter(2)",
            "  %g = f32[8] all-gather(%c), replica_groups={{0,1}}, dimensions={0}",
            f"  ROOT %r = f32[8,4] {last}",
            "}",
        ]

    product = "dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    fusions = fusion("start", 'custom-call(%a), custom_call_target="AsyncCollectiveStart"')
    fusions += fusion("async_collective_fusion.1", product)
    fusions += fusion("end", 'custom-call(%a), custom_call_target="AsyncCollectiveDone"')
    names = ("start", "async_collective_fusion.1", "end")
    text = program(
        "%a = f32[8,16] parameter(0)",
        "%b = f32[16,4] parameter(1)",
        "%c = f32[4] parameter(2)",
        *(f"%f{i} = f32[8,4] fusion(%a, %b, %c), calls=%{n}" for i, n in enumerate(names)),
        "ROOT %z = f32[] constant(0)",
        computations="\n".join(fusions),
    )
    assert hlo_costs.flops(text) == 2 * 8 * 16 * 4
    (message,) = hlo.collectives(text)
    assert message.received == 4 * 8 / 2


def test_arrays_kept_on_the_chip_cost_no_memory_traffic():
    text = program(
        "%a = f32[128]{0:T(128)S(1)} parameter(0)",
        "%b = bf16[128]{0:T(128)} parameter(1)",
        "ROOT %c = f32[128]{0:T(128)} add(%a, %b)",
    )
    assert hlo_costs.memory_bytes(text) == 128 * 2 + 128 * 4
    assert hlo.main_memory_bytes("(f32[8]{0:T(128)S(1)}, f32[4]{0}, pred[2]{0})") == 18


def test_what_is_fetched_ahead_is_read_from_memory():
    text = program(
        "%a = f32[128]{0:T(128)} parameter(0)",
        "%s = (f32[128]{0:T(128)S(1)}, f32[128]{0:T(128)}, u32[]{:S(1)}) copy-start(%a)",
        "%d = f32[128]{0:T(128)S(1)} copy-done(%s)",
        "%t = ((f32[128]{0}), f32[32]{0:S(1)}, u32[]{:S(1)}) slice-start(%a), slice={[0:32]}",
        "ROOT %c = f32[128]{0:T(128)S(1)} negate(%d)",
    )
    assert hlo_costs.memory_bytes(text) == 128 * 4 + 32 * 4


SLICING = """%slicing (p: f32[64,16], i: s32[]) -> f32[1,16] {
  %p = f32[64,16]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  ROOT %s = f32[1,16]{1,0} dynamic-slice(%p, %i, %z), dynamic_slice_sizes={1,16}
}
"""
AROUND = """%around (q: f32[64,16], k: s32[]) -> f32[1,16] {
  %q = f32[64,16]{1,0} parameter(0)
  %k = s32[] parameter(1)
  %t = f32[1,16]{1,0} fusion(%q, %k), kind=kLoop, calls=%slicing
  ROOT %u = f32[1,16]{1,0} negate(%t)
}
"""


@pytest.mark.parametrize("called", ["slicing", "around"])
def test_a_fusion_that_reads_a_slice_pays_for_the_slice(called):
    text = program(
        "%a = f32[64,16]{1,0} parameter(0)",
        "%n = s32[] parameter(1)",
        f"ROOT %c = f32[1,16]{{1,0}} fusion(%a, %n), kind=kLoop, calls=%{called}",
        computations=SLICING + AROUND,
    )
    assert hlo_costs.memory_bytes(text) == 16 * 4 + 4 + 16 * 4


@pytest.mark.parametrize("name", ["v5e", "v7:2x2", "2x4", "v5e:"])
def test_an_unknown_slice_is_refused(name):
    with pytest.raises(ValueError, match="topology"):
        dry_run.slice_devices(name)


def test_the_batch_of_a_dry_run_is_that_of_the_pipeline():
    config = load("quickstart").get_config("ccl")
    mesh = create_mesh(jax.devices()[:1])
    shapes = {name: one.shape for name, one in dry_run.abstract_batch(config, mesh).items()}
    assert shapes == {
        "image": (64, 48, 48, 3),
        "text": (64, 20),
        "sample_id": (64,),
        "phrase_text": (160, 6),
        "phrase_image": (160,),
    }


@pytest.mark.slow
@pytest.mark.skipif(
    not (LIBTPU or importlib.util.find_spec("libtpu")),
    reason="needs the tpu extra, or libtpu in a folder that CCL_JAX_LIBTPU names",
)
def test_a_tiny_step_compiles_for_a_slice(tmp_path):
    lines = [
        "from configs import quickstart",
        "def get_config():",
        "    config = quickstart.get_config('ccl')",
        "    config.model.image.depth = 1",
        "    with config.unlocked():",
        "        config.model.text.depth = 1",
        "    return config",
    ]
    (tmp_path / "small.py").write_text("\n".join(lines), encoding="utf-8")
    paths = [path for path in (LIBTPU, os.environ.get("PYTHONPATH")) if path]
    done = subprocess.run(
        [sys.executable, "-m", "ccl_jax.tools.dry_run", "--config", str(tmp_path / "small.py")]
        + ["--topology", "v5e:2x4", "--config.mesh.fsdp=8", "--noparameters"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "8 devices" in done.stdout and ": fits" in done.stdout
    number = lambda words: float(done.stdout.split(words)[0].split()[-1])  # noqa: E731
    # Products with the matrices alone, forward and twice backward, of an eighth of the batch.
    images, tokens, texts, phrases, width = 8, 36, 8 * 20, 20 * 6, 64
    block = 12 * width * width
    least = 3 * 2 * (images * tokens * (block + 192 * width) + (texts + phrases) * block)
    assert 0.9 * least < number(" GFLOP") * 1e9 < 3 * least
    # Matrices of two blocks, once forward, once backward and their gradients.
    assert number(" MB received") * 1e6 > 3 * 7 / 8 * 2 * block * 2

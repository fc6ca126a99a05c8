"""Time, memory and traffic of the losses, forward and backward, in every layout.

    python benchmarks/losses.py --out DIR                        # time, on CPU or GPU
    python benchmarks/losses.py --cases 64x256x196x768 --losses ccl,xac --layouts dense,1,8,loop
    python benchmarks/losses.py --cases 4096x16384x196x768 --dtype bfloat16 --layouts 8,32
    python benchmarks/losses.py --check                          # layouts agree, at a small size
    python benchmarks/losses.py --memory                         # compiles only: twice the images
    python benchmarks/losses.py --collectives                    # compiles for 8 devices
    python benchmarks/losses.py --topology v5e:16x16 --layouts 1,8 --dtype bfloat16

A case is images x phrases x tokens x width. A layout is "dense", a `chunk_size` (a number of
images, or "auto"), or "loop": one text at a time against all images, a `lax.map` written here
as released code goes about it. Candidates take turns, so that whatever else the machine does
falls on all alike, and a square matrix product takes its turn among them: a row's share is
the rate of its strictly needed arithmetic (`flops.loss_flops`) by that of the product
in the same round. Temporaries are what the compiler reports, without arguments and results.
`--topology` needs `pip install jax[tpu]`, but no TPU; it takes some minutes.
"""

import argparse
import json
import os
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import losses_cases as cases
import losses_traffic as traffic
import numpy as np
from losses_cases import Case, Layout

from ccl_jax.losses import blocks

_CASES = "16x64x49x256,64x256x196x768,256x1024x196x768"
_BIG = "32768x131072x196x768"
_SMALL = Case(16, 32, 25, 64)


class Candidate:
    """A loss in a layout, compiled, with its arguments and the seconds of each round."""

    def __init__(self, name: str, case: Case, layout: Layout, dtype: str):
        self.name, self.case, self.layout = name, case, layout
        self.run = cases.compile_(name, case, layout, dtype=dtype)
        self.temporaries = self.run.memory_analysis().temp_size_in_bytes
        self.flops = cases.needed_flops(name, case)
        self.seconds: list[float] = []

    def row(self, rates: list[float]) -> dict:
        """A line of the table; `rates` are those of the matrix product, by round."""
        share = [self.flops / s / rate for s, rate in zip(self.seconds, rates, strict=True)]
        median = statistics.median(self.seconds)
        return {
            "case": str(self.case),
            "loss": self.name,
            "layout": self.layout,
            "seconds": median,
            "seconds_min": min(self.seconds),
            "temporaries": self.temporaries,
            "gflop": self.flops / 1e9,
            "gflop_per_second": self.flops / median / 1e9,
            "share": statistics.median(share),
        }


class Product:
    """The yardstick: a square matrix product in the type in which the losses accumulate."""

    def __init__(self, size: int):
        self.size, self.seconds = size, []
        self.arguments = (jnp.ones((size, size)), jnp.ones((size, size)))
        self.run = jax.jit(jnp.matmul).lower(*self.arguments).compile()

    @property
    def rates(self) -> list[float]:
        """Floating-point operations a second, by round."""
        return [2 * self.size**3 / seconds for seconds in self.seconds]


def measure(function, arguments, least: float = 0.02) -> float:
    """Seconds of a call: of as many in a row as take `least` seconds."""
    calls, start = 0, time.perf_counter()
    while True:
        jax.block_until_ready(function(*arguments))
        calls += 1
        if (spent := time.perf_counter() - start) >= least:
            return spent / calls


def layouts_of(name: str, case: Case, layouts: list[Layout]) -> list[Layout]:
    """Those that make sense: a loop where there is one, blocks no larger than the batch."""
    return [
        layout
        for layout in layouts
        if (layout != "loop" or name in cases.LOOPS)
        and (not isinstance(layout, int) or layout <= case.images)
    ]


def time_case(case: Case, options: argparse.Namespace) -> list[dict]:
    """Rows of a table: every loss and layout in turns, and the matrix product among them."""
    arguments = {name: cases.draw(name, case, options.dtype) for name in options.losses}
    product = Product(options.matmul)
    candidates = [
        Candidate(name, case, layout, options.dtype)
        for name in options.losses
        for layout in layouts_of(name, case, options.layouts)
    ]
    for round_ in range(options.rounds + 1):
        # Every round starts elsewhere, so that no candidate always follows the same one.
        turn = round_ * 7 % len(candidates)
        for one in [product, *candidates[turn:], *candidates[:turn]]:
            given = product.arguments if one is product else arguments[one.name]
            seconds = measure(one.run, given)
            if round_:  # the first warms up
                one.seconds.append(seconds)
    rates = product.rates
    title = f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores, jax {jax.__version__}"
    print(
        f"\n{case}, {options.dtype}, {options.rounds} rounds; {title}; {product.size}^3 product "
        f"{statistics.median(rates) / 1e9:.0f} GFLOP/s ({min(rates) / 1e9:.0f} to "
        f"{max(rates) / 1e9:.0f})\n"
    )
    rows = [one.row(rates) for one in candidates]
    print_rows(rows)
    rate = {"product_gflop_per_second": statistics.median(rates) / 1e9, "dtype": options.dtype}
    return [row | rate for row in rows]


def print_rows(rows: list[dict]) -> None:
    """The table of a case, in Markdown."""
    print("| loss | layout | s, median | s, min | temporaries MB | GFLOP | GFLOP/s | share |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['loss']} | {row['layout']} | {row['seconds']:.4f} | "
            f"{row['seconds_min']:.4f} | {row['temporaries'] / 1e6:.1f} | {row['gflop']:.2f} | "
            f"{row['gflop_per_second']:.0f} | {100 * row['share']:.0f} % |"
        )


def draw_rows(rows: list[dict], path: pathlib.Path) -> None:
    """Time and memory against images of a block, a column for each case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = list(dict.fromkeys(row["case"] for row in rows))
    figure, axes = pyplot.subplots(
        2, len(sizes), figsize=(4.5 * len(sizes), 7), squeeze=False, sharex="col"
    )
    what = (("seconds", 1.0, "seconds"), ("temporaries", 1e-6, "temporaries, MB"))
    for column, case in enumerate(sizes):
        for plot, (key, factor, label) in zip(axes[:, column], what, strict=True):
            for i, name in enumerate(dict.fromkeys(row["loss"] for row in rows)):
                mine = [row for row in rows if row["case"] == case and row["loss"] == name]
                points = [row for row in mine if isinstance(row["layout"], int)]
                x, y = ([row[k] for row in points] for k in ("layout", key))
                plot.plot(x, np.multiply(y, factor), "o-", color=f"C{i}", label=name)
                for row in mine:
                    style = {"dense": "--", "auto": "-.", "loop": ":"}.get(row["layout"])
                    if style:
                        plot.axhline(row[key] * factor, color=f"C{i}", linestyle=style, lw=1)
            plot.set_xscale("log", base=2)
            plot.set(yscale="log", ylabel=label)
            plot.xaxis.set_major_formatter("{x:.0f}")
            plot.grid(alpha=0.3)
        axes[0, column].set_title(case)
        axes[1, column].set_xlabel("chunk_size (dashed: dense, dotted: loop, both: auto)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper center", ncols=3)
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def check(options: argparse.Namespace) -> None:
    """Asserts that every layout has value and gradients of the dense form.

    Raises:
      AssertionError: naming the loss and the layout.
    """
    for name in options.losses:
        arguments = cases.draw(name, _SMALL)
        with jax.default_matmul_precision("highest"):
            (dense, _), expected = jax.jit(cases.value_and_grad(name))(*arguments)
            for layout in layouts_of(name, _SMALL, options.layouts):
                (value, _), found = jax.jit(cases.value_and_grad(name, layout))(*arguments)
                message = f"{name}, layout {layout}"
                np.testing.assert_allclose(value, dense, rtol=1e-5, err_msg=message)
                for a, b in zip(found, expected, strict=True):
                    near = 1e-5 * float(jnp.max(jnp.abs(b)))
                    np.testing.assert_allclose(a, b, rtol=1e-3, atol=near, err_msg=message)
                print(f"{message}: equal to dense")


def memory(options: argparse.Namespace) -> list[dict]:
    """Temporaries with b and with 2 b images, texts as they were; compiles, runs nothing."""
    rows = []
    for case in options.cases:
        case = case._replace(captions=case.images)
        print(f"\n{case}, {options.dtype}: temporaries, and with twice the images\n")
        print("| loss | layout | MB | MB, twice the images | ratio |\n|---|---|---|---|---|")
        for name in options.losses:
            for layout in layouts_of(name, case, options.layouts):
                if layout == "loop":
                    continue  # takes one caption for every image
                twice = case._replace(images=2 * case.images)
                one, two = (
                    cases.compile_(name, c, layout, dtype=options.dtype)
                    .memory_analysis()
                    .temp_size_in_bytes
                    for c in (case, twice)
                )
                print(
                    f"| {name} | {layout} | {one / 1e6:.2f} | {two / 1e6:.2f} | {two / one:.2f} |"
                )
                rows.append(
                    {
                        "case": str(case),
                        "loss": name,
                        "layout": layout,
                        "temporaries": one,
                        "temporaries_twice": two,
                    }
                )
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cases", help=f"images x phrases x tokens x width, with commas; default {_CASES}")
    add("--losses", default=",".join(cases.LOSSES), help="with commas")
    add("--layouts", default="dense,auto,1,2,4,8,16,32,loop", help="with commas")
    add("--dtype", default="float32", help="of embeddings and tokens")
    add("--rounds", type=int, default=5)
    add("--matmul", type=int, help="size of the product; default 2048, on a GPU 8192")
    add("--block_elements", type=int, help="try another losses.blocks.BLOCK_ELEMENTS")
    add("--out", type=pathlib.Path, help="folder for losses.jsonl and losses.png")
    add("--check", action="store_true", help="only compare layouts with dense")
    add("--memory", action="store_true", help="only compile, with twice the images")
    add("--collectives", action="store_true", help="only compile, for 8 devices of the CPU")
    add("--topology", help="only compile, for a TPU slice such as v5e:16x16")
    add("--mesh", help="mesh of the slice, as 16x16; default one axis")
    return parser


def main(arguments: list[str] | None = None) -> list[dict]:
    """Does what the flags say; returns the rows of the tables."""
    options = _parser().parse_args(arguments)
    default = _BIG if options.topology else _CASES
    options.cases = [Case.parse(case) for case in (options.cases or default).split(",")]
    options.losses = options.losses.split(",")
    options.layouts = [int(x) if x.isdigit() else x for x in options.layouts.split(",")]
    if options.block_elements:
        blocks.BLOCK_ELEMENTS = options.block_elements
    rows = []
    if options.topology:
        rows = traffic.on_slice(options)
    elif options.collectives:
        rows = traffic.on_cpu(options)
    elif options.memory:
        rows = memory(options)
    elif options.check:
        check(options)
    else:
        gpu = jax.default_backend() == "gpu"
        options.matmul = options.matmul or (8192 if gpu else 2048)
        for case in options.cases:
            rows += time_case(case, options)
    if options.out and rows:
        options.out.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (options.out / "losses.jsonl").write_text(lines, encoding="utf-8")
        if "seconds" in rows[0]:
            draw_rows(rows, options.out / "losses.png")
    return rows


if __name__ == "__main__":
    main()

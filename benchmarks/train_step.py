"""Time, memory and utilisation of the training step, forward, backward and AdamW.

    python benchmarks/train_step.py                         # three small models, on a CPU
    python benchmarks/train_step.py --preset B/16 --batch 256 --dtype bfloat16 \
        --objectives siglip,ccl --remat none,dots,full      # a GPU or TPU
    python benchmarks/train_step.py --preset L/16 --batch 32 --scan_layers 0,1 --compile_only
    python benchmarks/train_step.py --topology v5e:4x4 --preset B/16 --batch 4096 --dtype bfloat16
    python benchmarks/train_step.py --open_clip VENV/bin/python    # beside open_clip

The step is that of `ccl_jax.training`, metrics included, on a batch of noise that lies on the
device. Candidates take turns, so that whatever else the machine does falls on all alike, and a
square matrix product takes its turn among them: "share" is the rate of the arithmetic that the
model needs (`flops.model_flops`) by that of the product in the same rounds, in
the type that the model computes in. "MFU" is the same rate by the chip's nominal bfloat16 peak,
where that is known. Memory is the compiler's own figure. A size is image x patch x width x depth x
heads x text length x text depth x batch. `--open_clip` names a Python that has open_clip; its step
at the same size takes turns with ours, in a process of its own.
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import train_step_cases as cases
from train_step_cases import Size

from ccl_jax.training import flops, sharding
from ccl_jax.training.step import abstract_state, create_trainer

# Images a second of open_clip 3.3.0 (PyTorch, SigLIP loss, AdamW) on two idle CPU cores, and of
# a plain Linen sketch: the figures to reach there.
SIZES = {
    "64x16x128x4x4x16x2x64": (470, 502),
    "112x16x384x6x6x32x4x32": (31.9, 30.9),
    "224x16x192x12x3x64x4x16": (19.6, 14.0),
}


class Step:
    """The step of a config, compiled, and the seconds of a step by round."""

    def __init__(self, name: str, config, mesh):
        self.name, self.images = name, config.data.batch_size
        self.seconds: list[float] = []
        self.trainer = create_trainer(config, mesh, eot_id=2)
        self.batch = cases.draw_batch(config, self.trainer.model)
        self.flops = flops.model_flops(config, self.trainer.model)
        self.mesh = mesh
        placement = sharding.sharded(mesh)
        shapes = {
            key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement)
            for key, x in self.batch.items()
        }
        start = time.perf_counter()
        lowered = self.trainer.step.lower(abstract_state(self.trainer), shapes)
        self.trace_seconds = time.perf_counter() - start
        self.run = lowered.compile()
        self.compile_seconds = time.perf_counter() - start - self.trace_seconds
        self.memory = self.run.memory_analysis()
        self.state = None

    def round(self, least: float) -> None:
        """Steps for `least` seconds; the first round only warms up."""
        if self.state is None:
            self.state = self.trainer.init()
            self.batch = jax.device_put(self.batch, sharding.sharded(self.mesh))
            self._steps(2)
            return
        count = max(1, round(least / self._steps(1)))
        self.seconds.append(self._steps(count))

    def _steps(self, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            self.state, metrics = self.run(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))
        return (time.perf_counter() - start) / count

    def row(self) -> dict:
        """What there is to say without running it."""
        return {
            "name": self.name,
            "images": self.images,
            "trace_seconds": self.trace_seconds,
            "compile_seconds": self.compile_seconds,
            "temporaries": self.memory.temp_size_in_bytes,
            "arguments": self.memory.argument_size_in_bytes,
            "gflop": self.flops / 1e9,
        }


class OpenClip:
    """open_clip's step at one size, in a process that takes a turn when it is told to."""

    def __init__(self, python: str, size: Size, vocab_size: int):
        self.name, self.images, self.seconds = "open_clip", size.batch, []
        script = pathlib.Path(__file__).with_name("open_clip_step.py")
        command = [python, str(script), str(size), str(vocab_size)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.warm = False

    def round(self, least: float) -> None:
        """Steps for `least` seconds; the first round only warms up."""
        self.process.stdin.write(f"{least}\n")
        self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            raise SystemExit("open_clip's process ended; its own message is above")
        if self.warm:
            self.seconds.append(float(line))
        self.warm = True

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()

    def row(self) -> dict:
        """It reports time alone."""
        return {"name": self.name, "images": self.images}


class Product:
    """The yardstick: a square matrix product in the type in which the model computes."""

    def __init__(self, size: int, dtype: str):
        self.size, self.seconds = size, []
        self.arguments = (jnp.ones((size, size), dtype),) * 2
        self.run = jax.jit(jnp.matmul).lower(*self.arguments).compile()

    def round(self, least: float) -> None:
        """Products for a part of that time."""
        calls, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < least / 4:
            jax.block_until_ready(self.run(*self.arguments))
            calls += 1
        self.seconds.append(spent / calls)


def candidates(options: argparse.Namespace, mesh) -> list[tuple[str, list]]:
    """[(title, candidates that take turns)], one entry for each size and objective."""
    if options.preset:
        sizes = [(options.preset, {"preset": options.preset}, options.batch or 64, None)]
    else:
        parsed = [Size.parse(text) for text in options.sizes.split(",")]
        sizes = [(str(s), s.model(options.vocab_size), options.batch or s.batch, s) for s in parsed]
    groups = []
    settings = [
        ("remat", options.remat.split(",")),
        ("scan_layers", [bool(int(x)) for x in options.scan_layers.split(",")]),
        ("patch_dropout", [float(x) for x in options.patch_dropout.split(",")]),
        ("attention", options.attention.split(",")),
    ]
    varied = [field for field, values in settings if len(values) > 1]
    for (title, model, batch, size), name in itertools.product(
        sizes, options.objectives.split(",")
    ):
        steps: list = []
        for values in itertools.product(*(values for _, values in settings)):
            chosen = dict(zip((field for field, _ in settings), values, strict=True))
            label = ", ".join(f"{field}={chosen[field]}" for field in varied) or "ccl_jax"
            fields = model | chosen | {"dtype": options.dtype}
            config = cases.make_config(fields, batch, name, options.phrases, options.micro_batch)
            steps.append(Step(label, config, mesh))
        if options.open_clip and size and name == "siglip":
            same = size._replace(batch=batch)
            steps.append(OpenClip(options.open_clip, same, options.vocab_size))
        groups.append((f"{title}, {name}, {batch} images, {options.dtype}", steps))
    return groups


def measure(steps: list, options: argparse.Namespace) -> Product:
    """Rounds in which all take turns, the matrix product among them."""
    gpu = jax.default_backend() != "cpu"
    product = Product(options.matmul or (8192 if gpu else 2048), options.dtype)
    for round_ in range(options.rounds + 1):
        turn = round_ % len(steps)  # so that none always follows the same one
        for one in [product, *steps[turn:], *steps[:turn]]:
            one.round(options.seconds)
    del product.seconds[0]
    if options.profile:
        for one in steps:
            with jax.profiler.trace(str(options.profile / one.name.replace(", ", "_"))):
                one.round(0.0)
            one.seconds.pop()
    for one in steps:
        if isinstance(one, OpenClip):
            one.close()
    return product


def rows_of(steps: list, product: Product | None, devices: int) -> list[dict]:
    """The rows of a table; rates only where something ran."""
    rows = []
    nominal = flops.peak(jax.devices()[0].device_kind)
    for one in steps:
        row = one.row()
        if one.seconds:
            median = statistics.median(one.seconds)
            row |= {
                "seconds": median,
                "seconds_min": min(one.seconds),
                "images_per_second": one.images / median,
            }
        if one.seconds and product and "gflop" in row:
            rate = 1e9 * row["gflop"] / row["seconds"] / devices
            each = [
                1e9 * row["gflop"] / s / devices / (2 * product.size**3 / p)
                for s, p in zip(one.seconds, product.seconds, strict=True)
            ]
            row |= {"gflop_per_second": rate / 1e9, "share": statistics.median(each)}
            row["mfu"] = rate / nominal if nominal else None
        rows.append(row)
    return rows


def print_table(title: str, rows: list[dict], product: Product | None) -> None:
    """A table in Markdown."""
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
    print(f"\n{title}; {device}, jax {jax.__version__}")
    if product:
        rate = 2 * product.size**3 / statistics.median(product.seconds) / 1e9
        print(f"{product.size}^3 product: {rate:.0f} GFLOP/s")
    columns = [
        ("images/s", "images_per_second", "{:.1f}", 1),
        ("ms a step", "seconds", "{:.1f}", 1e3),
        ("fastest", "seconds_min", "{:.1f}", 1e3),
        ("trace s", "trace_seconds", "{:.1f}", 1),
        ("compile s", "compile_seconds", "{:.1f}", 1),
        ("temporaries MB", "temporaries", "{:.1f}", 1e-6),
        ("state and batch MB", "arguments", "{:.1f}", 1e-6),
        ("GFLOP", "gflop", "{:.1f}", 1),
        ("GFLOP/s", "gflop_per_second", "{:.0f}", 1),
        ("share", "share", "{:.0f} %", 100),
        ("MFU", "mfu", "{:.1f} %", 100),
    ]
    columns = [c for c in columns if any(row.get(c[1]) is not None for row in rows)]
    print("\n| | " + " | ".join(c[0] for c in columns) + " |\n|---|" + "---:|" * len(columns))
    for row in rows:
        cells = [
            form.format(row[key] * factor) if row.get(key) is not None else ""
            for _, key, form, factor in columns
        ]
        print(f"| {row['name']} | " + " | ".join(cells) + " |")
    sys.stdout.flush()


def _topology_devices(name: str):
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=name).devices


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sizes", default=",".join(SIZES), help="with commas; unused with --preset")
    add("--preset", help="a name in models.presets.PRESETS")
    add("--vocab_size", type=int, default=32_000, help="of the sizes")
    add("--batch", type=int, help="images, over all devices; default the size's own")
    add("--objectives", default="siglip", help=f"with commas: {', '.join(cases.OBJECTIVES)}")
    add("--phrases", type=float, default=4.0, help="an image, for ccl")
    add("--dtype", default="float32", help="of the computation")
    add("--remat", default="none", help="with commas: none, dots, full")
    add("--scan_layers", default="0", help="0, 1 or both with a comma")
    add("--patch_dropout", default="0", help="shares, with commas")
    add("--attention", default="auto", help="with commas: auto, xla, cudnn")
    add("--micro_batch", type=int, default=0, help="config.train.micro_batch")
    add("--rounds", type=int, default=7)
    add("--seconds", type=float, default=1.0, help="of a turn, at least")
    add("--matmul", type=int, help="size of the product; default 2048, on a GPU or TPU 8192")
    add("--open_clip", help="a Python with open_clip, to take turns with")
    add("--profile", type=pathlib.Path, help="folder for a trace of a step of each candidate")
    add("--compile_only", action="store_true", help="compile, run nothing")
    add("--topology", help="compile for a TPU slice such as v5e:4x4, run nothing")
    add("--out", type=pathlib.Path, help="file for the rows as JSON lines")
    return parser


def main(arguments: list[str] | None = None) -> list[dict]:
    """Does what the flags say; returns the rows of the tables."""
    options = _parser().parse_args(arguments)
    devices = _topology_devices(options.topology) if options.topology else jax.devices()
    mesh = sharding.create_mesh(devices)
    all_rows = []
    for title, steps in candidates(options, mesh):
        product = None
        if not (options.compile_only or options.topology):
            product = measure(steps, options)
        rows = rows_of(steps, product, len(devices))
        print_table(title, rows, product)
        for row in rows:
            reference = SIZES.get(title.split(",")[0])
            if reference and "seconds" in row and jax.default_backend() == "cpu":
                given = ", ".join(f"{row['images_per_second'] / x:.2f}" for x in reference)
                print(f"{row['name']}: {given} times {reference[0]} and {reference[1]} images/s")
        all_rows += [{"case": title} | row for row in rows]
    if options.out:
        lines = "".join(json.dumps(row) + "\n" for row in all_rows)
        options.out.write_text(lines, encoding="utf-8")
    return all_rows


if __name__ == "__main__":
    main()

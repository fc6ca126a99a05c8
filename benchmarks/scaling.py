"""A model, not a measurement: memory, messages and time of a CCL step by size, batch and layout.

    python benchmarks/scaling.py fit        # the largest batch of each layout and size
    python benchmarks/scaling.py best       # the layout of the shortest modelled step
    python benchmarks/scaling.py compare --results FILE    # beside what dry_runs.py compiled

CCL is SigLIP + NPC + XAC with 4 phrases an image of 64 tokens (SigLIP pools the last position),
AdamW, float32 weights, bfloat16 computation, images of 224. The sums are written out below and
explained in docs/scaling.md; nothing is compiled.
"""

import argparse
import dataclasses
import functools
import itertools
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402

from ccl_jax.models.presets import PRESETS, build_model  # noqa: E402
from ccl_jax.training import flops  # noqa: E402
from ccl_jax.training.dry_run import CHIPS  # noqa: E402
from ccl_jax.training.parameters import initial  # noqa: E402

PHRASES = 4
# Share of the peak that products reach. Assumed: no TPU was at hand.
UTILISATION = 0.5
SIZES = ("B/16", "L/16", "So400m/14")
BATCHES = (4096, 8192, 16384, 32768, 65536)
# Kind, chips, and over how many FSDP goes: a side or two of the torus, see docs/scaling.md.
SLICES = (("v5e", 8, 8), ("v5e", 64, 8), ("v5e", 256, 16), ("v5p", 512, 64))


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a step is spread over `chips` devices: data x fsdp x tensor, in `micro` parts."""

    chips: int
    fsdp: int = 1
    tensor: int = 1
    remat: str = "none"
    micro: int = 1

    @property
    def batch_devices(self) -> int:
        """Parts of a batch."""
        return self.chips // self.tensor

    @property
    def scatters(self) -> bool:
        """Whether gradients are scattered; over a whole slice at once the compiler sums them."""
        return 1 < self.fsdp < self.chips or self.chips <= 8

    def __str__(self) -> str:
        parts = f"fsdp {self.fsdp}" if self.fsdp > 1 else "replicated"
        parts += f", tensor {self.tensor}" if self.tensor > 1 else ""
        micro = f", {self.micro} micro-batches" if self.micro > 1 else ""
        return f"{parts}, remat {self.remat}{micro}"


@functools.cache
def _model(size: str):
    model = build_model({"preset": size}, eot_id=1)
    return model, sum(x.size for x in jax.tree.leaves(jax.eval_shape(lambda: initial(model, 0))))


@functools.cache
def _towers(size: str) -> tuple[tuple[int, dict], tuple[int, dict]]:
    """(tokens of an image and its texts, fields) of both towers."""
    image, text = PRESETS[size]["image"], PRESETS[size]["text"]
    patches = (image["image_size"] // image["patch_size"]) ** 2
    return (patches, image), ((1 + PHRASES) * text["length"], text)


def _hidden(tower: dict) -> int:
    return tower.get("mlp_dim") or 4 * tower["width"]


def state_bytes(size: str, layout: Layout) -> float:
    """Weights and AdamW's two moments, float32."""
    return 12 * _model(size)[1] / (layout.fsdp * layout.tensor)


def activation_bytes(size: str, layout: Layout, images: int) -> float:
    """What blocks keep for the backward pass, and one block at work, in bfloat16.

    Widths that a token keeps: with "full" the input of the block, twice, as compiled programs
    come to (docs/scaling.md, checks); with "dots" the input once and q, k, v, the
    outputs of attention and MLP, and the hidden layer; with "none" also both norms, the attended
    values, the activation and attention's probabilities. Over a tensor axis q, k, v, hidden
    layers and heads are split, the rest is not.
    """
    rows = images / layout.batch_devices / layout.micro
    kept, working = 0.0, 0.0
    for tokens, tower in _towers(size):
        width, heads = tower["width"], tower["heads"]
        hidden = _hidden(tower)
        length = tokens if tower is PRESETS[size]["image"] else tower["length"]
        share = 1 / layout.tensor
        widths = {
            "full": 2 * width,
            "dots": width + (3 * share + 2) * width + share * hidden,
            "none": 5 * width + share * (4 * width + 2 * hidden + heads * length),
        }
        kept += tower["depth"] * rows * tokens * 2 * widths[layout.remat]
        working = max(working, rows * tokens * 2 * widths["none"])
    return kept + (working if layout.remat != "none" else 0)


def loss_bytes(size: str, layout: Layout, images: int) -> float:
    """Texts of all devices and their gradients, image tokens and theirs, float32."""
    (patches, image), _ = _towers(size)
    texts = (1 + PHRASES) * images
    return 2 * 4 * image["width"] * (texts + images / layout.batch_devices * patches)


def memory_bytes(size: str, layout: Layout, images: int) -> float:
    """State, gradients, weights in bfloat16 where they are whole, activations, losses, images."""
    count = _model(size)[1]
    (_, image), _ = _towers(size)
    own = 4 * count / (layout.fsdp * layout.tensor)
    cast = 2 * count / layout.tensor if layout.fsdp == 1 else 0
    pixels = 3 * image["image_size"] ** 2 * images / layout.batch_devices
    arrays = activation_bytes(size, layout, images) + loss_bytes(size, layout, images)
    return state_bytes(size, layout) + own + cast + pixels + arrays


def step_flops(size: str, layout: Layout, images: int) -> float:
    """Products of a device: the ones needed, and the forward ones that are done again.

    "dots" repeats the products of attention, "full" all of the forward pass but the last product
    of a block, which no gradient asks for, and micro-batches all of it.
    """
    (patches, image), (_, text) = _towers(size)
    forward, attention, last = 0.0, 0.0, 0.0
    for length, count, tower in ((patches, 1, image), (text["length"], 1 + PHRASES, text)):
        tokens = count * tower["depth"] * length
        forward += count * flops.tower_flops(length, **tower)
        attention += 4 * tokens * length * tower["width"]
        last += 2 * tokens * _hidden(tower) * tower["width"]
    losses = sum(
        flops.loss_flops(name, images, PHRASES * images, patches, image["width"])
        for name in ("siglip", "npc", "xac")
    )
    again = {"none": 0, "dots": attention, "full": forward - last}[layout.remat]
    again += forward * (layout.micro > 1)
    return (images * (3 * forward + again) + losses) / layout.chips


def message_bytes(size: str, layout: Layout, images: int) -> dict[str, float]:
    """Bytes that a device receives.

    Weights under FSDP: gathered in bfloat16 forward and backward, about half of them again for
    "full", the token embedding once, and all of it for each micro-batch. Gradients: scattered in
    bfloat16, in which kernels have theirs, or summed, which moves twice the bytes; over the data
    axis they are summed.
    Losses: texts gathered in bfloat16; their gradients scattered or summed in float32.
    Tensor: two sums of a block's activations forward, two backward, and two for what is done
    again.
    """
    model, others = _towers(size), lambda n: (n - 1) / n  # noqa: E731
    data = layout.chips // (layout.fsdp * layout.tensor)
    (_, image), (_, text) = model
    count, embedding = _model(size)[1], text["vocab_size"] * text["width"]
    again = layout.micro > 1
    passes = 2 + again + (layout.remat == "full") / 2
    gathered = 2 * passes * (count - embedding) + 2 * embedding
    weights = layout.micro * gathered * others(layout.fsdp) / layout.tensor
    own = 2 * count / layout.tensor
    twice = 1 if layout.scatters else 2
    gradients = twice * own * others(layout.fsdp) + 2 * own / layout.fsdp * others(data)
    row = images * image["width"] * others(layout.batch_devices)
    rows = images / layout.batch_devices
    sums = 4 + 2 * (layout.remat == "full") + 2 * again
    tensor = sum(
        sums * tower["depth"] * rows * tokens * tower["width"] * 2 * 2 * others(layout.tensor)
        for tokens, tower in model
    )
    return {
        "weights": weights,
        "gradients": gradients,
        "texts": row * (2 + twice * 4) * (1 + PHRASES),
        "tensor": tensor,
    }


def step_seconds(size: str, kind: str, layout: Layout, images: int) -> tuple[float, float]:
    """Compute at the assumed utilisation, and messages at the published rate of the links."""
    chip = CHIPS[kind]
    messages = sum(message_bytes(size, layout, images).values())
    return (
        step_flops(size, layout, images) / (UTILISATION * chip.peak),
        messages / chip.interconnect,
    )


def fits(size: str, kind: str, layout: Layout, images: int) -> bool:
    """Whether the modelled memory is within the chip's, and rows are whole groups of phrases."""
    whole = images % (layout.batch_devices * layout.micro * 8) == 0
    return whole and memory_bytes(size, layout, images) <= CHIPS[kind].memory


def layouts(chips: int, side: int) -> list[Layout]:
    """Those that the tables compare; FSDP over `side` devices, or over all."""
    meshes = [(1, 1), (side, 1), (chips, 1), (min(side, chips // 4), 4)]
    return [
        Layout(chips, fsdp, tensor, remat, micro)
        for (fsdp, tensor), remat, micro in itertools.product(
            meshes, ("none", "dots", "full"), (1, 4, 16)
        )
    ]


def fit_table() -> str:
    """For each layout the largest batch of `BATCHES` that fits."""
    head = [f"{size} {kind} x {chips}" for size in SIZES for kind, chips, _ in SLICES]
    lines = ["| layout | " + " | ".join(head) + " |", "|---|" + "---:|" * len(head)]
    _, chips, side = SLICES[2]
    for number, one in enumerate(layouts(chips, side)):
        cells = []
        for size, (kind, *slice_) in itertools.product(SIZES, SLICES):
            layout = layouts(*slice_)[number]
            found = [images for images in BATCHES if fits(size, kind, layout, images)]
            cells.append(f"{found[-1] // 1024}k" if found else "-")
        name = str(one).replace(f"fsdp {chips}", "fsdp over all").replace(f"fsdp {side}", "fsdp")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def best_table() -> str:
    """For each size, slice and batch the layout of the shortest modelled step."""
    lines = [
        "| size | slice | images | layout | memory GB | TFLOP | received GB | compute ms "
        "| links ms | images/s |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for size, (kind, chips, side), images in itertools.product(SIZES, SLICES, BATCHES):
        rows = [one for one in layouts(chips, side) if fits(size, kind, one, images)]
        if not rows:
            lines.append(f"| {size} | {kind} x {chips} | {images:,} | none fits |" + " |" * 6)
            continue
        # Of equal times the one that needs less memory.
        best = min(
            rows,
            key=lambda one: (
                round(sum(step_seconds(size, kind, one, images)), 6),
                memory_bytes(size, one, images),
            ),
        )
        compute, links = step_seconds(size, kind, best, images)
        cells = [
            f"{memory_bytes(size, best, images) / 1e9:.1f}",
            f"{step_flops(size, best, images) / 1e12:.1f}",
            f"{sum(message_bytes(size, best, images).values()) / 1e9:.2f}",
            f"{1e3 * compute:.0f}",
            f"{1e3 * links:.0f}",
            f"{images / (compute + links):,.0f} to {images / max(compute, links):,.0f}",
        ]
        begin = f"| {size} | {kind} x {chips} | {images:,} | {best} | "
        lines.append(begin + " | ".join(cells) + " |")
    return "\n".join(lines)


def compare(path: pathlib.Path) -> str:
    """The model beside what was compiled."""
    import dry_runs
    from dry_runs_cases import checks, scaling

    results = dry_runs.read(path)
    lines = [
        "| row | memory GB: compiled | model | state GB: compiled | model | TFLOP: compiled "
        "| model | received GB: compiled | model |",
        "|---|" + "---:|" * 8,
    ]
    for case in [*scaling(), *checks()[1:]]:
        if not (row := dry_runs.row_of(case, results)):
            continue
        changes = case.changes
        micro = changes.get("train.micro_batch", 0)
        images = changes["data.batch_size"]
        layout = Layout(
            round(row["devices"]),
            changes.get("mesh.fsdp", 1),
            changes.get("mesh.tensor", 1),
            changes.get("model.remat", "none"),
            images // micro if micro else 1,
        )
        size = changes["model.preset"]
        pairs = [
            (row["needed"], memory_bytes(size, layout, images), 1e9),
            (row["state"], state_bytes(size, layout), 1e9),
            (row["flops"], step_flops(size, layout, images), 1e12),
            (sum(row["received"].values()), sum(message_bytes(size, layout, images).values()), 1e9),
        ]
        cells = " | ".join(f"{a / unit:.2f} | {b / unit:.2f}" for a, b, unit in pairs)
        lines.append(f"| {case.title}, {case.topology}, {images:,} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Does what the arguments say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=["fit", "best", "compare"])
    parser.add_argument("--results", type=pathlib.Path, help="of benchmarks/dry_runs.py")
    options = parser.parse_args()
    if options.table == "compare":
        print(compare(options.results))
    else:
        print({"fit": fit_table, "best": best_table}[options.table]())


if __name__ == "__main__":
    main()

"""Training PACL's embedder from pixels and from stored outputs of the frozen towers, side by side.

    python benchmarks/tower_store.py
    python benchmarks/tower_store.py --sizes clip-B/16 --images 256 --batch_size 64 --dtype bfloat16

Towers have random weights, images are JPEGs of 256 x 256 made here. Both train for an epoch in
turn, data pipeline included, so that whatever else the machine does falls on both alike; the
medians of the epochs are compared, and those of the processor's time, which depends less on what
else the machine does. `storing` is everything before the first batch from the store,
compilation included, and `pays after` the epochs that make up for it. Prints a table.
"""

import argparse
import io
import os
import statistics
import tarfile
import tempfile
import time

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from ccl_jax.data.pipeline import TrainingBatches
from ccl_jax.data.sources import open_source
from ccl_jax.data.text import Tokenizer
from ccl_jax.training import config as configs
from ccl_jax.training import tower_storing
from ccl_jax.training.sharding import create_mesh, to_devices
from ccl_jax.training.step import create_trainer

# Preset -> images and batch size that two CPU cores get through in minutes.
SIZES = {"tiny": (1024, 64), "clip-B/16": (32, 8)}
_WORDS = "a the one two red green blue cat dog bird on under near of with tree house road".split()


def write_images(path: str, count: int) -> None:
    """A WebDataset tar of smooth noise, which JPEG packs as it packs photographs."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for index in range(count):
            noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            file = io.BytesIO()
            noise.resize((256, 256), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
            caption = " ".join(rng.choice(_WORDS, 10)).encode()
            for name, data in ((f"{index:06}.jpg", file.getvalue()), (f"{index:06}.txt", caption)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def make_config(size: str, path: str, batch_size: int, options: argparse.Namespace) -> ConfigDict:
    """PACL on frozen towers of a preset."""
    config = configs.default_config()
    with config.unlocked():
        config.objective = {"pacl": {"weight": 1.0}}
        config.data.source = {"kind": "webdataset", "path": path}
    config.model.preset = size
    config.model.patch_embedder = True
    config.model.dtype = options.dtype
    config.optimizer.frozen = "towers"
    config.data.batch_size = batch_size
    config.data.transform = "center_crop"
    config.tower_store.dtype = options.store_dtype
    config.tower_store.batch_size = batch_size
    return config


class Run:
    """Training from pixels, or from a store if `folder` is given."""

    def __init__(self, config: ConfigDict, folder: str):
        self.config = config.copy_and_resolve_references()
        self.config.tower_store.folder = folder
        source = open_source(**config.data.source)
        tokenizer = Tokenizer.train([" ".join(_WORDS)], 400)
        self.mesh = create_mesh()
        self.trainer = create_trainer(self.config, self.mesh, eot_id=tokenizer.eot_id)
        self.state = self.trainer.init()
        parts = (source, tokenizer, configs.pipeline_options(self.config))
        start = time.perf_counter()
        if folder:
            self.batches = tower_storing.stored_batches(
                self.config, self.trainer.model, self.state.params, *parts
            )
        else:
            self.batches = TrainingBatches(*parts)
        self.preparation = time.perf_counter() - start
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []

    def epoch(self, number: int, steps: int) -> None:
        """Trains for an epoch and notes its time; the first compiles and does not count."""
        start, cpu_start = time.perf_counter(), time.process_time()
        stream = self.batches.batches(number * steps, (number + 1) * steps)
        for batch in to_devices(stream, self.mesh):
            self.state, metrics = self.trainer.step(self.state, batch)
        jax.block_until_ready(metrics)
        if number:
            self.seconds.append(time.perf_counter() - start)
            self.cpu_seconds.append(time.process_time() - cpu_start)


def measure(size: str, options: argparse.Namespace) -> list[str]:
    """A row of the table."""
    images, batch_size = SIZES[size]
    images, batch_size = options.images or images, options.batch_size or batch_size
    steps = images // batch_size
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path, store = os.path.join(folder, "images.tar"), os.path.join(folder, "store")
        write_images(path, images)
        config = make_config(size, path, batch_size, options)
        runs = {"pixels": Run(config, ""), "store": Run(config, store)}
        for number in range(options.rounds + 1):
            for run in runs.values():
                run.epoch(number, steps)
        stored = sum(entry.stat().st_size for entry in os.scandir(store))
    pixels, fast = (statistics.median(run.seconds) for run in runs.values())
    cpu = [statistics.median(run.cpu_seconds) for run in runs.values()]
    storing = runs["store"].preparation
    seen = steps * batch_size
    return [
        size,
        f"{images:,}",
        str(batch_size),
        f"{pixels:.3f} s",
        f"{seen / pixels:,.1f}",
        f"{fast:.3f} s",
        f"{seen / fast:,.1f}",
        f"{pixels / fast:.1f} x",
        f"{cpu[0]:.2f} / {cpu[1]:.2f} s",
        f"{storing:.1f} s",
        f"{storing / (pixels - fast):.1f}" if pixels > fast else "never",
        f"{stored / images:,.0f}",
    ]


def main(arguments: list[str] | None = None) -> list[list[str]]:
    """Measures what the flags say and prints the table; returns its rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sizes", default=",".join(SIZES), help=f"of {', '.join(SIZES)}, with commas")
    add("--images", type=int, help="in the data set")
    add("--batch_size", type=int, help="a multiple of 8 for each device")
    add("--rounds", type=int, default=5, help="epochs of each that count")
    add("--dtype", default="float32", help="of the computation")
    add("--store_dtype", default="bfloat16", help="of stored patch tokens")
    add("--folder", help="where data and store are made for the time of the run")
    options = parser.parse_args(arguments)
    sizes = options.sizes.split(",")
    if unknown := set(sizes) - set(SIZES):
        parser.error(f"--sizes: no {', '.join(sorted(unknown))}; choose from {', '.join(SIZES)}")
    rows = [measure(size, options) for size in sizes]
    title = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
    print(f"\n{title}, jax {jax.__version__}, computed in {options.dtype}\n")
    print(
        "| towers | images | batch | epoch, pixels | images/s | epoch, store | images/s | ratio | "
        "CPU time | storing | pays after, epochs | bytes an image |"
    )
    print("|---" * 12 + "|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    return rows


if __name__ == "__main__":
    main()

"""Images a second of one core, from files to batches, against a plain loop over Pillow.

    python benchmarks/input_pipeline.py --tar ../shared/data/coco_sugarcrepe_s224.tar
    python benchmarks/input_pipeline.py --sides 224,448 --rounds 9 --core 1 --tensorflow
    python benchmarks/input_pipeline.py --prepared                # also from prepared records
    python benchmarks/input_pipeline.py --threads 1,2,4           # scaling, on all cores

The photographs of the tar are brought to each short side (larger ones are four photographs side
by side, so that they have a photograph's detail), written to tars, and read back. Candidates take
turns, each in one thread on one core; a figure is the median over the rounds of images by the
seconds of processor time, so that what else the machine does counts little. The differences are
those of the pixels from the loop's, with the same crops.

| candidate | work |
|---|---|
| Pillow loop | read, decode, RandomResizedCrop, bicubic with antialiasing |
| images | the same in the pipeline |
| + tokens | and a caption tokenised, new to the tokenizer |
| + phrases, given | and the record's phrases packed and tokenised |
| + phrases, extracted | and phrases extracted from captions not met before |
| + phrases, again | the same captions in a later epoch: from the cache |
| TensorFlow | decode_and_crop_jpeg and resize in tf.data, files in memory |
"""

import argparse
import dataclasses
import io
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from ccl_jax.data import images, packing
from ccl_jax.data.concepts import extract_phrases
from ccl_jax.data.pipeline import PipelineOptions, TrainingBatches
from ccl_jax.data.records import Source
from ccl_jax.data.sources import open_source
from ccl_jax.data.text import Tokenizer

SCALE, RATIO = (0.9, 1.0), (3 / 4, 4 / 3)
_DEFAULT_TAR = pathlib.Path(__file__).parents[2] / "shared" / "data" / "coco_sugarcrepe_s224.tar"


class NoTokens:
    """In place of a tokenizer, to leave its work out."""

    pad_id = eot_id = 0

    def __call__(self, texts: Sequence[str], length: int) -> np.ndarray:
        return np.zeros((len(texts), length), np.int32)


class WithPhrases:
    """A source whose records bring their phrases, or none to be extracted."""

    def __init__(self, source: Source, given: bool):
        self.source, self.name = source, source.name
        self.phrases = [
            tuple(map(extract_phrases, source[index].captions)) if given else None
            for index in range(len(source))
        ]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int):
        return dataclasses.replace(self.source[index], phrases=self.phrases[index])


def make_tar(path: str, originals: Source, side: int, count: int) -> None:
    """Writes `count` JPEGs of a short side, with the captions of the originals."""
    indices = itertools.cycle(range(len(originals)))
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            records = [originals[index] for index in itertools.islice(indices, 1)]
            picture = images.decode_image(records[0].image, "original")
            if side > min(picture.size):
                records += [originals[index] for index in itertools.islice(indices, 3)]
                picture = _tiled([images.decode_image(r.image, "original") for r in records])
            if min(picture.size) == side and len(records) == 1:
                data = records[0].image
            else:
                factor = side / min(picture.size)
                shape = [max(side, round(length * factor)) for length in picture.size]
                file = io.BytesIO()
                picture.resize(shape, Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
                data = file.getvalue()
            fields = json.dumps({"captions": records[0].captions}).encode()
            for name, content in ((f"{number:05}.jpg", data), (f"{number:05}.json", fields)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _tiled(four: Sequence[Image.Image]) -> Image.Image:
    width, height = (min(one.size[axis] for one in four) for axis in (0, 1))
    page = Image.new("RGB", (2 * width, 2 * height))
    for place, one in enumerate(four):
        corner = (place % 2 * width, place // 2 * height)
        page.paste(one.crop((0, 0, width, height)), corner)
    return page


def pillow_loop(source: Source, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """What one writes without a library: no draft decoding, Pillow's own resampling."""
    found = []
    for index in range(len(source)):
        image = Image.open(io.BytesIO(source[index].image)).convert("RGB")
        box = images._draw_box(*image.size, rng, SCALE, RATIO)
        square = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
        found.append(np.asarray(square))
    return found


def tensorflow_loop(source: Source, size: int, method: str) -> Callable[[], None]:
    """The same by TensorFlow's operations in tf.data, without the reading, in one thread."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    rng = np.random.default_rng(0)
    files = [source[index].image for index in range(len(source))]
    windows = []
    for data in files:
        width, height = Image.open(io.BytesIO(data)).size
        left, top, right, bottom = images._draw_box(width, height, rng, SCALE, RATIO)
        windows.append((top, left, bottom - top, right - left))

    def square(data, window):
        part = tf.image.decode_and_crop_jpeg(data, window, 3, dct_method="INTEGER_ACCURATE")
        part = tf.image.resize(part, (size, size), method, antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(part), 0, 255), tf.uint8)

    dataset = tf.data.Dataset.from_tensor_slices((files, np.array(windows, np.int32)))
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    dataset = dataset.map(square).batch(32).with_options(options)

    def run():
        for _ in dataset.as_numpy_iterator():
            pass

    return run


def pipeline(source: Source, size: int, tokenizer, phrases: bool, threads: int = 1):
    """One epoch through the pipeline, as training reads it."""
    options = PipelineOptions(
        batch_size=len(source),
        image_size=size,
        text_length=64,
        phrases_per_image=4.0 if phrases else 0.0,
        crop_scale=SCALE,
        workers=threads,
    )
    batches = TrainingBatches(source, tokenizer, options)

    def run():
        for _ in batches.batches(0, 1):
            pass

    return run


def forget(tokenizer: Tokenizer) -> None:
    """Empties the caches of tokens and phrases: captions are new again."""
    tokenizer._encode.cache_clear()
    packing._extracted.cache_clear()


def cold(run: Callable[[], None], tokenizer: Tokenizer) -> Callable[[], None]:
    """Runs with empty caches."""

    def begin():
        forget(tokenizer)
        run()

    return begin


def candidates(source: Source, options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Name -> a pass over the source."""
    size = options.size
    captions = [text for index in range(len(source)) for text in source[index].captions]
    tokenizer = Tokenizer.train(captions, 8_192)
    given, bare = WithPhrases(source, True), WithPhrases(source, False)
    found = {
        "Pillow loop": lambda: pillow_loop(source, size, np.random.default_rng(0)),
        "images": pipeline(source, size, NoTokens(), False),
        "+ tokens": cold(pipeline(source, size, tokenizer, False), tokenizer),
        "+ phrases, given": cold(pipeline(given, size, tokenizer, True), tokenizer),
        "+ phrases, extracted": cold(pipeline(bare, size, tokenizer, True), tokenizer),
        "+ phrases, again": pipeline(bare, size, tokenizer, True),
    }
    if options.tensorflow:
        for method in ("bicubic", "bilinear"):
            found[f"TensorFlow, {method}"] = tensorflow_loop(source, size, method)
    return found


def rates(source: Source, options: argparse.Namespace) -> list[dict]:
    """Images a second of processor time, of every candidate."""
    runs = candidates(source, options)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(options.rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if round_:  # the first warms up
                seconds[name].append(time.process_time() - start)
    first = seconds["Pillow loop"]
    return [
        {
            "candidate": name,
            "images_per_second": len(source) / statistics.median(spent),
            "times_the_loop": statistics.median(a / b for a, b in zip(first, spent, strict=True)),
        }
        for name, spent in seconds.items()
    ]


def difference(source: Source, size: int) -> dict[str, float]:
    """How far the pipeline's pixels are from those of the loop."""
    expected = pillow_loop(source, size, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    found = [
        images.transform_image(
            source[index].image,
            "image",
            size=size,
            transform="random_resized_crop",
            rng=rng,
            scale=SCALE,
        )
        for index in range(len(source))
    ]
    apart = np.abs(np.stack(found).astype(int) - np.stack(expected).astype(int))
    return {
        "mean": float(apart.mean()),
        "over_1": float((apart > 1).mean()),
        "most": int(apart.max()),
    }


def print_rates(title: str, rows: list[dict], apart: dict[str, float]) -> None:
    """A table in Markdown."""
    print(f"\n{title}\n\n| | images/s of a core | times the loop |\n|---|---:|---:|")
    for row in rows:
        rate = row["images_per_second"]
        print(f"| {row['candidate']} | {rate:,.0f} | {row['times_the_loop']:.2f} |")
    print(
        f"\nPixels: {apart['mean']:.3f} levels of 255 from the loop's on average, "
        f"{apart['over_1']:.3%} further than 1, {apart['most']} at most."
    )


def scaling(source: Source, options: argparse.Namespace) -> list[dict]:
    """Images a second by the clock, with several threads, phrases extracted anew."""
    captions = [text for index in range(len(source)) for text in source[index].captions]
    tokenizer = Tokenizer.train(captions, 8_192)
    runs = {
        threads: cold(pipeline(source, options.size, tokenizer, True, threads), tokenizer)
        for threads in options.threads
    }
    seconds: dict[int, list[float]] = {threads: [] for threads in runs}
    for round_ in range(options.rounds + 1):
        for threads, run in runs.items():
            start = time.perf_counter()
            run()
            if round_:
                seconds[threads].append(time.perf_counter() - start)
    print("\n| threads | images/s |\n|---:|---:|")
    rows = []
    for threads, spent in seconds.items():
        rate = len(source) / statistics.median(spent)
        print(f"| {threads} | {rate:,.0f} |")
        rows.append({"threads": threads, "images_per_second": rate})
    return rows


def prepare(tar: str, folder: str) -> Source:
    """The tar as prepared records."""
    command = [sys.executable, "-m", "ccl_jax.tools.prepare", "--input", tar, "--output", folder]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return open_source("prepared", path=folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tar", default=str(_DEFAULT_TAR), help="WebDataset tar of JPEGs with captions")
    add("--sides", default="224,448", help="short sides of the files, with commas")
    add("--size", type=int, default=224, help="side of the images in the batch")
    add("--images", type=int, default=160, help="of each short side; a multiple of 8")
    add("--rounds", type=int, default=7)
    add("--core", type=int, help="run on this core alone")
    add("--tensorflow", action="store_true", help="time TensorFlow's operations, too")
    add("--prepared", action="store_true", help="read prepared records, too")
    add("--threads", help="only time the pipeline with these numbers of threads: 1,2,4")
    add("--out", type=pathlib.Path, help="JSON file for the figures")
    return parser


def main(arguments: list[str] | None = None) -> list[dict]:
    """Does what the flags say; returns the rows of the tables."""
    options = _parser().parse_args(arguments)
    options.threads = [int(word) for word in (options.threads or "").split(",") if word]
    if options.core is not None and not options.threads:
        os.sched_setaffinity(0, {options.core})
    originals = open_source("webdataset", path=options.tar)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for side in map(int, options.sides.split(",")):
            tar = os.path.join(folder, f"side{side}.tar")
            make_tar(tar, originals, side, options.images)
            sources = {"a tar": open_source("webdataset", path=tar)}
            if options.prepared:
                sources["prepared records"] = prepare(tar, os.path.join(folder, f"set{side}"))
            for name, source in sources.items():
                if options.threads:
                    found, apart = scaling(source, options), {}
                else:
                    found, apart = rates(source, options), difference(source, options.size)
                    title = f"JPEGs of short side {side} from {name}, to {options.size}"
                    print_rates(title, found, apart)
                rows += [{"side": side, "source": name, **row, **apart} for row in found]
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return rows


if __name__ == "__main__":
    main()

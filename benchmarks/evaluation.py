"""Speed of evaluation: retrieval at the size of COCO's test split, and embeddings per second.

    python benchmarks/evaluation.py retrieval [--images 5000] [--captions 5] [--width 512]
    python benchmarks/evaluation.py embeddings [--preset B/16] [--images 64] [--rounds 3]

`retrieval` times ranks in both directions over random embeddings and prints the greatest resident
memory of the process. `embeddings` lets the bare compiled forward pass, the predictor over pixels,
and the whole way from JPEG files take turns on the same images.
"""

import io
import resource
import statistics
import time

import numpy as np
from absl import app, flags

_IMAGES = flags.DEFINE_integer("images", 0, "Images; 0 for 5,000 or, of embeddings, 64.")
_CAPTIONS = flags.DEFINE_integer("captions", 5, "Captions of an image.")
_WIDTH = flags.DEFINE_integer("width", 512, "Of the embeddings in retrieval.")
_PRESET = flags.DEFINE_string("preset", "B/16", "Model of embeddings.")
_BATCH = flags.DEFINE_integer("batch_size", 32, "Images in a batch of embeddings.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds.")


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _resident_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def retrieval(images: int) -> None:
    """Ranks of images and captions that resemble each other a little, as a model's do."""
    from ccl_jax.evaluation.retrieval import retrieval_ranks

    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(images), _CAPTIONS.value)
    # All vectors share a direction, as those of trained towers do.
    common = rng.normal(size=(1, _WIDTH.value))
    image_emb = _unit(common + rng.normal(size=(images, _WIDTH.value)))
    noise = rng.normal(size=(len(owner), _WIDTH.value))
    text_emb = _unit(common + 0.25 * image_emb[owner] * _WIDTH.value**0.5 + noise)
    before, seconds, processor = _resident_mb(), [], []
    for _ in range(_ROUNDS.value):
        start = time.perf_counter(), time.process_time()
        ranks = retrieval_ranks(image_emb, text_emb, owner)
        seconds.append(time.perf_counter() - start[0])
        processor.append(time.process_time() - start[1])
    recalls = ", ".join(f"{100 * np.mean(rank < 1):.1f}" for rank in ranks)
    print(
        f"{images:,} images x {len(owner):,} captions x {_WIDTH.value}: median "
        f"{statistics.median(seconds):.2f} s of {', '.join(f'{s:.2f}' for s in seconds)} "
        f"({statistics.median(processor):.2f} s of processor time); "
        f"recall@1 {recalls}; resident {_resident_mb():.0f} MB, {before:.0f} MB before"
    )


def _jpegs(count: int) -> list[bytes]:
    """Smooth random pictures of 640 x 480, as large as those of COCO."""
    from PIL import Image

    rng = np.random.default_rng(0)
    files = []
    for _ in range(count):
        small = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG")
        files.append(file.getvalue())
    return files


def embeddings(images: int) -> None:
    """Images a second: bare forward pass, predictor, and from JPEG with the cache in memory."""
    import jax
    import jax.numpy as jnp

    from ccl_jax.evaluation.embeddings import Predictor
    from ccl_jax.evaluation.models import EvaluatedModel
    from ccl_jax.evaluation.results import Image
    from ccl_jax.models.presets import build_model
    from ccl_jax.models.two_towers import normalize_image

    model = build_model({"preset": _PRESET.value}, eot_id=2)
    size, batch = model.image["image_size"], _BATCH.value
    texts = jnp.zeros((1, model.text["length"]), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)), texts)["params"]
    predictor = Predictor(model, params, None, batch_size=batch)
    pixels = np.random.default_rng(0).integers(0, 256, (images, size, size, 3), dtype=np.uint8)
    jpegs = _jpegs(images)
    files = [
        Image(f"{i}", f"{i}", lambda data=data: data) for i, data in enumerate(jpegs)
    ]  # fmt: skip

    @jax.jit
    def bare(params, x):
        x = normalize_image(x, *predictor.normalisation)
        return model.apply({"params": params}, image=x).image

    def run_bare():
        for start in range(0, images, batch):
            bare(params, pixels[start : start + batch]).block_until_ready()

    ways = {
        "bare": run_bare,
        "predictor": lambda: predictor.images(pixels),
        "from JPEG": lambda: EvaluatedModel("m", predictor).images(files),
    }
    rates = {name: [] for name in ways}
    processor = {name: [] for name in ways}
    for round_ in range(_ROUNDS.value + 1):
        for name, way in ways.items():
            start = time.perf_counter(), time.process_time()
            way()
            if round_:  # the first compiles
                rates[name].append(images / (time.perf_counter() - start[0]))
                processor[name].append((time.process_time() - start[1]) / images)
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, {_PRESET.value}, batch {batch}")
    first = statistics.median(rates["bare"])
    for name, values in rates.items():
        median = statistics.median(values)
        cost = 1000 * statistics.median(processor[name])
        print(f"{name:10} {median:8.2f} images/s, {median / first:.3f} of bare; processor time "
              f"{cost:.1f} ms an image")  # fmt: skip


def main(argv):
    """Runs what is named."""
    kinds = {"retrieval": (retrieval, 5_000), "embeddings": (embeddings, 64)}
    if len(argv) != 2 or argv[1] not in kinds:
        raise app.UsageError(f"name one of {', '.join(kinds)}")
    run, images = kinds[argv[1]]
    run(_IMAGES.value or images)


if __name__ == "__main__":
    app.run(main)

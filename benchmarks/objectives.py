"""Time of a training step under each objective of the quickstart, side by side.

    python benchmarks/objectives.py [--rounds 20] [--batch_size 64] [--objectives siglip,ccl]

Steps of the objectives take turns on the same random batch, so that whatever else the machine
does falls on all of them alike. Prints the median milliseconds and the ratio to the first.
"""

import importlib.util
import pathlib
import statistics
import time

import jax
import numpy as np
from absl import app, flags

from ccl_jax.training.config import pipeline_options
from ccl_jax.training.sharding import create_mesh, sharded
from ccl_jax.training.step import create_trainer

_ROUNDS = flags.DEFINE_integer("rounds", 20, "Rounds; each objective takes five steps in one.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images in a batch.")
_OBJECTIVES = flags.DEFINE_list("objectives", ["siglip", "ccl", "pacl"], "Variants to compare.")
_STEPS = 5


def _quickstart(variant: str):
    path = pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py"
    spec = importlib.util.spec_from_file_location("quickstart", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


def _random_batch(options) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    images, size = options.batch_size, options.image_size
    phrases = images // options.phrase_group * options.group_phrases
    return {
        "image": rng.integers(0, 256, (images, size, size, 3), dtype=np.uint8),
        "text": rng.integers(0, 64, (images, options.text_length), dtype=np.int32),
        "sample_id": np.arange(images, dtype=np.int32),
        "phrase_text": rng.integers(0, 64, (phrases, options.phrase_length), dtype=np.int32),
        "phrase_image": np.sort(rng.integers(0, images, phrases)).astype(np.int32),
    }


def main(_):
    """Compiles every objective, then lets them take turns."""
    mesh = create_mesh()
    runs = {}
    for name in _OBJECTIVES.value:
        config = _quickstart(name)
        config.data.batch_size = _BATCH_SIZE.value
        trainer = create_trainer(config, mesh, eot_id=2)
        # The objective's own batch: without phrases where it reads none.
        options = pipeline_options(config)
        batch = _random_batch(options)
        if not options.group_phrases:
            del batch["phrase_text"], batch["phrase_image"]
        runs[name] = [trainer, trainer.init(), jax.device_put(batch, sharded(mesh)), []]
    for round_ in range(_ROUNDS.value + 1):
        for run in runs.values():
            trainer, state, batch, seconds = run
            start = time.perf_counter()
            for _ in range(_STEPS):
                state, metrics = trainer.step(state, batch)
            jax.block_until_ready(metrics)
            run[1] = state
            if round_:  # the first compiles
                seconds.append((time.perf_counter() - start) / _STEPS)
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, batch {_BATCH_SIZE.value}")
    first = None
    for name, (*_, seconds) in runs.items():
        median = statistics.median(seconds)
        first = first or median
        print(f"{name:8} {1000 * median:7.1f} ms  {median / first:.2f} x")


if __name__ == "__main__":
    app.run(main)

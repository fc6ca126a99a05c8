"""Reads one epoch as a training run does, and goes on where it stopped when it is run again.

    python killed_reader.py WORKDIR IDS_PER_LINE TAR...

Appends the ids of every batch to WORKDIR/ids.txt, and saves the position every few batches.
"""

import json
import os
import sys

from ccl_jax.data.pipeline import PipelineOptions, TrainingBatches
from ccl_jax.data.position import check_position
from ccl_jax.data.sources.webdataset import WebDatasetSource
from ccl_jax.data.text import Tokenizer

BATCHES_BETWEEN_SAVES = 4


def open_batches(tars, batch_size, groups=None):
    """Small pictures, so that a pass over thousands takes seconds."""
    options = PipelineOptions(
        batch_size=batch_size, image_size=16, text_length=8, phrases_per_image=0, workers=2, seed=5
    )
    tokenizer = Tokenizer.train(["a dog runs on the beach"], 100)
    return TrainingBatches(WebDatasetSource(tars), tokenizer, options, groups=groups)


def main(workdir, batch_size, *tars):
    batches = open_batches(tars, int(batch_size))
    saved, log = os.path.join(workdir, "position.json"), os.path.join(workdir, "ids.txt")
    start = 0
    if os.path.exists(saved):
        with open(saved) as file:
            start = json.load(file)["step"]
        check_position(saved, batches.position(start))
    # Batches after the last save are read again, as the steps after a checkpoint are.
    lines = open(log).readlines()[:start] if os.path.exists(log) else []
    with open(log + ".partial", "w") as file:
        file.writelines(lines)
    os.replace(log + ".partial", log)
    steps = len(batches.source) // int(batch_size)
    with open(log, "a") as file:
        for step, batch in enumerate(batches.batches(start, steps), start + 1):
            file.write(" ".join(map(str, batch["sample_id"])) + "\n")
            file.flush()
            if step % BATCHES_BETWEEN_SAVES == 0:
                batches.position(step).save(saved)


if __name__ == "__main__":
    main(*sys.argv[1:])

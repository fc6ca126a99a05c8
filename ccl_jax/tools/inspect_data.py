"""Shows what a config's training data looks like to the model, before a run is spent on it.

    python -m ccl_jax.tools.inspect_data --config configs/finetune_webdataset.py --output DIR

Prints shapes, statistics of images, captions and phrases, throughput and the reasons for skipped
records. With --output also writes batch.png (a batch with captions and phrases), inspection.json
and skipped_records.jsonl there.
"""

import json
import os
import sys
import tempfile

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, as of ccl_jax.main.")
_RUN = flags.DEFINE_string("run", None, "Which run, where the config holds several; the first.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the picture and the findings.")
_BATCHES = flags.DEFINE_integer("batches", 8, "Batches to read.", lower_bound=1)
_IMAGES = flags.DEFINE_integer("images", 24, "Images in the picture.", lower_bound=1)


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; flags begin with --")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # of its drivers for other machines
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # libraries tell much at INFO
    # Imported late, so that --help answers at once.
    from ccl_jax.data import inspection

    try:
        found, samples = inspection.inspect(_open_batches(), _BATCHES.value)
    except ValueError as error:
        sys.exit(f"ccl_jax: {' '.join(str(error).split())}")
    print(inspection.describe(found))
    if _OUTPUT.value:
        picture = os.path.join(_OUTPUT.value, "batch.png")
        inspection.draw_samples(samples[: _IMAGES.value], picture)
        with open(os.path.join(_OUTPUT.value, "inspection.json"), "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)
        print(f"\nPicture: {picture}")


def _open_batches():
    from ccl_jax.data.pipeline import TrainingBatches
    from ccl_jax.data.sources import open_source
    from ccl_jax.training import config as configs
    from ccl_jax.training import pretrained

    runs = configs.run_configs(_CONFIG.value)
    name = next(iter(runs)) if _RUN.value is None else _RUN.value
    if name not in runs:
        raise ValueError(f"--run {name}: the config has no such run; {configs.nearest(name, runs)}")
    with tempfile.TemporaryDirectory() as folder:
        config = pretrained.settle(runs[name], folder)
        configs.check_config(config)
        source = open_source(**config.data.source)
        tokenizer = pretrained.run_tokenizer(config, source, folder)
    path = None
    if _OUTPUT.value:
        os.makedirs(_OUTPUT.value, exist_ok=True)
        path = os.path.join(_OUTPUT.value, "skipped_records.jsonl")
    options = configs.pipeline_options(config)
    return TrainingBatches(source, tokenizer, options, skipped_path=path)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(_main)

"""Embeds the images and captions of any source, as files for others to use.

    python -m ccl_jax.tools.embed --model MODEL --source 'train-{000..099}.tar' --output DIR

MODEL is a workdir, a Hugging Face or OpenCLIP folder, or a hub name. The same command again
continues an interrupted one.
"""

import os
import sys

from absl import app, flags, logging

_MODEL = flags.DEFINE_string("model", None, "Workdir, folder or hub name.", required=True)
_SOURCE = flags.DEFINE_string(
    "source", None, "Path of tars, or kind=...,option=... as for other sources.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the embeddings.", required=True)
_WHAT = flags.DEFINE_list("what", ["image", "text"], "image, text or both.")
_FORMAT = flags.DEFINE_enum("format", "parquet", ["parquet", "npy"], "Format of the files.")
_ROWS = flags.DEFINE_enum("rows", "float32", ["float32", "float16"], "Type of the rows.")
_SHARD = flags.DEFINE_integer("shard_size", 10_000, "Records in a file.", lower_bound=1)
_LIMIT = flags.DEFINE_integer("limit", None, "Only the first records.", lower_bound=1)
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Folder or file, in place of the model's own.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
_BATCH = flags.DEFINE_integer("batch_size", 0, "0 for one that suits the devices.", lower_bound=0)


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; flags begin with --")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    # Imported late, so that --help answers at once.
    from ccl_jax.data.sources import open_source, parse_source
    from ccl_jax.evaluation.exporting import Job, write_embeddings
    from ccl_jax.training.serving import open_model

    try:
        job = Job(tuple(_WHAT.value), _FORMAT.value, _SHARD.value, _ROWS.value, _LIMIT.value)
        source = open_source(**parse_source(_SOURCE.value))
        predictor = open_model(
            _MODEL.value,
            tokenizer=_TOKENIZER.value,
            dtype=_DTYPE.value,
            batch_size=_BATCH.value,
        )
        done = write_embeddings(
            predictor, source, _OUTPUT.value, job, described={"source": _SOURCE.value}
        )
    except ValueError as error:
        sys.exit(f"ccl_jax: {' '.join(str(error).split())}")
    rows = ", ".join(f"{count:,} {kind}s" for kind, count in done["rows"].items())
    print(f"{rows} in {done['shards']} shards in {_OUTPUT.value}; {len(done['skipped'])} skipped")


if __name__ == "__main__":
    app.run(_main)

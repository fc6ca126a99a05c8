r"""Writes any source, or a table of image URLs, as sharded records in the layout of TFDS.

    python -m ccl_jax.tools.prepare --input 'train-{000..099}.tar' --output DIR --resize 256
    python -m ccl_jax.tools.prepare --download Train_GCC-training.tsv --output DIR
    python -m ccl_jax.tools.prepare --verify --output DIR

The same command goes on where a killed one stopped. Records that cannot be used are named in
DIR/skipped-SPLIT.csv, and counted by reason in DIR/skipped-SPLIT.json.
"""

import sys

from absl import app, flags

flags.DEFINE_string("input", None, "Tars, kind=KIND,path=PATH,... or a JSON object.")
flags.DEFINE_string("download", None, "Table of URLs: CSV, TSV, JSON lines, Parquet.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the set.", required=True)
_SPLIT = flags.DEFINE_string("split", "train", "Name of the split that is written.")
flags.DEFINE_enum(
    "format", "array_record", ["array_record", "tfrecord"], "Files: ArrayRecord or TFRecord."
)
flags.DEFINE_integer("shards", 0, "How many files; 0 chooses by the number of records.")
flags.DEFINE_integer("resize", None, "Scale larger images to this short side in pixels.")
flags.DEFINE_integer("quality", 92, "Of the JPEGs that --resize writes; 4:4:4 from 90.")
flags.DEFINE_bool("check_images", True, "Decode every image, leave out the unreadable.")
flags.DEFINE_float(
    "max_bad_share", None, "Stop above this share of unusable records; 0.05, downloads 1.0."
)
_WORKERS = flags.DEFINE_integer("workers", None, "Processes (threads of a download); all cores.")
_RUNNER = flags.DEFINE_string("runner", "local", "Or of Beam: DirectRunner, DataflowRunner, ...")
_BEAM = flags.DEFINE_multi_string("beam_option", [], "As in --beam_option=--project=x; repeat.")
_VERIFY = flags.DEFINE_bool("verify", False, "Only compare a prepared split with its manifest.")
flags.DEFINE_list("columns", None, "Of a --download table without header, in order.")
flags.DEFINE_string("url_column", None, "Column of URLs; found by usual names.")
flags.DEFINE_string("caption_column", None, "Column of captions; likewise.")
flags.DEFINE_integer("connections", 64, "Open at a time.")
flags.DEFINE_integer("per_host", 4, "Connections to one host.")
flags.DEFINE_integer("retries", 2, "Further tries where a failure may pass.")
flags.DEFINE_float("timeout", 15.0, "Seconds of one try.")
flags.DEFINE_float("deadline", 60.0, "Seconds of all tries for an image.")
flags.DEFINE_float("max_megabytes", 20.0, "Give up larger images.")
flags.DEFINE_bool("allow_private", False, "Fetch from private addresses too.")
flags.DEFINE_string("user_agent", None, "Sent with requests; name yourself here.")


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; flags begin with --")
    # Imported late, so that --help answers at once.
    from ccl_jax.data import preparing, verifying
    from ccl_jax.data.sources import parse_source

    try:
        if _VERIFY.value:
            manifest = verifying.verify(_OUTPUT.value, _SPLIT.value, workers=_WORKERS.value)
        else:
            manifest = preparing.prepare(
                preparing.settings_from(flags.FLAGS.flag_values_dict(), parse_source),
                runner=_RUNNER.value,
                workers=_WORKERS.value,
                options=_BEAM.value,
            )
    except (ValueError, OSError) as error:
        sys.exit(f"ccl_jax: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit("ccl_jax: stopped; the same command goes on from here")
    print(preparing.describe(manifest, _OUTPUT.value))


if __name__ == "__main__":
    app.run(_main)

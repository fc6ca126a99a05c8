"""Adds noun phrases to the captions of a source.

    python -m ccl_jax.tools.concepts --input "train-{000..099}.tar" --output DIR

On all cores; run again, it goes on where it stopped. DIR gets WebDataset tars with the images, or
with `--format jsonl` a table of phrases alone, for {"kind": "phrases", "source": ..., "path": DIR}.
"""

import json
import os
import sys

from absl import app, flags, logging

_INPUT = flags.DEFINE_string(
    "input",
    None,
    "What to read: the path of tars or of a table (globs and {000..099} as well), "
    'kind=...,option=..., or JSON {"kind": ...}; the kinds are those of config.data.source.',
    required=True,
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write into.", required=True)
_FORMAT = flags.DEFINE_enum("format", "tar", ["tar", "jsonl"], "Tars with images, or a table.")
_EXTRACTOR = flags.DEFINE_string(
    "extractor", "auto", "embedded, spacy, llm, or auto: spaCy if it has a pipeline, else embedded."
)
_OPTIONS = flags.DEFINE_string(
    "extractor_options", "{}", 'JSON, as in {"model": "Qwen/Qwen2.5-1.5B-Instruct"} for llm.'
)
_SHARDS = flags.DEFINE_integer("shards", 0, "Files to write; 0 for one per 500 to 10,000 images.")
_WORKERS = flags.DEFINE_integer("workers", None, "Processes; one a core, and for llm one in all.")
_RUNNER = flags.DEFINE_string("runner", "local", "Or of Beam: DirectRunner, DataflowRunner, ...")
_BEAM = flags.DEFINE_multi_string("beam_option", [], "As in --beam_option=--project=x; repeat.")
_MAX_BAD_SHARE = flags.DEFINE_float("max_bad_share", 0.05, "Unusable records before it stops.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 768, "Images in the batch of the summary.")
_PHRASES_PER_IMAGE = flags.DEFINE_float("phrases_per_image", 4.0, "Budget in the summary.")


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; flags begin with --")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # of its drivers for other machines
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # libraries tell much at INFO
    # Imported late, so that --help answers at once.
    from ccl_jax.data.concepts import annotate, statistics
    from ccl_jax.data.sources import parse_source

    try:
        job = annotate.plan(
            parse_source(_INPUT.value),
            _OUTPUT.value,
            extractor=_EXTRACTOR.value,
            options=_json(_OPTIONS.value),
            format=_FORMAT.value,
            shards=_SHARDS.value,
            max_bad_share=_MAX_BAD_SHARE.value,
        )
        workers = _WORKERS.value
        if workers is None and job.extractor["kind"] == "llm":
            workers = 1  # each would load the model
        found = annotate.annotate(job, runner=_RUNNER.value, workers=workers, options=_BEAM.value)
        batch = {"batch_size": _BATCH_SIZE.value, "phrases_per_image": _PHRASES_PER_IMAGE.value}
        summary = statistics.format_statistics(found, **batch)
    except (ValueError, OSError) as error:
        sys.exit(f"ccl_jax: {' '.join(str(error).split())}")
    print(f"{job.output}: {job.shards} files, extractor {job.extractor['kind']}\n{summary}")


def _json(text: str) -> dict:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(f"--extractor_options takes a JSON object, got {text}") from error


if __name__ == "__main__":
    app.run(_main)

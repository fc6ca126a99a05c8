"""Evaluates models on published benchmarks, or a run on the evaluators of its config.

    python -m ccl_jax.tools.evaluate --model A [--model B] --suite standard --data_dir DIR

A and B are workdirs, Hugging Face or OpenCLIP folders, or hub names; later models are compared
with the first. docs/benchmarks.md says what belongs into DIR; what is not there is skipped.

    python -m ccl_jax.tools.evaluate --workdir DIR [--wise_ft 0,0.5,1]

evaluates the latest checkpoint as the run itself did; with --wise_ft, models between the start
of its fine-tuning (0) and its end (1).
"""

import json
import os
import sys

from absl import app, flags, logging

_MODEL = flags.DEFINE_multi_string("model", [], "Model to evaluate; repeat it to compare.")
_SUITE = flags.DEFINE_list("suite", ["standard"], "Suites and benchmarks, by comma.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder with the benchmarks.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the tables; a JSON file with --workdir.")
_CACHE = flags.DEFINE_string(
    "cache_dir", "~/.cache/ccl_jax/embeddings", "Folder that keeps embeddings; empty for none."
)
_TOKENIZER = flags.DEFINE_multi_string("tokenizer", [], "In place of the models' own: one or each.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
_BATCH = flags.DEFINE_integer("batch_size", 0, "0 for one that suits the devices.", lower_bound=0)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run of ccl_jax.main.")
_WISE_FT = flags.DEFINE_list("wise_ft", [], "Shares of the trained weights, as in 0,0.5,1.")


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; flags begin with --")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # of its drivers for other machines
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # libraries tell much at INFO
    try:
        if bool(_MODEL.value) == bool(_WORKDIR.value):
            raise ValueError("give either --model with --data_dir, or --workdir")
        _evaluate_run() if _WORKDIR.value else _evaluate_models()
    except ValueError as error:
        sys.exit(f"ccl_jax: {' '.join(str(error).split())}")


def _evaluate_models() -> None:
    if not _DATA_DIR.value or _WISE_FT.value:
        raise ValueError("--model needs --data_dir, and --wise_ft goes with --workdir")
    from ccl_jax.training import serving  # late, so that --help answers at once

    options = {"dtype": _DTYPE.value, "batch_size": _BATCH.value, "tokenizers": _TOKENIZER.value}
    folders = {"output": _OUTPUT.value, "cache_dir": os.path.expanduser(_CACHE.value) or None}
    print(serving.evaluate(_MODEL.value, _SUITE.value, _DATA_DIR.value, **folders, **options))


def _evaluate_run() -> None:
    from ccl_jax.evaluation import report
    from ccl_jax.training import loop

    results = loop.evaluate(_WORKDIR.value, wise_ft=_shares(_WISE_FT.value))
    print(report.format_table(results))
    if _OUTPUT.value:
        with open(_OUTPUT.value, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)


def _shares(words: list[str]) -> list[float]:
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise ValueError(f"--wise_ft takes numbers, as in 0,0.5,1; got {words}") from error


if __name__ == "__main__":
    app.run(_main)

"""Evaluates the latest checkpoint of a run.

    python -m ccl_jax.tools.evaluate --workdir DIR

With `--wise_ft 0,0.5,1`, models between the start of its fine-tuning (0) and its end (1).
"""

import json
import os
import sys

from absl import app, flags, logging

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run of ccl_jax.main.", required=True)
_WISE_FT = flags.DEFINE_list(
    "wise_ft", [], "Shares of the trained weights, the rest those of config.init_from: 0,0.5,1."
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; flags begin with --")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # of its drivers for other machines
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # libraries tell much at INFO
    # Imported late, so that --help answers at once.
    from ccl_jax.evaluation import report
    from ccl_jax.training import loop

    try:
        results = loop.evaluate(_WORKDIR.value, wise_ft=_shares(_WISE_FT.value))
    except ValueError as error:
        sys.exit(f"ccl_jax: {' '.join(str(error).split())}")
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

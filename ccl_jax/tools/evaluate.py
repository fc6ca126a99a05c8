"""Evaluates the latest checkpoint of a run.

    python -m ccl_jax.tools.evaluate --workdir DIR
"""

import json
import os
import sys

from absl import app, flags, logging

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run of ccl_jax.main.", required=True)
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
        results = loop.evaluate(_WORKDIR.value)
    except ValueError as error:
        sys.exit(f"ccl_jax: {' '.join(str(error).split())}")
    print(report.format_table(results))
    if _OUTPUT.value:
        with open(_OUTPUT.value, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    app.run(_main)

"""Writes report.html from the results of evaluations and the curves of runs.

    python -m ccl_jax.tools.report [--results DIR] [--workdir RUN ...] [--output report.html] \\
        [--data_dir DATA]

DIR is what tools.evaluate wrote with --output. Without it the table shows what the runs' own
evaluators found. DATA holds the benchmarks, for the images of failures. The page is one file, and
needs no network.
"""

import os
import sys

from absl import app, flags, logging

_RESULTS = flags.DEFINE_string("results", None, "Folder or JSON file of tools.evaluate --output.")
_WORKDIR = flags.DEFINE_multi_string("workdir", [], "Run with training curves; repeat it for more.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder with the benchmarks, for images.")
_OUTPUT = flags.DEFINE_string("output", "report.html", "The file to write.")
_TITLE = flags.DEFINE_string("title", "Evaluation", "Heading.")
_MEGABYTES = flags.DEFINE_float("max_mb", 8.0, "About the largest file.", lower_bound=0)


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; flags begin with --")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    # Imported late, so that --help answers at once.
    from ccl_jax.evaluation.html_report import write_report_from_files

    try:
        write_report_from_files(
            _OUTPUT.value,
            _RESULTS.value,
            workdirs=_WORKDIR.value,
            data_dir=_DATA_DIR.value,
            title=_TITLE.value,
            max_bytes=int(1e6 * _MEGABYTES.value),
        )
    except ValueError as error:
        sys.exit(f"ccl_jax: {' '.join(str(error).split())}")
    size = os.path.getsize(_OUTPUT.value)
    print(f"{_OUTPUT.value} ({size / 1e6:.1f} MB)")


if __name__ == "__main__":
    app.run(_main)

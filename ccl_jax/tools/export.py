"""Writes the latest checkpoint of a run as a folder that Hugging Face transformers loads.

python -m ccl_jax.tools.export --workdir DIR --out OUT [--run NAME]
"""

import os
import sys

from absl import app, flags, logging

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run of ccl_jax.main.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder to make.", required=True)
_RUN = flags.DEFINE_string("run", "", "Which run, where the workdir holds several.")


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; flags begin with --")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # of its drivers for other machines
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # libraries tell much; notes are printed below
    # Imported late, so that --help answers at once.
    from ccl_jax.training.export import export

    try:
        exported = export(_WORKDIR.value, _OUT.value, _RUN.value)
    except ValueError as error:
        sys.exit(f"ccl_jax: {' '.join(str(error).split())}")
    for note in exported.notes:
        print(f"Note: {note}")
    print(f"Wrote {_OUT.value}: {exported.architecture}, step {exported.step:,}")
    print("README.md in it is the model card; choose a licence in its first lines.")


if __name__ == "__main__":
    app.run(_main)

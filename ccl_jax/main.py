"""Trains and evaluates what a config describes.

    python -m ccl_jax.main --config configs/quickstart.py --workdir DIR
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with an argument after a colon: configs/quickstart.py:ccl."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for checkpoints, metrics and report; the same again resumes."
)


def _parse_flags(argv: list[str]) -> list[str]:
    flags.mark_flags_as_required(["config", "workdir"])
    flags.FLAGS.set_default("verbosity", logging.WARNING)  # libraries tell much at INFO
    # The config is code: what it raises for a wrong argument or key is the user's to read.
    try:
        return app.parse_flags_with_usage(argv)
    except (ValueError, AttributeError, KeyError, TypeError, OSError) as error:
        sys.exit(f"ccl_jax: {_one_line(error)}")


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; flags begin with --")
    # Imported late, so that --help answers at once.
    from ccl_jax.training import loop

    try:
        loop.run(_CONFIG.value, _WORKDIR.value)
    except ValueError as error:
        sys.exit(f"ccl_jax: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def run() -> None:
    """Entry point."""
    app.run(_main, flags_parser=_parse_flags)


if __name__ == "__main__":
    run()

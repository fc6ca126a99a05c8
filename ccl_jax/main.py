"""Trains and evaluates what a config describes.

python -m ccl_jax.main --config configs/quickstart.py --workdir DIR
"""

import os
import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with an argument after a colon: configs/quickstart.py:ccl."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for checkpoints, metrics and report; the same again resumes."
)

_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0 of several; found by itself on TPU, SLURM, GKE."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes that train together.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def _parse_flags(argv: list[str]) -> list[str]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # of its drivers for other machines
    flags.mark_flags_as_required(["config", "workdir"])
    # The config is code: what it raises for a wrong argument or key is the user's to read.
    try:
        rest = flags.FLAGS(argv)
        _ = _CONFIG.value.seed  # a file that cannot be read shows at the first access
        return rest
    except (AttributeError, KeyError) as error:
        sys.exit(f"ccl_jax: the config has no such field: {_one_line(error)}")
    except OSError as error:
        sys.exit(f"ccl_jax: cannot read the --config file: {_one_line(error)}")
    except (flags.Error, ValueError, TypeError) as error:
        sys.exit(f"ccl_jax: {_one_line(error)}")


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; flags begin with --")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # libraries tell much at INFO
    # Imported late, so that --help answers at once.
    from ccl_jax.training import distributed, loop
    from ccl_jax.training.stopping import EXIT_CODE, Stopped

    try:
        distributed.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        loop.run(_CONFIG.value, _WORKDIR.value)
    except Stopped as stopped:
        distributed.say(f"ccl_jax: {stopped}; the same command continues there")
        sys.exit(EXIT_CODE)
    except ValueError as error:
        sys.exit(f"ccl_jax: {_one_line(error)}")
    except OSError as error:
        sys.exit(f"ccl_jax: cannot read or write: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    # ml_collections quotes the whole traceback of a config's own error: its end says it.
    message = str(error).rsplit("Error: ", 1)[-1]
    return " ".join(message.replace("\\n", " ").split())


if __name__ == "__main__":
    app.run(_main, flags_parser=_parse_flags)

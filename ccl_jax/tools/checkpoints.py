"""Lists, inspects, verifies and removes the checkpoints of a run.

    python -m ccl_jax.tools.checkpoints list --workdir DIR
    python -m ccl_jax.tools.checkpoints inspect --workdir DIR [--step 1000]
    python -m ccl_jax.tools.checkpoints verify --workdir DIR [--step 1000]
    python -m ccl_jax.tools.checkpoints prune --workdir DIR --keep 2 [--dry_run]

Without --step, `inspect` takes the latest and `verify` all. Of several runs in one workdir give
the folder of one.
"""

import sys

from absl import app, flags, logging

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a single run.", required=True)
_STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint.")
_KEEP = flags.DEFINE_integer("keep", None, "Latest checkpoints that prune leaves.", lower_bound=1)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Say what prune would remove, and remove nothing.")
_COMMANDS = ("list", "inspect", "verify", "prune")


def _main(argv: list[str]) -> None:
    if len(argv) != 2 or argv[1] not in _COMMANDS:
        raise app.UsageError(f"give one command: {', '.join(_COMMANDS)}; got {argv[1:]}")
    if argv[1] == "prune" and _KEEP.value is None:
        raise app.UsageError("prune needs --keep")
    logging.set_verbosity(logging.ERROR)
    # Imported late, so that --help answers at once.
    from ccl_jax.training import checkpoint_tools as tools

    try:
        if argv[1] == "list":
            print(tools.overview(_WORKDIR.value))
        elif argv[1] == "inspect":
            print(tools.describe(_WORKDIR.value, _STEP.value))
        elif argv[1] == "prune":
            removed = tools.prune(_WORKDIR.value, _KEEP.value, _DRY_RUN.value)
            verb = "would remove" if _DRY_RUN.value else "removed"
            print(f"{verb} {len(removed)} checkpoints: {', '.join(map(str, removed)) or 'none'}")
        else:
            failed = 0
            for step, message in tools.verify(_WORKDIR.value, _STEP.value):
                print(f"step {step:,}: {message or 'good'}", flush=True)
                failed += bool(message)
            sys.exit(1 if failed else 0)
    except ValueError as error:
        sys.exit(f"ccl_jax: {' '.join(str(error).split())}")


if __name__ == "__main__":
    app.run(_main)

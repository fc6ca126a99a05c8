"""What befell a run, a line each in `WORKDIR/notes.txt`; its report shows them."""

import os
import time

from absl import logging

from ccl_jax.training.distributed import is_first

FILE = "notes.txt"


def add(workdir: str, text: str) -> None:
    """Keeps a line with the date, on the first process.

    Args:
      workdir: of a single run.
      text: one line.
    """
    if not is_first():
        return
    try:
        with open(os.path.join(workdir, FILE), "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
    except OSError as error:  # a full disk, say: what is noted matters more than the note
        logging.warning("cannot write %s: %s", os.path.join(workdir, FILE), error)


def read(workdir: str) -> list[str]:
    """The lines so far, each with its date."""
    path = os.path.join(workdir, FILE)
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        return file.read().splitlines()

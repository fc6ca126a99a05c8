"""Kills a run with SIGKILL at random moments and compares its end with that of an undisturbed one.

    python benchmarks/kills.py --kills 20 --output DIR

A tiny CCL run saves every few steps; every second kill waits for a save to be under way. Each of
them is followed by the same command again. After every kill all complete checkpoints are read
back and compared with the checksums of what was saved, and at the end every array of the last
checkpoint (weights, optimiser state, counters) with that of the undisturbed run, to the bit.
"""

import argparse
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np

from ccl_jax.training import checkpoint_files as files

ROOT = pathlib.Path(__file__).parents[1]


def command(workdir: pathlib.Path, steps: int, every: int) -> list[str]:
    """The run that is killed."""
    return [
        sys.executable, "-m", "ccl_jax.main", "--config", "configs/ccl_siglip_b16_cc3m.py:tiny",
        "--workdir", str(workdir), "--config.model.dtype=float32",
        f"--config.train.steps={steps}", f"--config.train.checkpoint_every={every}",
        "--config.train.keep_checkpoints=3",
    ]  # fmt: skip


def finish(line: list[str], environment: dict[str, str]) -> None:
    """Runs a command to its end.

    Raises:
      RuntimeError: with what it said, if it fails.
    """
    done = subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the run failed: {done.stderr[-2000:]}")


def kill(
    line: list[str],
    environment: dict[str, str],
    workdir: pathlib.Path,
    wait: float,
    saving: bool = False,
) -> dict:
    """Starts the command, and kills it so many seconds after its first step.

    With `saving` it then waits until a save is under way, for 30 s at most.

    Returns:
      Steps of the complete checkpoints, of what was being saved, and of checkpoints that cannot
      be read back as they were saved; `ended` if it was done before.
    """
    process = subprocess.Popen(
        line,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = []
    with process:
        for text in process.stderr:
            said.append(text)
            if "images/s" in text or "compiled in" in text:
                break
        time.sleep(wait)
        deadline = time.monotonic() + 30
        while saving and not _unfinished(workdir) and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        said += process.stderr.readlines()
    code = process.returncode
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the run failed: {''.join(said)[-2000:]}")
    folder = files.checkpoint_folder(str(workdir))
    row = {
        "ended": code == 0,
        "complete": files.complete_steps(folder),
        "saving": _unfinished(workdir),
        "unreadable": [],
    }
    for step in row["complete"]:
        try:
            files.verify(folder, step)
        except ValueError as error:
            row["unreadable"].append(str(error))
    return row


def _unfinished(workdir: pathlib.Path) -> list[str]:
    """Steps of saves that have begun and not ended."""
    folder = files.checkpoint_folder(str(workdir))
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return [name.split(".")[0] for name in names if not name.isdigit()]


def differing(one: pathlib.Path, other: pathlib.Path, step: int) -> tuple[list[str], int]:
    """Names of the arrays in which two runs differ at a step, and how many there are."""
    left, right = (
        files.read_arrays(files.checkpoint_folder(str(folder)), step) for folder in (one, other)
    )
    names = left.keys() | right.keys()
    return [
        name
        for name in sorted(names)
        if name not in left
        or name not in right
        or np.asarray(left[name]).tobytes() != np.asarray(right[name]).tobytes()
    ], len(names)


def main(argv: list[str] | None = None) -> list[dict]:
    """Runs it and prints a line for each kill; exits with 1 if anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2000, help="of the run")
    parser.add_argument("--every", type=int, default=5, help="steps between checkpoints")
    parser.add_argument(
        "--longest", type=float, default=4.0, help="seconds from first step to kill"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for both runs")
    args = parser.parse_args(argv)

    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(args.output / "compiled")}
    whole, killed = args.output / "undisturbed", args.output / "killed"
    finish(command(whole, args.steps, args.every), environment)
    rng, rows = random.Random(args.seed), []
    line = command(killed, args.steps, args.every)
    for number in range(1, args.kills + 1):
        wait = rng.uniform(0, args.longest)
        rows.append(kill(line, environment, killed, wait, saving=number % 2 == 0))
        row = rows[-1]
        print(
            f"kill {number}, {wait:.2f} s after the first step: complete {row['complete']}, "
            f"being saved {row['saving'] or 'none'}, unreadable {len(row['unreadable'])}"
            + (", but it had ended: take more --steps" if row["ended"] else ""),
            flush=True,
        )
    finish(line, environment)
    wrong, arrays = differing(whole, killed, args.steps)
    unreadable = sum(len(row["unreadable"]) for row in rows)
    kills = sum(not row["ended"] for row in rows)
    print(
        f"{kills} kills, {sum(bool(row['saving']) for row in rows)} of them during a save; "
        f"{unreadable} checkpoints unreadable; {len(wrong)} of {arrays} arrays differ at the end"
    )
    if wrong or unreadable:
        sys.exit(1)
    return rows


if __name__ == "__main__":
    main()

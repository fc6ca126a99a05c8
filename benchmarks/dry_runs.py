"""Tables of dry runs: the training step compiled for TPU slices that are not there.

    python benchmarks/dry_runs.py recipes --results FILE     # the recipes, on large slices
    python benchmarks/dry_runs.py scaling --results FILE     # sizes, batches and layouts
    python benchmarks/dry_runs.py checks --results FILE      # all layers, against two depths

Needs the extra `tpu`, no TPU. Every array of parameters and every layer costs the TPU compiler
time, minutes of a core for a B/16. So rows are compiled with 1 and with 3 layers a tower, all
else as it is, and stand for the depth that the config has on the line through the two; `checks`
compiles all layers. Each in a process of its own, one after the other. What --results holds is
not compiled again, so that a run which was killed goes on. --show compiles nothing.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from dry_runs_cases import DEPTHS, TABLES, Case

_FOLDER = pathlib.Path(__file__).parent


def compile_case(case: Case) -> dict:
    """Compiles it, in this process; what there is to know as plain JSON values."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.path.insert(0, str(_FOLDER.parent))
    import jax

    from ccl_jax.models.presets import build_model
    from ccl_jax.training import dry_run, flops, hlo, optimizer
    from ccl_jax.training.step import initial_params

    config = case.config()
    start = time.process_time()
    found = dry_run.dry_run(config, case.topology)
    model = build_model(config.model.to_dict(), eot_id=1)
    params = jax.eval_shape(lambda: initial_params(config, model))
    trainable = optimizer.trainable_paths(config.optimizer, params)
    needed = flops.model_flops(config, model, trainable)
    messages = sorted(found.collectives, key=lambda one: -one.received)[:12]
    return {
        "case": case.key,
        "devices": found.devices,
        "depth": model.image["depth"],
        "chip_memory": found.chip.memory,
        "images": config.data.batch_size,
        "memory": found.memory,
        "needed": found.total_bytes,
        "refusal": found.refusal,
        "state": found.state,
        "flops": found.flops,
        "flops_needed": needed / found.devices,
        "memory_traffic": found.memory_traffic,
        "received": hlo.received(found.collectives),
        "seconds": found.seconds,
        "messages": [one._asdict() | {"received": one.received} for one in messages],
        "compile_cpu_seconds": time.process_time() - start,
    }


def read(path: pathlib.Path) -> dict[str, dict]:
    """Results by the key of their case; a line that a kill cut off does not count."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[row["case"]] = row
    return found


def run(cases: list[Case], path: pathlib.Path) -> None:
    """Compiles the cases that have no result yet, and appends a line for each."""
    for number, case in enumerate(cases):
        if case.key in read(path):
            continue
        print(f"{number + 1} of {len(cases)}: {case.key}", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, "one", "--case", json.dumps(case._asdict())]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(f"failed: {case.key}", file=sys.stderr, flush=True)
            continue
        with path.open("a", encoding="utf-8") as file:
            file.write(f"\n{done.stdout.splitlines()[-1]}\n")


def row_of(case: Case, results: dict[str, dict]) -> dict | None:
    """The result of a case: compiled as it is, or from two depths; None if there is neither."""
    if whole := results.get(case.key):
        return whole
    low, high = (results.get(case._replace(depth=depth).key) for depth in DEPTHS)
    if not low or not high or low["refusal"] or high["refusal"]:
        return None
    preset = case.config().model.preset
    sys.path.insert(0, str(_FOLDER.parent))
    from ccl_jax.models.presets import PRESETS

    times = (PRESETS[preset]["image"]["depth"] - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0])
    return on_line(low, high, times) | {"depth": PRESETS[preset]["image"]["depth"]}


def on_line(low: Any, high: Any, times: float) -> Any:
    """Numbers of two results of one form, `times` the way from the first to the second."""
    if isinstance(low, dict):
        names = [*low, *(name for name in high if name not in low)]
        return {name: on_line(low.get(name, 0), high.get(name, 0), times) for name in names}
    if isinstance(low, int | float) and not isinstance(low, bool):
        return low + times * (high - low)
    return low


def table(cases: list[Case], results: dict[str, dict]) -> str:
    """A Markdown table of the cases that have a result."""
    lines = [
        "| config | slice | images | state GB | arguments GB | temporaries GB | needed GB | fits "
        "| TFLOP | needed TFLOP | received GB | memory GB | compute ms | memory ms | links ms |",
        "|---|---|---:|---:|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case in cases:
        if not (row := row_of(case, results)):
            continue
        begin = f"| {case.title} | {case.topology} | {row['images']:,.0f} |"
        begin += f" {row['state'] / 1e9:.2f} |"
        if row["refusal"]:
            lines.append(f"{begin} | | | no: {row['refusal']} |" + " |" * 7)
            continue
        memory, seconds = row["memory"], row["seconds"]
        cells = [
            f"{memory['arguments'] / 1e9:.2f}",
            f"{memory['temporaries'] / 1e9:.2f}",
            f"{row['needed'] / 1e9:.2f}",
            "yes" if row["needed"] <= row["chip_memory"] else "no",
            f"{row['flops'] / 1e12:.2f}",
            f"{row['flops_needed'] / 1e12:.2f}",
            f"{sum(row['received'].values()) / 1e9:.2f}",
            f"{row['memory_traffic'] / 1e9:.1f}",
            *(f"{1e3 * seconds[name]:.1f}" for name in ("compute", "memory", "interconnect")),
        ]
        lines.append(f"{begin} " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Does what the arguments say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=[*TABLES, "one"])
    parser.add_argument("--results", type=pathlib.Path, help="file of JSON lines")
    parser.add_argument("--show", action="store_true", help="print what there is")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table == "one":
        print(json.dumps(compile_case(Case(**json.loads(options.case)))))
        return
    if not options.results:
        parser.error("--results FILE is missing")
    cases = TABLES[options.table]()
    if not options.show:
        depths = (0,) if options.table == "checks" else DEPTHS
        run([case._replace(depth=depth) for case in cases for depth in depths], options.results)
    print(table(cases, read(options.results)))


if __name__ == "__main__":
    main()

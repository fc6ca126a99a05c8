"""Any source to prepared data: sharded, resumable, verified.

The work is a pure function of (settings, number of a shard): it reads a range of the source
and writes one shard and a report on it, so it runs on whatever `engines` has. A shard gets its
name when it is complete; a run that was killed goes on with the shards that have no report.
"""

import contextlib
import csv
import dataclasses
import fcntl
import functools
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ccl_jax import __version__
from ccl_jax.data import engines, parallel, prepared, verifying
from ccl_jax.data.converting import (
    COUNTS,
    Plan,
    Settings,
    Skips,
    bad_limit,
    close_input,
    content_of,
    convert_shard,
    describe_bad,
    open_input,
    read_report,
)
from ccl_jax.data.records import BadRecord
from ccl_jax.data.shrinking import check_image

_PROBED = 64
_SETTINGS = "settings.json"
_SECONDS_BETWEEN_LOOKS = 0.5
# Of a table to download; a killed run fetches those of an unfinished shard again.
_ROWS_A_SHARD = 2_000


def prepare(
    settings: Settings,
    *,
    runner: str = engines.LOCAL,
    workers: int | None = None,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Converts a source, or goes on where an earlier run stopped, and verifies the result.

    What was left out is named in skipped-SPLIT.csv.

    Args:
      settings: what to convert, and how.
      runner: see `engines.run`.
      workers: see `engines.run`.
      options: see `engines.run`.

    Returns:
      The manifest: counts, settings, and each shard's checksum.

    Raises:
      ValueError: if the source cannot be opened, the folder holds something else, another
        run is at work in it, too many records are unusable, or a shard fails its check.
    """
    settings = dataclasses.replace(settings, output=os.path.abspath(settings.output))
    source = open_input(settings)
    try:
        return _prepare(settings, source, runner, workers, options)
    finally:
        close_input(source)


def _prepare(settings, source, runner, workers, options):
    folder = Path(settings.output)
    if not len(source):
        raise ValueError(f"{source.name} has no records; check its path and split")
    folder.mkdir(parents=True, exist_ok=True)
    shards = settings.shards or parallel.shard_count(len(source))
    if not settings.shards and hasattr(source, "read_many"):
        shards = max(shards, -(-len(source) // _ROWS_A_SHARD))
    shards = min(shards, len(source))
    name, content = prepared.set_name(folder), content_of(source)
    plan = Plan(settings, name, len(source), content, shards)
    verify = functools.partial(
        verifying.find_damage, folder, runner=runner, workers=workers, options=options,
        notes=plan.state / "damage",
    )  # fmt: skip
    with _alone(plan):
        others = _other_splits(plan)
        finished = prepared.manifest_path(folder, settings.split)
        if not finished.exists() and not any(plan.state.glob("shard-*.json")):
            # A run that got nowhere binds nobody to its settings.
            (plan.state / _SETTINGS).unlink(missing_ok=True)
        parallel.keep_settings(plan.state, _SETTINGS, plan.key())
        if finished.exists():
            manifest = prepared.read_manifest(folder, settings.split)
            damage = verify(manifest)
            if not damage:
                return manifest
            _forget(plan, damage)
            finished.unlink()
        if not hasattr(source, "read_many"):
            _probe(source, settings)
        elif runner == engines.LOCAL:
            # One process, so that the limits of the network hold; it mostly waits.
            runner = engines.THREADS
        _convert(plan, source, runner, workers, options)
        manifest = _summarise(plan, source)
        damage = verify(manifest)
        if damage:
            _forget(plan, damage)
            raise ValueError(
                f"{verifying.damage_message(folder, manifest, damage)}: is the disk sound?"
            )
        prepared.write_tfds_metadata(folder, [*others, manifest])
        with parallel.complete_file(finished) as file:
            json.dump(manifest, file, indent=2)
    return manifest


def settings_from(
    values: Mapping[str, Any], parse_source: Callable[[str], dict[str, Any]]
) -> Settings:
    """Settings from the flags of `ccl_jax.tools.prepare` by name.

    Args:
      values: of the flags; None where one is not given.
      parse_source: turns the text of --input into the arguments of `open_source`.

    Raises:
      ValueError: unless there is exactly one of `input` and `download`.
    """
    if (values["input"] is None) == (values["download"] is None):
        raise ValueError("give --input or --download, one of them")
    bad, network = 0.05, {}
    if values["input"] is not None:
        source = parse_source(values["input"])
    else:
        columns = {
            "url": values["url_column"],
            "caption": values["caption_column"],
            "column_names": values["columns"],
        }
        given = {name: value for name, value in columns.items() if value is not None}
        source = {"kind": "download", "path": values["download"], **given}
        same = ("connections", "per_host", "retries", "deadline", "allow_private", "user_agent")
        network = {name: values[name] for name in same if values[name] is not None}
        network["attempt_timeout"] = values["timeout"]
        network["max_bytes"] = round(values["max_megabytes"] * 1e6)
        bad = 1.0  # of the addresses of an old table, many are gone
    return Settings(
        source,
        max_bad_share=bad if values["max_bad_share"] is None else values["max_bad_share"],
        network=network,
        **{
            name: values[name]
            for name in ("output", "split", "format", "shards", "resize", "quality", "check_images")
        },
    )


def describe(manifest: Mapping[str, Any], output: str | os.PathLike) -> str:
    """What was written, in a few lines."""
    skipped = sum(manifest["skipped"].values())
    lines = [
        f"{output}: {manifest['records']:,} records of {manifest['split']} in "
        f"{len(manifest['shards'])} shards ({manifest['format']}), {manifest['bytes'] / 1e6:,.1f} "
        f"MB, {manifest['captions']:,} captions, {manifest['phrases']:,} phrases; verified"
    ]
    if manifest["resized"]:
        settings = manifest["settings"]
        lines.append(
            f"Scaled to a short side of {settings['resize']}: {manifest['resized']:,} images, as "
            f"JPEGs of quality {settings['quality']}"
        )
    if skipped:
        reasons = ", ".join(
            f"{reason} x {count:,}" for reason, count in manifest["skipped"].items()
        )
        lines.append(f"Left out: {skipped:,} ({reasons}); see skipped-{manifest['split']}.csv")
    return "\n".join(lines)


def _probe(source, settings):
    """Looks at records from all over the source: what cannot work should not take hours."""
    skips = Skips()
    indices = sorted({place * len(source) // _PROBED for place in range(_PROBED)})
    for index in indices:
        try:
            record = source[index]
            if settings.check_images:
                check_image(record.image, record.key)
        except BadRecord as error:
            skips.add([describe_bad(index, error)])
    # Four standard deviations over what is allowed, but not all.
    expected = settings.max_bad_share * len(indices)
    limit = min(expected + 4 * math.sqrt(expected), len(indices) - 1)
    skips.check(limit, len(indices), settings)


def _convert(plan, source, runner, workers, options):
    waiting, done, skips = set(range(plan.shards)), 0, Skips()

    def collect():
        nonlocal done
        for number in sorted(waiting):
            if report := read_report(plan, number):
                waiting.remove(number)
                done += report["records"] + len(report["bad"])
                skips.add(report["bad"])

    collect()
    line = parallel.Progress(plan.records, "records", found=done)
    if hasattr(source, "on_progress"):
        before = done
        source.on_progress = lambda tried: line.show(min(before + tried, plan.records - 1))
    looked = 0.0

    def tell(shards_done, shards_total):
        nonlocal looked
        # Not after each of thousands of shards.
        if shards_done < shards_total and time.monotonic() - looked < _SECONDS_BETWEEN_LOOKS:
            return
        collect()
        looked = time.monotonic()
        line.show(done)
        skips.check(bad_limit(plan), plan.records, plan.settings)

    convert = functools.partial(convert_shard, plan)
    engines.run(
        convert, sorted(waiting), runner=runner, workers=workers, options=options, progress=tell
    )
    if waiting:
        missing = plan.report(min(waiting))
        raise ValueError(
            f"{len(waiting)} of {plan.shards} shards were not written, {missing} is the first: "
            "do all workers see the folder under this name?"
        )
    skips.check(min(bad_limit(plan), plan.records - 1), plan.records, plan.settings)


def _summarise(plan, source):
    """Names what was left out, and gives the manifest."""
    split = plan.settings.split
    describe_row = getattr(source, "describe", lambda index: {})
    totals, skips, shards = dict.fromkeys(COUNTS, 0), Skips(), []
    with parallel.complete_file(plan.folder / f"skipped-{split}.csv") as file:
        fields = [*describe_row(0), "index", "key", "reason", "detail"]
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        for number in range(plan.shards):
            report = read_report(plan, number)
            skips.add(report["bad"])
            writer.writerows(describe_row(bad["index"]) | bad for bad in report["bad"])
            for name in COUNTS:
                totals[name] += report[name]
            shard = {name: report[name] for name in ("records", "size", "sha256")}
            shards.append({"file": plan.shard(number).name} | shard)
    reasons = dict(skips.reasons.most_common())
    with parallel.complete_file(plan.folder / f"skipped-{split}.json") as file:
        counts = {"read": plan.records, "written": totals["records"]}
        counts |= {"skipped": skips.reasons.total(), "reasons": reasons}
        json.dump(counts, file, indent=2)
    return {
        "name": plan.name,
        "split": split,
        "format": plan.settings.format,
        **totals,
        "skipped": reasons,
        "settings": plan.key(),
        "ccl_jax": __version__,
        "shards": shards,
    }


def _forget(plan, numbers):
    for number in numbers:
        plan.report(number).unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(plan):
    """Keeps a second run out of the split, and removes what a killed one left half done."""
    plan.state.mkdir(exist_ok=True)
    with open(plan.state / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another preparation is at work in {plan.folder}, split {plan.settings.split}: "
                "wait for it, or choose another output"
            ) from error
        for left in plan.folder.glob(f".{plan.name}-{plan.settings.split}.*.tmp"):
            left.unlink(missing_ok=True)
        yield


def _other_splits(plan):
    """The manifests of the folder's other splits."""
    paths = sorted(plan.folder.glob("manifest-*.json"))
    splits = [path.stem.partition("-")[2] for path in paths]
    found = [
        prepared.read_manifest(plan.folder, split)
        for split in splits
        if split != plan.settings.split
    ]
    for manifest in found:
        if manifest["format"] != plan.settings.format:
            raise ValueError(
                f"{plan.folder} has a split {manifest['split']} of the format "
                f"{manifest['format']}: use the same, or another output"
            )
    ours = splits or (plan.state / _SETTINGS).exists()
    if not ours and (plan.folder / "dataset_info.json").exists():
        raise ValueError(f"{plan.folder} holds a set of another origin: choose another output")
    return found

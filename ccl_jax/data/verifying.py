"""Prepared data against its manifest: counts, sizes and checksums of every shard."""

import functools
import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ccl_jax.data import engines, parallel, prepared
from ccl_jax.data.shards import READERS


def verify(
    folder: str | os.PathLike, split: str = "train", *, workers: int | None = None
) -> dict[str, Any]:
    """Reads a prepared split from end to end and compares it with its manifest.

    Args:
      folder: of the set.
      split: its name.
      workers: threads; None for one a core.

    Returns:
      The manifest.

    Raises:
      ValueError: naming the shards that are missing or differ.
    """
    manifest = prepared.read_manifest(folder, split)
    with tempfile.TemporaryDirectory() as notes:
        damage = find_damage(Path(folder), manifest, notes=Path(notes), workers=workers)
    if damage:
        raise ValueError(
            f"{damage_message(folder, manifest, damage)}. Copy them again, or run the same "
            "preparation again: it writes them anew"
        )
    found = len(prepared.PreparedSource(folder, split=split))
    if found != manifest["records"]:
        raise ValueError(
            f"{folder}: dataset_info.json names {found} records of {split}, the manifest "
            f"{manifest['records']}: copy or prepare the set again"
        )
    return manifest


def find_damage(
    folder: Path,
    manifest: Mapping[str, Any],
    *,
    notes: Path,
    runner: str = engines.LOCAL,
    workers: int | None = None,
    options: Sequence[str] = (),
) -> dict[int, str]:
    """Reads every shard of a manifest.

    Args:
      folder: of the set.
      manifest: of a split.
      notes: a folder that the workers write to; it is emptied.
      runner: see `engines.run`.
      workers: see `engines.run`.
      options: see `engines.run`.

    Returns:
      What is wrong, by the number of a damaged shard.
    """
    if runner == engines.LOCAL:
        runner = engines.THREADS  # hashing and reading leave the interpreter to others
    numbers = range(len(manifest["shards"]))
    line = parallel.Progress(len(numbers), "shards verified")
    notes.mkdir(exist_ok=True)
    for note in notes.iterdir():
        note.unlink()
    engines.run(
        functools.partial(_verify_shard, os.fspath(folder), manifest["shards"], os.fspath(notes)),
        numbers,
        runner=runner,
        workers=workers,
        options=options,
        progress=lambda done, total: line.show(done),
    )
    found = {int(note.name): note.read_text("utf-8") for note in notes.iterdir()}
    return dict(sorted(found.items()))


def _verify_shard(folder, shards, notes, number):
    """Leaves a note in a folder if a shard is damaged."""
    shard = shards[number]
    path = Path(folder, shard["file"])
    problem = ""
    try:
        if path.stat().st_size != shard["size"]:
            problem = f"{path.stat().st_size} bytes instead of {shard['size']}"
        elif digest(path) != shard["sha256"]:
            problem = "its checksum differs"
        else:
            reader = READERS[path.name.rpartition(".")[2].partition("-")[0]](
                [path], [shard["records"]]
            )
            for index in range(shard["records"]):
                prepared.decode_record(reader.read(0, index), index)
    except FileNotFoundError:
        problem = "missing"
    except (OSError, ValueError) as error:
        problem = str(error)
    if problem:
        Path(notes, str(number)).write_text(f"{shard['file']}: {problem}", "utf-8")


def damage_message(
    folder: str | os.PathLike, manifest: Mapping[str, Any], damage: Mapping[int, str]
) -> str:
    """One line on what `find_damage` found."""
    listed = "; ".join(list(damage.values())[:5])
    return (
        f"{len(damage)} of {len(manifest['shards'])} shards of {folder}, split "
        f"{manifest['split']}, are damaged: {listed}"
    )


def digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

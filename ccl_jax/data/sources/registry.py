"""The table of sources, and how one is opened from a config."""

import difflib
import importlib
import inspect
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from ccl_jax.data.records import Source

# kind -> "module:class" or a callable. Named rather than imported, because some need
# TensorFlow Datasets, which is slow to import.
SOURCES: dict[str, str | Callable[..., Source]] = {
    "webdataset": "ccl_jax.data.sources.webdataset:WebDatasetSource",
    "table": "ccl_jax.data.sources.table:TableSource",
    "tfds": "ccl_jax.data.sources.tfds:TfdsSource",
    "mixture": "ccl_jax.data.sources.mixture:MixtureSource",
    "prepared": "ccl_jax.data.prepared:PreparedSource",
    "tfrecord": "ccl_jax.data.tfrecords:TFRecordSource",
    "phrases": "ccl_jax.data.concepts.table:PhraseTable",
    "scenes": "ccl_jax.data.scenes:ScenesSource",
}

# How a path ends -> its kind.
_KINDS = {
    ".tar": "webdataset",
    ".tgz": "webdataset",
    ".tfrecord": "tfrecord",
} | dict.fromkeys((".csv", ".tsv", ".jsonl", ".parquet"), "table")


def open_source(kind: str, **options: Any) -> Source:
    """Opens a source by its name in `SOURCES`.

    Args:
      kind: "webdataset", "table", "tfds", "mixture", ...
      **options: the arguments of that source.

    Raises:
      ValueError: for an unknown `kind`, for options that the source does not take,
        and whatever the source raises for their values.
    """
    if kind not in SOURCES:
        nearest = _nearest(kind, SOURCES)
        known = ", ".join(SOURCES)
        raise ValueError(f"unknown source {kind!r}: did you mean {nearest!r}? Known: {known}")
    source = _find(kind)
    parameters = inspect.signature(source).parameters
    takes = ", ".join(parameters)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [] if open_ended else [name for name in options if name not in parameters]
    if unknown:
        raise ValueError(
            f"source {kind!r} has no option {unknown[0]!r}: did you mean "
            f"{_nearest(unknown[0], parameters)!r}? It takes {takes}"
        )
    try:
        inspect.signature(source).bind(**options)
    except TypeError as error:
        raise ValueError(f"source {kind!r}: {error}; it takes {takes}") from error
    return source(**options)


def parse_source(text: str) -> dict[str, Any]:
    """The arguments of `open_source` from a command line.

    >>> parse_source("train-{000..099}.tar")
    {'kind': 'webdataset', 'path': 'train-{000..099}.tar'}
    >>> parse_source("kind=scenes,split=train")
    {'kind': 'scenes', 'split': 'train'}

    Args:
      text: the path of tars, of a table or of a prepared folder, `kind=...,option=...` with
        plain values, or a JSON object.

    Raises:
      ValueError: for a text that is none of these.
    """
    if text.startswith("{") and ":" in text:
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ValueError(f"the source {text} is not a JSON object: {error}") from error
    elif text.startswith("kind="):
        pairs = [pair.partition("=") for pair in re.split(r",(?=\w+=)", text)]
        values = {name: _plain(value) for name, _, value in pairs}
    elif os.path.isfile(os.path.join(text, "dataset_info.json")):
        values = {"kind": "prepared", "path": text}
    else:
        plain = re.sub(r"\.(gz|bz2|xz|zst)$", "", text)
        kind = next((kind for end, kind in _KINDS.items() if plain.endswith(end)), None)
        if kind is None:
            raise ValueError(
                f"cannot tell what kind of source {text!r} is: write kind=webdataset,path={text} "
                f"or another kind; a path alone ends in {', '.join(_KINDS)}"
            )
        values = {"kind": kind, "path": text}
    if not isinstance(values.get("kind"), str):
        raise ValueError(f"the source {text} names no kind: add kind=webdataset or another")
    return values


def source_counts(source: Source) -> dict[str, int]:
    """What a source found and left out: "records", and the counts of its own.

    For tars these are shards, keys without an image, repeated members, pickles, ...; a count
    of nothing is left out.
    """
    own: Mapping[str, int] = getattr(source, "counts", {})
    return {"records": len(source), **{name: count for name, count in own.items() if count}}


def _find(kind):
    source = SOURCES[kind]
    if isinstance(source, str):
        module, _, name = source.partition(":")
        source = getattr(importlib.import_module(module), name)
    return source


def _nearest(name, known):
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0)[0]


def _plain(value):
    """A number, true, false, null or a list where the text spells one in JSON; else the text."""
    try:
        return json.loads(value)
    except ValueError:
        return value

"""A source with its noun phrases from a table that `tools.concepts --format jsonl` wrote."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from ccl_jax.data.records import BadRecord, Record, Source
from ccl_jax.data.sources import annotations
from ccl_jax.data.sources.files import find_files
from ccl_jax.data.sources.registry import open_source, source_counts
from ccl_jax.data.sources.rows import TextRows


class PhraseTable:
    """The records of a source, with the phrases of a table beside it.

    Row i of the table is record i of the source. Keys and captions are compared, so that the
    table of another source is refused.

    Attributes:
      name: that of the source.
      counts: those of the source.
    """

    def __init__(
        self,
        source: Mapping[str, Any],
        path: str | os.PathLike[str],
        *,
        index_dir: str | os.PathLike[str] | None = None,
    ):
        """Opens the source and finds the rows of the table.

        Args:
          source: the "kind" and options of a source, as `open_source` takes them.
          path: folder that the tool wrote.
          index_dir: folder that keeps the offsets of the rows, see `WebDatasetSource`.

        Raises:
          ValueError: if the table is not there, or has another number of records.
        """
        if "kind" not in source:
            raise ValueError(f"the source of the phrases names no kind: {dict(source)}")
        self._source: Source = open_source(**source)
        self.name = self._source.name
        self.counts = source_counts(self._source)
        folder = os.path.expanduser(os.fspath(path))
        if not os.path.isdir(folder):
            raise ValueError(f"{folder} is no folder: give the --output of tools.concepts")
        files = find_files([os.path.join(folder, "phrases-*.jsonl")], "tables", "*.jsonl")
        self._rows = TextRows(files, None, column_names=None, index_dir=index_dir)
        if len(self._rows) != len(self._source):
            raise ValueError(
                f"{folder} has phrases of {len(self._rows)} records and {self.name} has "
                f"{len(self._source)}: let tools.concepts finish, or give the table of this source"
            )

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        """The source's record with the table's phrases; safe to call from several threads.

        Raises:
          BadRecord: "invalid phrases", "phrases of another record", and what the source raises.
        """
        record = self._source[index]
        row = self._rows[index]
        if row.get("key") != record.key or row.get("captions") != list(record.captions):
            detail = f"{self._rows.describe(index)} is of {row.get('key')!r}"
            raise BadRecord(record.key, "phrases of another record", detail)
        phrases = annotations.as_phrases(
            row.get("phrases"), "phrases", len(record.captions), record.key
        )
        if phrases is None:
            raise BadRecord(record.key, "invalid phrases", "the table has none")
        return dataclasses.replace(record, phrases=tuple(map(tuple, phrases)))

"""Rows of a Hugging Face data set as it is published: Parquet files with images inside."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ccl_jax.data.records import BadRecord
from ccl_jax.evaluation.results import Image


def read_rows(
    paths: Sequence[Path], columns: Sequence[str], image_columns: Sequence[str]
) -> list[dict[str, Any]]:
    """Reads columns of Parquet files; images are read when they are needed.

    Args:
      paths: the files, in order.
      columns: of plain values.
      image_columns: of images, structs {bytes, path} as the `datasets` library writes them.

    Returns:
      One dict for each row: plain values, and an `Image` for each image column.

    Raises:
      ValueError: for a file that is damaged or lacks a column, or without pyarrow.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{paths[0]} needs pyarrow: pip install pyarrow") from error
    rows = []
    for path in paths:
        try:
            file = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path} is no whole Parquet file ({error}); copy it again") from error
        names = file.schema_arrow.names
        lacking = [name for name in (*columns, *image_columns) if name not in names]
        if lacking:
            raise ValueError(f"{path} has no column {lacking[0]!r}; it has {', '.join(names)}")
        values = file.read(columns=list(columns)).to_pylist()
        images = _Images(path, file)
        for index, row in enumerate(values):
            rows.append(row | {name: images.image(index, name) for name in image_columns})
    return rows


class _Images:
    """The images of one file, a row group at a time."""

    def __init__(self, path: Path, file):
        status = path.stat()
        self._path, self._file = path, file
        self._mark = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
        self._lock = threading.Lock()
        self._starts = [0]
        for group in range(file.num_row_groups):
            self._starts.append(self._starts[-1] + file.metadata.row_group(group).num_rows)
        self._column = functools.lru_cache(maxsize=4)(self._read_column)

    def image(self, index: int, column: str) -> Image:
        name = f"{self._path.name}:{index}:{column}"
        return Image(name, f"{self._mark} {index} {column}", lambda: self._bytes(index, column))

    def _bytes(self, index: int, column: str) -> bytes:
        group = next(g for g, end in enumerate(self._starts[1:]) if index < end)
        with self._lock:
            value = self._column(group, column)[index - self._starts[group]].as_py()
        data = (value or {}).get("bytes")
        if not data:
            raise BadRecord(f"{self._path.name}:{index}", "no image in the row", column)
        return data

    def _read_column(self, group: int, column: str):
        return self._file.read_row_group(group, columns=[column]).column(0)

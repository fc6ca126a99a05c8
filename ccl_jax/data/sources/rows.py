"""Rows of tables by number: text tables by the offsets of their rows, Parquet through Arrow.

Neither is held in memory: a text table costs 12 bytes a row, whatever is in it, and a row is
parsed when it is read, so that a bad row is one bad record. A large Parquet file is copied once
to an Arrow file that is mapped into memory, since Parquet itself can only be read by groups of
many rows.
"""

import array
import bisect
import csv
import functools
import io
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from absl import logging

from ccl_jax.data.records import BadRecord
from ccl_jax.data.sources import annotations, cache
from ccl_jax.data.sources.files import Files

_MAX_LINE = 64 << 20
_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
# Decoded columns of Parquet files over this size are mapped rather than loaded.
_IN_MEMORY = 256 << 20
_BATCH_ROWS = 1024
# Rows of JSON lines that are asked which fields there are.
_FIRST_ROWS = 100


class Rows(Protocol):
    """The rows of some files end to end; reading is thread-safe."""

    names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of rows."""

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """The values of a row by column; raises `BadRecord` if it makes no sense."""

    def describe(self, index: int) -> str:
        """The name of a row, for messages: its file and number."""


class Dialect(NamedTuple):
    """How a delimited text is written: RFC 4180 with `quoting`, else one line a row."""

    delimiter: str
    quoting: bool


class TextRows:
    """CSV, TSV or JSON lines."""

    def __init__(
        self,
        paths: Sequence[str],
        dialect: Dialect | None,
        *,
        column_names: Sequence[str] | None,
        index_dir: str | os.PathLike | None,
    ):
        """Indexes the files.

        Args:
          paths: the files, all with the same columns in the same order.
          dialect: of a delimited text; None for JSON lines.
          column_names: of delimited texts that have no header; None where the first row has
            them, and for JSON lines.
          index_dir: see `cache.cache_dir`.

        Raises:
          ValueError: for a file without rows or with another header, or one in UTF-16.
        """
        self._dialect = dialect
        plain = [cache.decompressed(path, index_dir) for path in paths]
        self._files = Files(plain)
        self._labels = [os.path.basename(path) for path in paths]
        self._spans = []
        names: tuple[str, ...] = tuple(column_names or ())
        for place, (path, file) in enumerate(zip(paths, plain, strict=True)):
            _check_encoding(path, file)
            build = functools.partial(self._index, path)
            arrays, _ = cache.indexed(file, self._kind(), index_dir, build)
            offsets, sizes = arrays["offsets"], arrays["sizes"]
            if dialect and column_names is None:
                if not len(offsets):
                    raise ValueError(f"{path} is empty: its first row should name the columns")
                header = self._header(place, path, int(offsets[0]), int(sizes[0]))
                if names and header != names:
                    raise ValueError(
                        f"{path} has the columns {', '.join(header)}, but {paths[0]} has "
                        f"{', '.join(names)}: give tables with the same header"
                    )
                names, offsets, sizes = header, offsets[1:], sizes[1:]
            self._spans.append((offsets, sizes))
        self._ends = list(itertools.accumulate(len(offsets) for offsets, _ in self._spans))
        self.names = names if dialect else self._json_names()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        file, row = self._locate(index)
        offsets, sizes = self._spans[file]
        size, name = int(sizes[row]), self.describe(index)
        try:
            data = self._files.read(file, int(offsets[row]), size)
        except OSError as error:
            raise BadRecord(name, "unreadable row", str(error)) from error
        if len(data) != size:
            raise BadRecord(name, "unreadable row", "the file got shorter after it was indexed")
        if self._dialect is None:
            return annotations.parse_object(data, name)
        try:
            values = _split(annotations.decode_text(data, name), self._dialect)
        except csv.Error as error:
            raise BadRecord(name, "invalid row", str(error)) from error
        if len(values) != len(self.names):
            detail = f"{len(values)} values for {len(self.names)} columns"
            raise BadRecord(name, "invalid row", detail)
        return dict(zip(self.names, values, strict=True))

    def describe(self, index: int) -> str:
        file, row = self._locate(index)
        return f"{self._labels[file]}:{row}"

    def _locate(self, index):
        file = bisect.bisect_right(self._ends, index)
        return file, index - (self._ends[file - 1] if file else 0)

    def _kind(self):
        return f"rows{tuple(self._dialect)}" if self._dialect and self._dialect.quoting else "lines"

    def _index(self, label, path):
        """Offset and size of every row that is not blank."""
        quoted = self._dialect is not None and self._dialect.quoting
        starts, ends = _quoted_rows(path, label, self._dialect) if quoted else _lines(path, label)
        return {"offsets": starts, "sizes": (ends - starts).astype(np.int32)}, {}

    def _header(self, place, path, offset, size):
        data = self._files.read(place, offset, size)
        try:
            names = tuple(_split(annotations.decode_text(data, path), self._dialect))
        except (BadRecord, csv.Error) as error:
            raise ValueError(f"the first row of {path} names no columns: {error}") from error
        if len(set(names)) < len(names):
            raise ValueError(f"{path} names a column twice: {', '.join(names)}")
        return names

    def _json_names(self):
        """The fields of the first rows."""
        names: dict[str, None] = {}
        for index in range(min(len(self), _FIRST_ROWS)):
            try:
                names |= dict.fromkeys(self[index])
            except BadRecord:
                continue
        return tuple(names)


def _check_encoding(path, file):
    with open(file, "rb") as opened:
        start = opened.read(2)
    if start in _BOMS:
        raise ValueError(f"{path} is {_BOMS[start]}: write it as UTF-8")


def _split(text, dialect):
    text = text.rstrip("\r\n")
    if not dialect.quoting:
        return text.split(dialect.delimiter)
    return next(csv.reader(io.StringIO(text, newline=""), delimiter=dialect.delimiter), [])


def _lines(path, label):
    """(starts, ends) int64 of the lines that are not blank."""
    starts, ends, place = array.array("q"), array.array("q"), 0
    with open(path, "rb") as file:
        while line := _read_line(file, label):
            if line.strip():
                starts.append(place)
                ends.append(place + len(line))
            place += len(line)
    return np.array(starts, np.int64), np.array(ends, np.int64)


def _quoted_rows(path, label, dialect):
    """(starts, ends) int64 of the rows of a CSV, whose values may hold line breaks."""
    starts, ends, begin = array.array("q"), array.array("q"), 0
    with open(path, "rb") as file:
        while True:
            file.seek(begin)
            lines = _Lines(file, label, begin)
            # Strict, so that a quote that never closes is not taken for the end of the file.
            reader = csv.reader(lines, delimiter=dialect.delimiter, strict=True)
            try:
                for row in reader:
                    if row:
                        starts.append(begin)
                        ends.append(lines.place)
                    begin = lines.place
                return np.array(starts, np.int64), np.array(ends, np.int64)
            except csv.Error as error:
                # A stray quote swallows the rows that follow it: its line is a row by itself,
                # and reading goes on after it.
                logging.log_first_n(
                    logging.WARNING, "%s: stray quote at byte %d (%s)", 5, label, begin, error
                )
                file.seek(begin)
                starts.append(begin)
                begin += len(_read_line(file, label))
                ends.append(begin)


def _read_line(file, label):
    line = file.readline(_MAX_LINE)
    if len(line) == _MAX_LINE:
        raise ValueError(f"{label} has a line of over {_MAX_LINE >> 20} MB: is it a table of text?")
    return line


class _Lines:
    """The lines of a file as text of one character a byte; `place` is where the last one ends.

    Neither quotes, delimiters nor line breaks occur inside a character of UTF-8.
    """

    def __init__(self, file: io.BufferedReader, label: str, place: int):
        self._file, self._label, self.place = file, label, place

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = _read_line(self._file, self._label)
        if not line:
            raise StopIteration
        self.place += len(line)
        return line.decode("latin-1")


def parquet_names(path: str) -> tuple[str, ...]:
    """The columns of a Parquet file.

    Raises:
      ValueError: if it is none.
    """
    with _open_parquet(path) as file:
        return tuple(file.schema_arrow.names)


class ParquetRows:
    """Some columns of Parquet files, loaded, or mapped into memory where they are large."""

    def __init__(
        self,
        paths: Sequence[str],
        names: Sequence[str],
        *,
        index_dir: str | os.PathLike | None,
    ):
        """Opens the files.

        Args:
          paths: the files.
          names: the columns to read.
          index_dir: where large files are copied to, see `cache.cache_dir`.

        Raises:
          ValueError: for a file that is not Parquet, or lacks a column.
        """
        import pyarrow as pa

        self._paths, self.names, self._index_dir = list(paths), tuple(names), index_dir
        sizes, counts = [], []
        for path in paths:
            with _open_parquet(path) as file:
                missing = [name for name in names if name not in file.schema_arrow.names]
                if missing:
                    raise ValueError(f"{path} has no column {missing[0]!r}, which {paths[0]} has")
                sizes.append(_decoded_size(file.metadata, self.names))
                counts.append(file.metadata.num_rows)
        read = _mapped_batches if sum(sizes) > _IN_MEMORY else _loaded_batches
        self._batches = []
        for path in paths:
            try:
                self._batches += read(path, list(names), index_dir)
            except pa.ArrowException as error:
                raise ValueError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
        self._ends = list(itertools.accumulate(batch.num_rows for batch in self._batches))
        self._file_ends = list(itertools.accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        place = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[place - 1] if place else 0)
        batch = self._batches[place]
        try:
            return {
                name: batch.column(column)[row].as_py()
                for column, name in enumerate(batch.schema.names)
            }
        except UnicodeDecodeError as error:
            raise BadRecord(self.describe(index), "invalid UTF-8", str(error)) from error

    def describe(self, index: int) -> str:
        file = bisect.bisect_right(self._file_ends, index)
        row = index - (self._file_ends[file - 1] if file else 0)
        return f"{os.path.basename(self._paths[file])}:{row}"

    def __reduce__(self):
        return _reopen_parquet, (self._paths, self.names, self._index_dir)


def _reopen_parquet(paths, names, index_dir):
    return ParquetRows(paths, names, index_dir=index_dir)


def _open_parquet(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not a Parquet file, or cut: {reason}") from error


def _decoded_size(metadata, columns):
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    chunks = (group.column(i) for group in groups for i in range(group.num_columns))
    return sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if chunk.path_in_schema.split(".")[0] in columns
    )


def _loaded_batches(path, names, index_dir):
    del index_dir
    with _open_parquet(path) as file:
        return [batch.select(names) for batch in file.iter_batches(_BATCH_ROWS, columns=names)]


def _mapped_batches(path, names, index_dir):
    """The batches of an Arrow copy of some columns, mapped into memory."""
    import pyarrow as pa

    def write(target):
        cache.say(f"Copying {', '.join(names)} of {path} into {os.path.dirname(target)}, once")
        with _open_parquet(path) as file:
            schema = pa.schema([file.schema_arrow.field(name) for name in names])
            with pa.OSFile(target, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                for batch in file.iter_batches(_BATCH_ROWS, columns=names):
                    writer.write_batch(batch.select(names))

    copy = cache.derived(path, f"arrow{names}", index_dir, write)
    reader = pa.ipc.open_file(pa.memory_map(copy))
    return [reader.get_batch(i) for i in range(reader.num_record_batches)]

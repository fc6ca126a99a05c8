"""Files of records, TFRecord and ArrayRecord: written in one go, read at random.

A TFRecord is a row of (uint64 length, its checksum, data, the data's checksum), little-endian;
checksums are masked CRC-32C. ArrayRecord has an index and checksums of its own.
"""

import collections
import os
import resource
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import google_crc32c
import numpy as np

from ccl_jax.data.sources import cache
from ccl_jax.data.sources.files import Files
from ccl_jax.data.sources.tfrecord import index_tfrecord

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_MASK = 0xA282EAD8  # "masked": a checksum of data that holds checksums is weak
_MAX_OPEN_FILES = 2048
# One record a chunk, which reading at random needs; images are compressed already.
_WRITE_OPTIONS = "group_size:1,uncompressed"
_READ_OPTIONS = "readahead_buffer_size:0"


class DamagedRecord(ValueError):
    """A record that is cut, or whose checksum does not fit its bytes."""


class Shards(Protocol):
    """Files of records; safe to read from several threads."""

    paths: list[str]

    def read(self, shard: int, index: int) -> bytes:
        """A record, its checksum verified; raises `DamagedRecord`."""


class TFRecordShards:
    """Uncompressed TFRecord files."""

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        lengths: Sequence[int] | None = None,
        *,
        index_dir: str | os.PathLike | None = None,
    ):
        """Opens nothing yet.

        Args:
          paths: the files.
          lengths: the records each should hold, checked when it is opened.
          index_dir: where indexes of large files are kept; see `sources.cache.cache_dir`.
        """
        self.paths = [os.fspath(path) for path in paths]
        self._lengths = lengths
        self._index_dir = index_dir
        self._files = Files(self.paths)
        self._indexes: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def count(self, shard: int) -> int:
        """Records of a shard.

        Raises:
          ValueError: if the file is compressed, cut or not a TFRecord.
          OSError: if it cannot be opened.
        """
        return len(self._index(shard)[0])

    def read(self, shard: int, index: int) -> bytes:
        """A record, its checksum verified.

        Raises:
          DamagedRecord: if it cannot be read whole.
        """
        where = f"{self.paths[shard]}, record {index}"
        try:
            offsets, sizes = self._index(shard)
            size = int(sizes[index])
            found = self._files.read(shard, int(offsets[index]), size + _CHECKSUM.size)
        except (ValueError, OSError) as error:
            raise DamagedRecord(f"{where}: {error}") from error
        if len(found) != size + _CHECKSUM.size:
            raise DamagedRecord(f"{where}: the file got shorter after it was indexed")
        data = found[:size]
        if _CHECKSUM.unpack_from(found, size)[0] != _masked_crc(data):
            raise DamagedRecord(f"{where}: checksum mismatch")
        return data

    def _index(self, shard):
        if shard not in self._indexes:
            path = self.paths[shard]
            arrays, _ = cache.indexed(path, "tfrecord", self._index_dir, index_tfrecord)
            _check_length(path, len(arrays["sizes"]), self._lengths, shard)
            self._indexes[shard] = arrays["offsets"], arrays["sizes"]
        return self._indexes[shard]


class ArrayRecordShards:
    """ArrayRecord files; a bounded number of them is open, the longest unused closed first."""

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        lengths: Sequence[int] | None = None,
        *,
        index_dir: str | os.PathLike | None = None,
    ):
        """Opens nothing yet; see `TFRecordShards`. No index is needed, nor kept."""
        del index_dir
        self.paths = [os.fspath(path) for path in paths]
        self._lengths = lengths
        self._limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2, _MAX_OPEN_FILES)
        self._open: collections.OrderedDict = collections.OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: int, index: int) -> bytes:
        """A record, its checksum verified.

        Raises:
          DamagedRecord: if it cannot be read whole.
        """
        try:
            return self._reader(shard).read([index])[0]
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            detail = f"{self.paths[shard]}, record {index}: {_first_line(error)}"
            raise DamagedRecord(detail) from error

    def __reduce__(self):
        return ArrayRecordShards, (self.paths, self._lengths)

    def _reader(self, shard):
        with self._lock:
            if shard not in self._open:
                path = self.paths[shard]
                reader = _open_array_record(path)
                # What is cut, or no ArrayRecord at all, opens as a file without records.
                _check_length(path, reader.num_records(), self._lengths, shard)
                self._open[shard] = reader
                if len(self._open) > self._limit:
                    # Closed with its last reference: another thread may still read from it.
                    self._open.popitem(last=False)
            self._open.move_to_end(shard)
            return self._open[shard]


def write_tfrecord(path: str | os.PathLike, records: Iterable[bytes]) -> None:
    """Writes a TFRecord file."""
    with open(path, "wb") as file:
        for data in records:
            length = struct.pack("<Q", len(data))
            file.write(_HEADER.pack(len(data), _masked_crc(length)))
            file.write(data)
            file.write(_CHECKSUM.pack(_masked_crc(data)))


def write_array_record(path: str | os.PathLike, records: Iterable[bytes]) -> None:
    """Writes an ArrayRecord file."""
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(os.fspath(path), _WRITE_OPTIONS)
    try:
        for data in records:
            writer.write(data)
    finally:
        writer.close()


WRITERS: dict[str, Callable[[str | os.PathLike, Iterable[bytes]], None]] = {
    "array_record": write_array_record,
    "tfrecord": write_tfrecord,
}
READERS: dict[str, Callable[..., Shards]] = {
    "array_record": ArrayRecordShards,
    "tfrecord": TFRecordShards,
}


def _open_array_record(path):
    from array_record.python import array_record_module

    try:
        return array_record_module.ArrayRecordReader(
            path, options=_READ_OPTIONS, file_reader_buffer_size=32768
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{path} is not an ArrayRecord file: {_first_line(error)}") from error


def _check_length(path, found, lengths, shard):
    if lengths is not None and found != lengths[shard]:
        raise ValueError(
            f"{path} holds {found} records where its data set names {lengths[shard]}: "
            "copy or prepare it again"
        )


def _masked_crc(data):
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF


def _first_line(error):
    return next(iter(str(error).splitlines()), type(error).__name__)

"""TFRecord files by random access: an index of offsets, made in one pass over the headers.

A TFRecord file is a row of records of 8 bytes length (little endian), 4 bytes checksum of the
length, the data, and 4 bytes checksum of the data: github.com/tensorflow/tensorflow,
tensorflow/core/lib/io/record_writer.h. So an uncompressed file can be read at any record once
the lengths have been walked through.
"""

import bisect
import itertools
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ccl_jax.data.records import BadRecord
from ccl_jax.data.sources import cache
from ccl_jax.data.sources.files import Files

_HEADER = struct.Struct("<QI")
_FOOTER_SIZE = 4
_CASTAGNOLI = 0x82F63B78  # reflected


class Part(NamedTuple):
    """Some consecutive records of a file; `total` is how many it should hold."""

    path: str
    skip: int
    take: int
    total: int


class TfRecords(Sequence):
    """The records of some uncompressed TFRecord files, as bytes, by number.

    Thread-safe. The checksums of the lengths are checked when the index is made, those of the
    data are not: a damaged record shows when it is decoded.
    """

    def __init__(self, parts: Sequence[Part], index_dir: str | os.PathLike | None = None):
        """Indexes the files.

        Args:
          parts: what to read, in order.
          index_dir: see `cache.cache_dir`.

        Raises:
          ValueError: for a file that is missing, compressed, cut, no TFRecord file, or holds
            another number of records than it should.
        """
        self._spans = []
        for part in parts:
            if not os.path.isfile(part.path):
                raise ValueError(f"{part.path} is missing: prepare the data set again")
            arrays, _ = cache.indexed(part.path, "tfrecord", index_dir, index_tfrecord)
            if len(arrays["sizes"]) != part.total:
                raise ValueError(
                    f"{part.path} holds {len(arrays['sizes'])} records where its data set names "
                    f"{part.total}: prepare it again"
                )
            span = slice(part.skip, part.skip + part.take)
            self._spans.append((arrays["offsets"][span], arrays["sizes"][span]))
        self._ends = list(itertools.accumulate(len(offsets) for offsets, _ in self._spans))
        self._files = Files([part.path for part in parts])

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:
        """The bytes of a record.

        Raises:
          IndexError: if `index` is not in [0, len).
          BadRecord: "unreadable shard", if the file changed after it was indexed.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        file = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[file - 1] if file else 0)
        offsets, sizes = self._spans[file]
        size = int(sizes[row])
        name = f"{os.path.basename(self._files.paths[file])}:{row}"
        try:
            data = self._files.read(file, int(offsets[row]), size)
        except OSError as error:
            raise BadRecord(name, "unreadable shard", str(error)) from error
        if len(data) != size:
            raise BadRecord(name, "unreadable shard", "the file got shorter after it was indexed")
        return data


def index_tfrecord(path: str) -> tuple[cache.Arrays, cache.Notes]:
    """Walks through the lengths of a TFRecord file.

    Returns:
      `offsets` int64 (n,) and `sizes` int64 (n,) of the records' data, and no notes.

    Raises:
      ValueError: if it is compressed, cut, or no TFRecord file.
    """
    if cache.compression(path):
        raise ValueError(f"{path} is compressed, which rules out random access: decompress it")
    offsets, sizes = [], []
    with open(path, "rb") as file:
        end, place = os.fstat(file.fileno()).st_size, 0
        while place < end:
            header = os.pread(file.fileno(), _HEADER.size, place)
            size = None
            if len(header) == _HEADER.size:
                size, check = _HEADER.unpack(header)
                if check != masked_crc32c(header[:8]):
                    what = f"is damaged at byte {place}" if offsets else "is no TFRecord file"
                    raise ValueError(f"{path} {what}: write or download it again")
            if size is None or place + _HEADER.size + size + _FOOTER_SIZE > end:
                raise ValueError(
                    f"{path} is cut after {len(offsets)} records: write or download it again"
                )
            offsets.append(place + _HEADER.size)
            sizes.append(size)
            place += _HEADER.size + size + _FOOTER_SIZE
    return {"offsets": np.array(offsets, np.int64), "sizes": np.array(sizes, np.int64)}, {}


def _crc_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_CASTAGNOLI if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _crc_table()


def masked_crc32c(data: bytes) -> int:
    """The checksum of TFRecord files, for a few bytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

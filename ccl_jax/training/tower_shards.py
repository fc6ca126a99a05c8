"""Outputs of frozen towers on disk: the files of a store.

A store is a folder with `store.json`, which says what the outputs are of, and shards
`outputs-00000-of-00012.safetensors` of consecutive records. `tower_storing` makes it. A shard of r
records, i of them usable, with c captions and p distinct phrases holds the outputs that
`tower_outputs` names (i, c or p rows each) and

| tensor | shape | what |
|---|---|---|
| `row` | (r,) int32 | row of a record among the usable ones, -1 for one that cannot be used |
| `sample_id` | (i,) int64 | of the record |
| `caption_start` | (i + 1,) int32 | captions of row k are rows `[k]` to `[k + 1]` of the next |
| `text_ids` | (c, t) int32 | tokens of the captions |
| `phrase_start` | (c + 1,) int32 | phrases of caption k are `[k]` to `[k + 1]` of the next |
| `phrase_row` | (any,) int32 | rows of phrases |
| `phrase_ids` | (p, t_p) int32 | tokens of the phrases |

Metadata of a shard: `made_of`, a digest of what `store.json` says; `sha256` of the tensors, by
name; and `skipped`, (index, key, reason) of the records that cannot be used.
"""

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from ccl_jax.data.parallel import complete_file, shard_name
from ccl_jax.data.text import read_json

STORE_FILE = "store.json"
FORMAT = 1
_PIECE = 1 << 24  # bytes that are hashed at a time
LAYOUT = ("row", "sample_id", "caption_start", "phrase_start", "phrase_row")
# Names of safetensors.
_TYPES = {
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "I32": np.int32,
    "I64": np.int64,
}
_AGAIN = "delete it and start the run again, which computes it anew"


class Description(NamedTuple):
    """What `store.json` says.

    Attributes:
      made_of: everything that the outputs depend on, as plain JSON values.
      records: of the source, unusable ones included.
      records_per_shard: the last shard may have fewer.
    """

    made_of: dict[str, Any]
    records: int
    records_per_shard: int

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.records // self.records_per_shard)

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        values = json.dumps([self.made_of, self.records, self.records_per_shard], sort_keys=True)
        return hashlib.sha256(values.encode()).hexdigest()

    def path(self, folder: str, shard: int) -> str:
        """The file of a shard."""
        return os.path.join(folder, shard_name("outputs", shard, self.shards, "safetensors"))

    def range(self, shard: int) -> range:
        """The records of a shard."""
        start = shard * self.records_per_shard
        return range(start, min(start + self.records_per_shard, self.records))

    def save(self, folder: str) -> None:
        """Writes `store.json`."""
        with complete_file(os.path.join(folder, STORE_FILE)) as file:
            json.dump({"format": FORMAT, **self._asdict()}, file, indent=2)

    @classmethod
    def load(cls, folder: str) -> "Description":
        """Reads `store.json`.

        Raises:
          ValueError: if it is damaged or of another version of this code.
        """
        path = os.path.join(folder, STORE_FILE)
        values = read_json(path)
        if values.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is of another version of ccl_jax; choose another folder")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(
                f"{path} does not describe a store ({error}); copy it again"
            ) from error


def write_shard(
    path: str,
    digest: str,
    tensors: Mapping[str, np.ndarray],
    skipped: list[tuple[int, str, str]],
) -> None:
    """Writes a shard that is there whole or not at all.

    Args:
      path: its file.
      digest: `Description.digest`.
      tensors: as the module says.
      skipped: (index, key, reason) of the records that cannot be used.
    """
    # Not all types have a buffer that hashlib reads.
    hashes = {
        name: hashlib.sha256(array.reshape(-1).view(np.uint8)).hexdigest()
        for name, array in tensors.items()
    }
    metadata = {
        "made_of": digest,
        "sha256": json.dumps(hashes, sort_keys=True),
        "skipped": json.dumps(skipped),
    }
    with complete_file(path, "wb") as file:
        save_file(dict(tensors), file.name, metadata=metadata)
        # What lies there now is a file of safetensors' own.
        with open(file.name, "rb") as written:
            os.fsync(written.fileno())


class _Tensor(NamedTuple):
    """Where a tensor lies in a file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int  # byte of the file
    size: int  # bytes

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize


class File:
    """An open file that closes with its last reference."""

    def __init__(self, path: str):
        self.path = path
        self._number = os.open(path, os.O_RDONLY)

    def read(self, start: int, out: np.ndarray) -> None:
        """Fills a contiguous array of bytes."""
        if os.preadv(self._number, [out], start) != out.nbytes:
            raise ValueError(f"{self.path} got shorter while it was read; {_AGAIN}")

    def __del__(self):
        if hasattr(self, "_number"):
            os.close(self._number)


class Shard:
    """The layout of a shard; what it stores stays on disk.

    Attributes:
      path: its file.
      metadata: of the file.
      tensors: by name.
      skipped: {index: (key, reason)} of the records that cannot be used.
      row, sample_id, caption_start, phrase_start, phrase_row: as the module says.
    """

    row: np.ndarray
    sample_id: np.ndarray
    caption_start: np.ndarray
    phrase_start: np.ndarray
    phrase_row: np.ndarray

    def __init__(self, path: str, digest: str):
        """Reads the layout.

        Raises:
          ValueError: if the file is cut, damaged, or of another store.
        """
        self.path = path
        try:
            self.metadata, self.tensors = _read_header(path)
            entries = json.loads(self.metadata["skipped"])
            self.skipped = {index: (key, reason) for index, key, reason in entries}
            file = File(path)
            for name in LAYOUT:
                setattr(self, name, self._whole(file, name))
        except (OSError, KeyError, TypeError, ValueError, struct.error) as error:
            raise ValueError(f"{path} cannot be read ({error!r}); {_AGAIN}") from error
        if self.metadata["made_of"] != digest:
            raise ValueError(f"{path} is of another store; {_AGAIN}")

    def verify(self) -> bool:
        """Whether every tensor has the checksum that it was written with."""
        expected, file = json.loads(self.metadata["sha256"]), File(self.path)
        for name, tensor in self.tensors.items():
            found = hashlib.sha256()
            for start in range(0, tensor.size, _PIECE):
                piece = np.empty(min(_PIECE, tensor.size - start), np.uint8)
                file.read(tensor.start + start, piece)
                found.update(piece)
            if found.hexdigest() != expected.get(name):
                return False
        return True

    def _whole(self, file: File, name: str) -> np.ndarray:
        tensor = self.tensors[name]
        out = np.empty(tensor.size, np.uint8)
        file.read(tensor.start, out)
        return out.view(tensor.dtype).reshape(tensor.shape)


def _read_header(path: str) -> tuple[dict[str, str], dict[str, _Tensor]]:
    """Metadata and tensors of a safetensors file; it must end where the last tensor does."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        (length,) = struct.unpack("<Q", file.read(8))
        if length > size:
            raise ValueError("the header is cut")
        header = json.loads(file.read(length))
    metadata, first, tensors = header.pop("__metadata__"), 8 + length, {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        dtype = np.dtype(_TYPES[entry["dtype"]])
        tensors[name] = _Tensor(dtype, tuple(entry["shape"]), first + start, end - start)
    if size != max(tensor.start + tensor.size for tensor in tensors.values()):
        raise ValueError(f"it has {size} bytes, not those that its header names")
    return metadata, tensors

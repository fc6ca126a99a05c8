"""Embeddings on disk: computed once for a model and an image or text, found again by name.

Layout: `FOLDER/MODEL/KIND/*.npz`, MODEL a fingerprint of the model and KIND "image", "text" or
"class". Every file is a shard with `keys` (n, 16) uint8, digests of what was embedded, and `rows`
(n, d) float32. A shard is there whole or not at all, so that an interrupted run keeps what it
finished, and several processes may fill one folder.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from absl import logging

_DIGEST_BYTES = 16
SHARD_ROWS = 4096
# A killed process loses no more than so many seconds of rows.
_FLUSH_SECONDS = 60.0


def digest(*parts: str) -> bytes:
    """A digest of strings, the same on every machine; their boundaries count."""
    state = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "little") + data)
    return state.digest()


def collection_fingerprint(digests: Iterable[bytes]) -> str:
    """A short name for an ordered collection of digests: which data a number is about."""
    state = hashlib.blake2b(digest_size=8)
    for item in digests:
        state.update(item)
    return state.hexdigest()


class EmbeddingCache:
    """Rows of one model by kind and digest, in memory and, with a folder, on disk."""

    def __init__(self, folder: str | os.PathLike | None = None, model: str = ""):
        """Opens the cache of a model; shards are read when a kind is first asked for.

        Args:
          folder: of all models; None keeps rows in memory alone.
          model: fingerprint of the model; needed with a folder.

        Raises:
          ValueError: a folder without a fingerprint, or one that cannot be made.
        """
        if folder is not None and not model:
            raise ValueError("a cache on disk needs the model's fingerprint")
        self._folder = None if folder is None else Path(folder) / model
        self._rows: dict[str, dict[bytes, np.ndarray]] = {}
        self._waiting: dict[str, list[bytes]] = {}
        self._flushed = time.monotonic()
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(
                    f"cannot keep embeddings in {folder} ({error.strerror}); give another "
                    "--cache_dir, or an empty one for none"
                ) from error

    def missing(self, kind: str, digests: Sequence[bytes]) -> list[int]:
        """Positions of the digests without a row, the first of equal ones alone."""
        known = self._of(kind)
        first: dict[bytes, int] = {}
        for index, key in enumerate(digests):
            if key not in known:
                first.setdefault(key, index)
        return list(first.values())

    def get(self, kind: str, digests: Sequence[bytes]) -> list[np.ndarray | None]:
        """The row of each digest, None where there is none."""
        known = self._of(kind)
        return [known.get(key) for key in digests]

    def put(self, kind: str, digests: Sequence[bytes], rows: np.ndarray) -> None:
        """Keeps rows (n, d); full shards go to disk at once, the rest each minute and by flush."""
        known, waiting = self._of(kind), self._waiting.setdefault(kind, [])
        for key, row in zip(digests, np.asarray(rows, np.float32), strict=True):
            known[key] = row
            waiting.append(key)
        while len(waiting) >= SHARD_ROWS:
            self._write(kind, waiting[:SHARD_ROWS])
            del waiting[:SHARD_ROWS]
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes every row that is not on disk yet."""
        for kind, waiting in self._waiting.items():
            if waiting:
                self._write(kind, waiting)
                waiting.clear()
        self._flushed = time.monotonic()

    def _of(self, kind: str) -> dict[bytes, np.ndarray]:
        if kind not in self._rows:
            self._rows[kind] = {}
            if self._folder is not None:
                for path in sorted((self._folder / kind).glob("*.npz")):
                    self._rows[kind].update(_read(path))
        return self._rows[kind]

    def _write(self, kind: str, keys: list[bytes]) -> None:
        if self._folder is None:
            return
        folder = self._folder / kind
        folder.mkdir(exist_ok=True)
        rows = np.stack([self._rows[kind][key] for key in keys])
        name = uuid.uuid4().hex
        partial = folder / f"{name}.partial"
        try:
            with open(partial, "wb") as file:
                np.savez(file, keys=np.frombuffer(b"".join(keys), np.uint8), rows=rows)
            partial.replace(folder / f"{name}.npz")
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise ValueError(
                f"cannot write embeddings to {folder} ({error.strerror}); make room, or give "
                "another --cache_dir, or an empty one for none"
            ) from error


def _read(path: Path) -> dict[bytes, np.ndarray]:
    """The rows of a shard; none, with a warning, of one that is damaged."""
    try:
        with open(path, "rb") as opened, np.load(opened) as file:
            keys, rows = file["keys"].reshape(-1, _DIGEST_BYTES), file["rows"]
        if keys.shape[0] != rows.shape[0] or rows.ndim != 2 or rows.dtype != np.float32:
            raise ValueError(f"{keys.shape[0]} keys for rows of {rows.dtype} {rows.shape}")
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        logging.warning("Passed over damaged embeddings in %s: %s", path, error)
        return {}
    return {key.tobytes(): row for key, row in zip(keys, rows, strict=True)}

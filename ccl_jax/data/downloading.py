"""A table of image URLs and captions as a source whose images are fetched when they are read."""

import collections
import itertools
import operator
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ccl_jax.data.fetching import Fetcher, FetchError, FetchOptions
from ccl_jax.data.records import BadRecord, Record
from ccl_jax.data.sources import annotations
from ccl_jax.data.sources.files import Paths, as_patterns, collection_name, find_files
from ccl_jax.data.sources.rows import Dialect, ParquetRows, Rows, TextRows, parquet_names

_DIALECTS = {
    ".csv": Dialect(",", True),
    ".tsv": Dialect("\t", False),
    ".tab": Dialect("\t", False),
    ".jsonl": None,
    ".ndjson": None,
}
_PARQUET = (".parquet", ".pq")
_URLS = ("url", "URL", "image_url", "img_url", "image", "link")
_CAPTIONS = ("caption", "captions", "TEXT", "text", "title", "alt_text", "alt")
# Conceptual Captions' own tables have two columns and no header.
_WITHOUT_HEADER = ("caption", "url")
_HOPELESS = 200


class UrlTable:
    """One record a row of a table of URLs. Reading a record fetches its image.

    A source for `preparing.prepare`, which reads shard by shard with `read_many`; a training
    run reads what that wrote.

    Attributes:
      name: the last part of `path`.
      on_progress: told how many images were tried since the table was opened.
    """

    def __init__(
        self,
        path: Paths,
        *,
        url: str | None = None,
        caption: str | None = None,
        column_names: Sequence[str] | None = None,
        index_dir: str | os.PathLike | None = None,
        **network: Any,
    ):
        """Opens the table; nothing is fetched yet.

        Args:
          path: a CSV, TSV, JSON lines or Parquet table (.gz for texts), a glob, a brace range
            or a list of these.
          url: the column of URLs; None for the first there is of url, URL, image_url, ...
          caption: the column of captions; None for the first there is of caption, TEXT, ...
          column_names: the columns of a CSV or TSV without a header; None to tell by whether
            its first row has a URL, as in Conceptual Captions: caption, url.
          index_dir: folder that keeps the index of a large table.
          **network: see `FetchOptions`.

        Raises:
          ValueError: if nothing matches `path`, the table is of another kind or damaged, a
            column is missing, or an option of the network is out of range.
        """
        patterns = as_patterns(path)
        files = find_files(patterns, "tables", "*.tsv")
        self.name = collection_name(patterns, (*_DIALECTS, *_PARQUET))
        self._rows: Rows
        if files[0].lower().endswith(_PARQUET):
            names = parquet_names(files[0])
            columns = _choose(names, url, caption, files[0])
            self._rows = ParquetRows(files, columns, index_dir=index_dir)
        else:
            dialect = _dialect(files[0])
            if dialect is not None and column_names is None:
                column_names = _names_of(files[0], dialect, index_dir)
            self._rows = TextRows(files, dialect, column_names=column_names, index_dir=index_dir)
            columns = _choose(self._rows.names, url, caption, files[0])
        self._url, self._caption = columns
        self._fetcher = Fetcher(FetchOptions(**network))
        self._tried = self._fetched = 0
        self._failures: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()
        self.on_progress: Callable[[int], None] = lambda tried: None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        """Fetches one image.

        Raises:
          IndexError: if `index` is not in [0, len).
          BadRecord: see `read_many`.
        """
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        ((_, found),) = self.read_many([index])
        if isinstance(found, BadRecord):
            raise found
        return found

    def read_many(self, indices: Iterable[int]) -> Iterator[tuple[int, Record | BadRecord]]:
        """Fetches images side by side and gives them in order.

        Yields:
          (index, record), or in place of the record what is wrong with it: "invalid url",
          "private address", "host not found", "connection failed", "tls failed", "timeout",
          "http 404" and the like, "too many redirects", "too large", "not an image" (by its
          content type), "opted out" (X-Robots-Tag: noai), "missing caption", and the reasons
          of a table's rows and captions.

        Raises:
          ValueError: if none of the first 200 images could be fetched.
        """
        waiting: collections.deque = collections.deque()
        begun = map(self._begin, indices)
        while True:
            room = self._fetcher.options.connections - len(waiting)
            waiting.extend(itertools.islice(begun, room))
            if not waiting:
                return
            index, record, future = waiting.popleft()
            yield index, self._finish(record, future)

    def describe(self, index: int) -> dict[str, str]:
        """Caption and URL of a row, for a table of those that failed."""
        try:
            row = self._rows[index]
        except BadRecord:
            row = {}
        return {"caption": str(row.get(self._caption, "")), "url": str(row.get(self._url, ""))}

    def close(self) -> None:
        """Closes all connections."""
        self._fetcher.close()

    def _begin(self, index):
        """(index, record without its image or what is wrong, future image or None)."""
        place = self._rows.describe(index)
        try:
            row = self._rows[index]
            url = row.get(self._url)
            if not isinstance(url, str) or not url.strip():
                raise BadRecord(place, "invalid url", "empty")
            url = url.strip()
            caption = row.get(self._caption)
            if caption is None:
                raise BadRecord(url, "missing caption", f"no {self._caption} in {place}")
            captions = annotations.as_captions(caption, self._caption, url)
            captions, _ = annotations.clean_annotations(captions, None, url)
        except BadRecord as error:
            return index, error, None
        return index, Record(index, url, b"", captions), self._fetcher.submit(url)

    def _finish(self, record, future):
        if future is not None:
            try:
                image = future.result()
                record = Record(record.sample_id, record.key, image, record.captions)
            except FetchError as error:
                record = BadRecord(record.key, error.reason, error.detail)
        with self._lock:
            self._tried += 1
            if isinstance(record, BadRecord):
                self._failures[record.reason] += 1
            else:
                self._fetched += 1
            hopeless = not self._fetched and self._tried >= _HOPELESS
        if hopeless:
            reasons = ", ".join(f"{k} x {v}" for k, v in self._failures.most_common(3))
            raise ValueError(
                f"{self.name}: none of the first {self._tried} images could be fetched "
                f"({reasons}): is there a network, and is {self._url!r} the column of URLs?"
            )
        self.on_progress(self._tried)
        return record


def _dialect(path):
    plain = path.lower().removesuffix(".gz")
    ending = next((ending for ending in _DIALECTS if plain.endswith(ending)), None)
    if ending is None:
        known = ", ".join((*_DIALECTS, *_PARQUET))
        raise ValueError(f"{path} ends in none of {known}: rename the table after its format")
    return _DIALECTS[ending]


def _names_of(path, dialect, index_dir):
    """None if the first row names the columns; else the names that Conceptual Captions has."""
    first = TextRows([path], dialect, column_names=None, index_dir=index_dir).names
    if not any(value.strip().lower().startswith(("http://", "https://")) for value in first):
        return None
    if len(first) != len(_WITHOUT_HEADER):
        raise ValueError(
            f"{path} has no header and {len(first)} columns: name them with column_names"
        )
    return _WITHOUT_HEADER


def _choose(names, url, caption, path):
    found = []
    for name, candidates, option in ((url, _URLS, "url"), (caption, _CAPTIONS, "caption")):
        chosen = name or next((known for known in candidates if known in names), None)
        if chosen not in names:
            looked = name or ", ".join(candidates)
            raise ValueError(
                f"{path} has no column {looked}: name the one with the {option}s; it has "
                f"{', '.join(names)}"
            )
        found.append(chosen)
    return tuple(found)

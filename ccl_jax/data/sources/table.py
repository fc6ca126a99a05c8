"""A folder of images and a table of their captions: CSV, TSV, JSON lines or Parquet."""

import hashlib
import json
import operator
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ccl_jax.data.records import BadRecord, Record
from ccl_jax.data.sources import annotations
from ccl_jax.data.sources.files import Paths, as_patterns, collection_name, find_files
from ccl_jax.data.sources.rows import Dialect, ParquetRows, Rows, TextRows, parquet_names

_IMAGES = ("image", "image_path", "filepath", "file_path", "file_name", "filename", "path", "file")
_CAPTIONS = ("captions", "caption", "texts", "text", "title", "sentences", "sentence", "raw")
_PHRASES = ("phrases", "nounphrases")
_FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_DIALECTS = {"csv": Dialect(",", True), "tsv": Dialect("\t", False)}
_SUFFIXES = tuple(name + end for end in ("", ".gz") for name in _FORMATS)
_MAX_IMAGE_BYTES = 1 << 30


class TableSource:
    """One record a row, or an image: its path, captions and phrases.

    Paths are relative to `image_dir` and must stay inside of it. The table is not held in
    memory: its rows are found by an index of offsets (12 bytes a row), or for Parquet by
    mapping a copy of the columns used. In Parquet an image may also lie in the table itself, as
    bytes or as Hugging Face's {"bytes", "path"}.

    A cell of phrases is a list of strings, a list of one list a caption, or in CSV and TSV a
    JSON list or phrases parted by "|".

    Attributes:
      name: the last part of `path`.
      columns: the names of all columns.
      counts: files and rows.
    """

    def __init__(
        self,
        path: Paths,
        *,
        image_dir: str | os.PathLike | None = None,
        image: str | None = None,
        captions: str | Sequence[str] = (),
        phrases: str | None = None,
        key: str | None = None,
        group_by_image: bool = False,
        column_names: Sequence[str] | None = None,
        format: str | None = None,
        delimiter: str | None = None,
        quoting: bool | None = None,
        index_dir: str | os.PathLike | None = None,
    ):
        """Opens the table.

        Args:
          path: a table, a glob, a brace range, or a list of these, all of one layout.
          image_dir: folder of the images; None for that of the first table.
          image: the column of paths. None for the first there is of image, image_path,
            filepath, file_path, file_name, filename, path, file.
          captions: the columns that hold captions, a text or a list of texts each, all of them
            used. () for the first there is of captions, caption, texts, text, title,
            sentences, sentence, raw.
          phrases: the column of noun phrases; None for phrases or nounphrases, where there is
            one.
          key: the column that names a record; None for the path of its image.
          group_by_image: whether rows of the same path are one record with all their captions,
            as in Flickr8k's captions.txt, which has five rows an image. Reads the whole table
            when it is opened and costs 16 bytes a row.
          column_names: the columns of a CSV or TSV without a header. Conceptual Captions' TSV
            is ("caption", "url"), its local copy perhaps ("caption", "image").
          format: "csv", "tsv", "jsonl" or "parquet"; None for what the file's name ends in.
          delimiter: one character, in place of the format's own.
          quoting: whether values may stand in double quotes and then hold delimiters and line
            breaks. None for yes in CSV and no in TSV, as in Conceptual Captions, whose captions
            may begin with a quote.
          index_dir: folder that keeps indexes and copies, see `WebDatasetSource`.

        Raises:
          ValueError: if nothing matches `path`, a table is damaged or empty, a column is
            missing, the images are URLs, or `image_dir` does not exist.
        """
        patterns = as_patterns(path)
        files = find_files(patterns, "tables", "*.csv")
        self.name = collection_name(patterns, _SUFFIXES)
        folder = os.path.dirname(files[0]) if image_dir is None else os.path.expanduser(image_dir)
        self._folder = os.path.abspath(folder)
        if not os.path.isdir(self._folder):
            raise ValueError(f"image_dir {self._folder} does not exist")
        format = format or _format_of(files[0])
        parquet = _check_format(format, column_names, delimiter, quoting)
        wanted = {"image": image, "captions": captions, "phrases": phrases, "key": key}
        self._rows: Rows
        if parquet:
            self.columns = parquet_names(files[0])
            self._choose(files[0], **wanted)
            used = [self._image, *self._captions, self._phrases, self._key]
            names = list(dict.fromkeys(name for name in used if name))
            self._rows = ParquetRows(files, names, index_dir=index_dir)
        else:
            dialect = _DIALECTS.get(format)
            if dialect is not None:
                dialect = Dialect(
                    delimiter or dialect.delimiter,
                    dialect.quoting if quoting is None else quoting,
                )
            else:
                _refuse_json_array(files)
            self._rows = TextRows(files, dialect, column_names=column_names, index_dir=index_dir)
            self.columns = self._rows.names
            self._choose(files[0], **wanted)
        if not len(self._rows):
            raise ValueError(f"{files[0]} has no rows")
        self._refuse_urls(files[0])
        self._groups = self._group() if group_by_image else None
        self.counts = {"files": len(files), "rows": len(self._rows)}

    def __len__(self) -> int:
        return len(self._rows) if self._groups is None else len(self._groups[1])

    def __getitem__(self, index: int) -> Record:
        """Reads one record; safe to call from several threads.

        Raises:
          IndexError: if `index` is not in [0, len).
          BadRecord: "missing image", "unreadable image" (no bytes), "image too large" (1 GB),
            "path outside image_dir", "missing caption", "empty caption", "caption too long",
            "invalid caption", "invalid phrases", "invalid row", "invalid json", "invalid
            UTF-8".
        """
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        numbers = [index]
        if self._groups is not None:
            order, ends = self._groups
            numbers = order[ends[index - 1] if index else 0 : ends[index]].tolist()
        rows = [self._rows[number] for number in numbers]
        place = self._rows.describe(numbers[0])
        value = rows[0].get(self._image)
        key = str(rows[0].get(self._key) or place) if self._key else _name_of(value) or place
        captions: list[str] = []
        phrases: list[list[str]] | None = [] if self._phrases else None
        for row in rows:
            texts = self._captions_of(row, key)
            captions += texts
            if phrases is not None:
                found = _read_phrases(row.get(self._phrases), self._phrases, len(texts), key)
                phrases = None if found is None else phrases + found
        if not captions:
            raise BadRecord(key, "missing caption", f"no {' / '.join(self._captions)} in {place}")
        captions, phrases = annotations.clean_annotations(captions, phrases, key)
        return Record(index, key, self._read_image(value, key, place), captions, phrases)

    def _captions_of(self, row, key):
        texts: list[str] = []
        for name in self._captions:
            if row.get(name) is not None:
                texts += annotations.as_captions(row[name], name, key)
        return texts

    def _group(self):
        """Rows by image: their numbers, image after image, and where each image's end."""
        images = np.empty(len(self._rows), np.uint64)
        for number in range(len(self._rows)):
            try:
                value = _name_of(self._rows[number].get(self._image))
            except BadRecord:
                value = None
            # A row without a path, or one that makes no sense, is a record by itself.
            name = value or f"\0{number}"
            digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()
            images[number] = int.from_bytes(digest, "little")
        _, firsts, places, counts = np.unique(
            images, return_index=True, return_inverse=True, return_counts=True
        )
        # Images in the order of their first rows, rows of an image in theirs.
        by_first = np.argsort(firsts)
        rank = np.empty_like(by_first)
        rank[by_first] = np.arange(len(by_first))
        return np.argsort(rank[places], kind="stable"), np.cumsum(counts[by_first])

    def _choose(self, path, image, captions, phrases, key):
        """Which columns are used for what."""
        self._image = _find(self.columns, image, _IMAGES, "image", path)
        names = (captions,) if isinstance(captions, str) else tuple(captions)
        for name in names:
            _find(self.columns, name, (), "captions", path)
        self._captions = names or (_find(self.columns, None, _CAPTIONS, "captions", path),)
        self._phrases = _find(self.columns, phrases, _PHRASES, None, path)
        self._key = _find(self.columns, key, (), None, path)

    def _read_image(self, value, key, place):
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            if not value:
                raise BadRecord(key, "unreadable image", "0 bytes")
            return value
        if not isinstance(value, str) or not value.strip():
            raise BadRecord(key, "missing image", f"no {self._image} in {place}")
        path = os.path.normpath(os.path.join(self._folder, value.strip()))
        # By the name alone: a link inside the folder is its owner's doing.
        if os.path.commonpath([path, self._folder]) != self._folder or "\0" in path:
            raise BadRecord(key, "path outside image_dir", repr(value))
        try:
            # Not opened before it is known to be a file: a pipe would wait for a writer.
            found = os.stat(path)
            if not stat.S_ISREG(found.st_mode):
                raise BadRecord(key, "missing image", f"{path} is not a file")
            if found.st_size > _MAX_IMAGE_BYTES:
                raise BadRecord(key, "image too large", f"{found.st_size} bytes")
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError as error:
            raise BadRecord(key, "missing image", path) from error
        except (OSError, ValueError) as error:
            raise BadRecord(key, "unreadable image", str(error)) from error
        if not data:
            raise BadRecord(key, "unreadable image", "0 bytes")
        return data

    def _refuse_urls(self, path):
        """A table of URLs would give bad records only: said at once."""
        for index in range(min(len(self._rows), 20)):
            try:
                value = self._rows[index].get(self._image)
            except BadRecord:
                continue
            if not (isinstance(value, str) and value.startswith(("http://", "https://"))):
                return
            raise ValueError(
                f"the column {self._image!r} of {path} holds URLs: fetch the images first, with "
                "python -m ccl_jax.tools.prepare --download"
            )


def _format_of(path):
    plain = path.lower().removesuffix(".gz")
    for ending, format in _FORMATS.items():
        if plain.endswith(ending):
            return format
    raise ValueError(f"{path} ends in none of {', '.join(_FORMATS)}: give format")


def _check_format(format, column_names, delimiter, quoting):
    """Whether it is Parquet; refuses options that the format has no use for."""
    known = ("csv", "tsv", "jsonl", "parquet")
    if format not in known:
        raise ValueError(f"unknown format {format!r}: format is one of {', '.join(known)}")
    options = {"column_names": column_names, "delimiter": delimiter, "quoting": quoting}
    given = [name for name, value in options.items() if value is not None]
    if given and format not in _DIALECTS:
        raise ValueError(f"{given[0]} is for CSV and TSV, not for {format}: leave it out")
    if delimiter is not None and len(delimiter) != 1:
        raise ValueError(f"delimiter must be one character, got {delimiter!r}")
    return format == "parquet"


def _refuse_json_array(files):
    for path in files:
        with open(path, "rb") as file:
            if file.read(64).lstrip().startswith(b"["):
                raise ValueError(f"{path} is a JSON array: write one object a line (JSON lines)")


def _find(columns, name, candidates, option, path) -> Any:
    """A column by name, else the first candidate; None is fine where there is no `option`."""
    if name:
        if name not in columns:
            raise ValueError(f"{path} has no column {name!r}; it has {_listed(columns)}")
        return name
    found = next((candidate for candidate in candidates if candidate in columns), None)
    if found is None and option:
        raise ValueError(
            f"{path} has none of the columns {', '.join(candidates)}: name one with {option}=; "
            f"it has {_listed(columns)}"
        )
    return found


def _listed(columns):
    return ", ".join(map(repr, columns)) or "none"


def _name_of(value):
    if isinstance(value, Mapping):
        value = value.get("path")
    if not isinstance(value, str):
        return None
    # JSON can spell half of a surrogate pair, which no log can write.
    return value.strip().encode(errors="backslashreplace").decode()


def _read_phrases(value, field, count, key):
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise BadRecord(key, "invalid phrases", str(error)) from error
        else:
            value = text.split("|")
    return annotations.as_phrases(value, field, count, key)

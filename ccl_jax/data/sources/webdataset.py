"""WebDataset tars, read by random access."""

import bisect
import concurrent.futures
import itertools
import multiprocessing
import operator
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from absl import logging

from ccl_jax.data.records import BadRecord, Record
from ccl_jax.data.sources import annotations, cache, tar
from ccl_jax.data.sources.files import Files, Paths, as_patterns, collection_name, find_files

_T = TypeVar("_T")

# Under this many bytes the start of processes costs more than it saves.
_PARALLEL_FROM = 2 << 30
_SECONDS_BETWEEN_LINES = 10
_SHARDS_NAMED = 10
# More is no image, and no annotation of one.
_MAX_BYTES = {"image": 1 << 30, "json": 16 << 20, "txt": 16 << 20}
_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class WebDatasetSource:
    """Records of local WebDataset tars: KEY.jpg with KEY.json and / or KEY.txt.

    One pass over the tar headers makes an index; after that any record is read by
    its offset, from any thread. Nothing is extracted, so member names cannot reach
    the file system, and pickles are never loaded. A key belongs to its shard: shards that
    each count from zero do not collide.

    Captions are the first of `caption_fields` that KEY.json has (a string or a list),
    else KEY.txt. Phrases are the first of `phrase_fields`: a list of strings goes to
    every caption, a list of lists is per caption. Empty captions and phrases are
    dropped.

    Attributes:
      name: the last part of `path`.
      counts: shards, "repeated members", "keys without an image", "pickles" and "damaged
        shards".
    """

    def __init__(
        self,
        path: Paths,
        *,
        caption_fields: Sequence[str] = ("captions", "shortLLA_captions", "caption"),
        phrase_fields: Sequence[str] = ("phrases", "nounphrases"),
        index_dir: str | os.PathLike | None = None,
    ):
        """Finds the shards and indexes them, large collections on all cores.

        Args:
          path: a tar, a glob, a brace range such as "x-{00000..00002}.tar", or a list
            of these. Tars compressed by gzip, bzip2 or xz are decompressed into
            `index_dir` first, once: random access needs plain ones.
          caption_fields: the json fields that may hold captions, in order.
          phrase_fields: the json fields that may hold noun phrases, in order.
          index_dir: folder that keeps the indexes, and plain copies of compressed tars, for
            the next time. None for $CCL_JAX_CACHE or ~/.cache/ccl_jax, where indexes of tars
            under 64 MB are not kept.

        Raises:
          ValueError: if nothing matches `path`, a file is not a tar, a tar holds no image, or
            the first holds no caption at all.
        """
        self._caption_fields, self._phrase_fields = (
            (names,) if isinstance(names, str) else tuple(names)
            for names in (caption_fields, phrase_fields)
        )
        patterns = as_patterns(path)
        shards = find_files(patterns, "tars", "*.tar")
        self.name = collection_name(patterns, _SUFFIXES)
        plain = _plain_copies(shards, index_dir)
        self._indexes = _index_all(plain, shards, index_dir)
        self._files = Files(plain)
        # Shard s holds the records [ends[s - 1], ends[s]).
        self._ends = list(itertools.accumulate(len(index["sizes"]) for index, _ in self._indexes))
        self.counts = self._report(shards)
        if all((index["sizes"][:, 1:] == tar.ABSENT).all() for index, _ in self._indexes):
            pickle = next((notes["pickle"] for _, notes in self._indexes if notes["pickle"]), None)
            raise ValueError(
                f"{shards[0]} holds images but no .json and no .txt members: add the "
                f"captions as KEY.txt, or in KEY.json as {' / '.join(self._caption_fields)}"
                + (f"; pickles such as {pickle} are never loaded" if pickle else "")
            )

    def _report(self, shards):
        """The counts of all shards; warns of what is wrong with the first few."""
        counts = {"shards": len(shards), "damaged shards": 0}
        wrong = 0
        for shard, (index, notes) in zip(shards, self._indexes, strict=True):
            counts["damaged shards"] += notes["damage"] is not None
            for name in ("repeated members", "keys without an image", "pickles"):
                counts[name] = counts.get(name, 0) + notes[name]
            wrong += any(notes.values())
            if any(notes.values()) and wrong <= _SHARDS_NAMED:
                tar.warn_of(shard, len(index["sizes"]), notes)
        if wrong > _SHARDS_NAMED:
            found = ", ".join(f"{name} x {count}" for name, count in counts.items() if count)
            logging.warning("%d more tars are like that; in all: %s", wrong - _SHARDS_NAMED, found)
        return counts

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        """Reads one record; safe to call from several threads.

        Raises:
          IndexError: if `index` is not in [0, len).
          BadRecord: "unreadable image" (no bytes), "image too large" (1 GB), "json too large",
            "txt too large" (16 MB), "missing caption", "empty caption",
            "caption too long", "invalid caption", "invalid phrases", "invalid json", "invalid
            UTF-8", or "unreadable shard" if the tar changed after it was indexed.
        """
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[shard - 1] if shard else 0)
        key = self._key(shard, row)
        image = self._read(shard, row, "image", key)
        if not image:
            raise BadRecord(key, "unreadable image", "0 bytes")
        captions, phrases = self._annotations(shard, row, key)
        return Record(index, key, image, captions, phrases)

    def _key(self, shard, row):
        arrays, _ = self._indexes[shard]
        start = arrays["key_ends"][row - 1] if row else 0
        return arrays["keys"][start : arrays["key_ends"][row]].tobytes().decode()

    def _read(self, shard, row, part, key):
        """The bytes of one member, or None if the record has no such member."""
        arrays, _ = self._indexes[shard]
        place = tar.PARTS.index(part)
        offset, size = int(arrays["offsets"][row, place]), int(arrays["sizes"][row, place])
        if size == tar.ABSENT:
            return None
        if size > _MAX_BYTES[part]:
            raise BadRecord(key, f"{part} too large", f"{size} bytes")
        try:
            data = self._files.read(shard, offset, size)
        except OSError as error:
            raise BadRecord(key, "unreadable shard", str(error)) from error
        if len(data) != size:
            detail = f"{self._files.paths[shard]} got shorter after it was indexed"
            raise BadRecord(key, "unreadable shard", detail)
        return data

    def _annotations(self, shard, row, key):
        data = self._read(shard, row, "json", key)
        fields = {} if data is None else annotations.parse_object(data, key)
        field = next((name for name in self._caption_fields if fields.get(name) is not None), None)
        if field is not None:
            captions = annotations.as_captions(fields[field], field, key)
        else:
            text = self._read(shard, row, "txt", key)
            if text is None:
                detail = f"no .txt, and no field {' / '.join(self._caption_fields)}"
                raise BadRecord(key, "missing caption", detail)
            captions = [annotations.decode_text(text, key)]
        field = next((name for name in self._phrase_fields if fields.get(name) is not None), None)
        phrases = annotations.as_phrases(fields.get(field), field, len(captions), key)
        return annotations.clean_annotations(captions, phrases, key)


def _plain_copies(shards, index_dir):
    """Paths of plain tars: compressed ones are decompressed side by side."""
    work = [shard for shard in shards if cache.compression(shard)]
    if not work:
        return shards
    copies = {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        # zlib, bz2 and lzma let other threads run.
        for shard, copy in zip(
            work, pool.map(cache.decompressed, work, [index_dir] * len(work)), strict=True
        ):
            copies[shard] = copy
    return [copies.get(shard, shard) for shard in shards]


def _index_all(paths, labels, index_dir):
    """The index of every tar: those that are kept, and the others built on all cores."""
    found = [
        cache.load_index(path, "tar", index_dir) if cache.is_kept(path, index_dir) else None
        for path in paths
    ]
    work = [i for i, index in enumerate(found) if index is None]
    arguments = [(paths[i], labels[i]) for i in work]
    sizes = [os.path.getsize(paths[i]) for i in work]
    in_parallel = len(work) > 1 and sum(sizes) >= _PARALLEL_FROM
    results = (_in_processes if in_parallel else itertools.starmap)(tar.index_tar, arguments)
    for i, index in zip(work, _reported(results, sizes), strict=True):
        found[i] = index
        if cache.is_kept(paths[i], index_dir):
            cache.save_index(paths[i], "tar", index_dir, *index)
    return found


def _in_processes(function: Callable[..., _T], arguments: Sequence[tuple]) -> Iterator[_T]:
    """`itertools.starmap` over all cores, in order; here where new processes cannot be had."""
    # Spawned, since a fork of a process that runs TensorFlow's threads can hang.
    context = multiprocessing.get_context("spawn")
    done = 0
    try:
        with concurrent.futures.ProcessPoolExecutor(
            min(os.cpu_count() or 1, len(arguments)), mp_context=context
        ) as pool:
            for result in pool.map(function, *zip(*arguments, strict=True)):
                yield result
                done += 1
    except concurrent.futures.process.BrokenProcessPool as error:
        # A script without `if __name__ == "__main__"` cannot start any.
        logging.warning("Indexing in one process, since no other could be started: %s", error)
        yield from itertools.starmap(function, arguments[done:])


def _reported(results, sizes):
    """Passes results on, with a line now and then where they take long."""
    start = said = time.monotonic()
    total, done = sum(sizes), 0
    for number, (result, size) in enumerate(zip(results, sizes, strict=True), 1):
        yield result
        done += size
        now = time.monotonic()
        if now - said > _SECONDS_BETWEEN_LINES and number < len(sizes):
            said = now
            left = (now - start) * (total - done) / done
            cache.say(
                f"Indexed {number} of {len(sizes)} tars, {done / 1e9:.1f} of {total / 1e9:.1f} GB, "
                f"about {left:.0f} s left"
            )

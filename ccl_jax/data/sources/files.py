"""Local files: names from patterns, and reading at an offset from many threads."""

import collections
import glob
import os
import re
import threading
from collections.abc import Sequence

from absl import logging

# Well below the usual limit of 1,024 open files a process.
_MAX_OPEN_FILES = 256

Paths = str | os.PathLike | Sequence[str | os.PathLike]


def as_patterns(path: Paths) -> list[str]:
    """One path or a list of paths as a list of strings."""
    patterns = [path] if isinstance(path, str | os.PathLike) else list(path)
    return [os.fspath(pattern) for pattern in patterns]


def collection_name(patterns: Sequence[str], suffixes: Sequence[str]) -> str:
    """The last part of the first pattern without its suffix, and how many more there are."""
    name = os.path.basename(patterns[0])
    suffix = next((suffix for suffix in suffixes if name.endswith(suffix)), "")
    name = name.removesuffix(suffix)
    return name if len(patterns) == 1 else f"{name}+{len(patterns) - 1}"


def find_files(patterns: Sequence[str], what: str, example: str) -> list[str]:
    """Expands patterns to existing files, in order and without repeats.

    Args:
      patterns: paths, globs, and brace ranges such as "x-{00000..00002}.tar" or "{a,b}.tar".
      what: the plural of what is looked for, for messages: "tars".
      example: a glob that fits, for messages: "*.tar".

    Raises:
      ValueError: if a pattern finds nothing, is a folder, or is not local.
    """
    if not patterns:
        raise ValueError(f"the list of {what} is empty: give at least one path")
    files: list[str] = []
    for pattern in patterns:
        if "://" in pattern:
            raise ValueError(f"{pattern} is not a local path: copy or mount the {what} first")
        pattern = os.path.expanduser(pattern)
        if os.path.isdir(pattern):
            raise ValueError(f"{pattern} is a folder: give {os.path.join(pattern, example)}")
        names = [pattern] if os.path.exists(pattern) else _expand_braces(pattern)
        found = [_match(name) for name in names]
        missing = [name for name, matches in zip(names, found, strict=True) if not matches]
        if missing:
            raise ValueError(_missing_message(pattern, names, missing, what))
        files.extend(file for matches in found for file in matches)
    unique: dict[str, str] = {}
    for file in files:
        unique.setdefault(os.path.realpath(file), file)
    if len(unique) < len(files):
        logging.warning("%d %s are named twice and read once", len(files) - len(unique), what)
    return list(unique.values())


def _match(name):
    # Only now as a glob: a brace range may stand in a name with [ or * of its own.
    found = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
    return [file for file in found if os.path.isfile(file)]


def _missing_message(pattern, names, missing, what):
    folder = os.path.dirname(missing[0])
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    if folder and not os.path.isdir(folder):
        return f"nothing matches {pattern}: the folder {folder} does not exist"
    if len(names) == 1:
        return f"nothing matches {pattern}: the folder {folder or '.'} has no such file"
    return (
        f"{len(missing)} of the {len(names)} {what} of {pattern} are missing, the first is "
        f"{missing[0]}: correct the range or add the files"
    )


def _expand_braces(pattern):
    """Expands every {first..last} (zero padding kept) and {a,b} of a pattern."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    body = match[1]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", body)
    if numbers:
        first, last = (int(number) for number in numbers.groups())
        if first > last:
            raise ValueError(f"the range {{{body}}} is empty: write the smaller number first")
        choices = [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]
    else:
        choices = body.split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [head + choice + rest for choice in choices for rest in _expand_braces(tail)]


class Files:
    """Reads spans of files from any thread, with a bounded number of files open."""

    def __init__(self, paths: Sequence[str]):
        self.paths = list(paths)
        self._lock = threading.Lock()
        self._open: collections.OrderedDict[int, _Descriptor] = collections.OrderedDict()

    def read(self, file: int, offset: int, size: int) -> bytes:
        """`size` bytes at `offset` of the file numbered `file`; fewer where the file ends."""
        with self._lock:
            # Dropping a descriptor only closes it once no other thread reads from it.
            if file not in self._open:
                self._open[file] = _Descriptor(self.paths[file])
            self._open.move_to_end(file)
            descriptor = self._open[file]
            if len(self._open) > _MAX_OPEN_FILES:
                self._open.popitem(last=False)
        return os.pread(descriptor.number, size, offset)

    def __reduce__(self):
        return Files, (self.paths,)


class _Descriptor:
    """An open file that closes with its last reference."""

    def __init__(self, path):
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self):
        if hasattr(self, "number"):
            os.close(self.number)

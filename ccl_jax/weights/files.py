"""Weight files as tensors by name, read when asked for; pickles are never opened."""

import functools
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


class Tensor(NamedTuple):
    """An array in a file.

    Attributes:
      shape: its shape.
      load: reads it.
    """

    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]


Tensors = Mapping[str, Tensor]


def read_json(path: Path) -> dict[str, Any]:
    """The dict in a JSON file.

    Raises:
      ValueError: if there is no such file, or no dict in it.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no {path}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object; download it again")
    return values


def refuse_pickle(path: Path) -> None:
    """Raises a ValueError that says how to convert, if `path` names a pickle."""
    if path.suffix in PICKLES:
        raise ValueError(
            f"{path} is a pickle: reading it can run any code, so it is never opened. Convert it "
            'once where torch is installed: python -c "import torch, safetensors.torch as s; w = '
            f"torch.load('{path.name}', map_location='cpu', weights_only=True); s.save_file({{k: "
            "v.clone().contiguous() for k, v in w.items()}, 'model.safetensors')\""
        )


def open_safetensors(paths: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors of one or more safetensors files; bfloat16 comes as `ml_dtypes.bfloat16`.

    Raises:
      ValueError: for a file that is missing, truncated or something else, or a tensor that is
        in two files.
    """
    tensors: dict[str, Tensor] = {}
    for path in paths:
        _refuse_pointer(path)
        try:
            file = safe_open(path, framework="np")
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} is truncated or not a safetensors file ({error}); download it again"
            ) from error
        for name in file.keys():
            if name in tensors:
                raise ValueError(f"{name} is in {path} and in another file; keep one of them")
            shape = tuple(file.get_slice(name).get_shape())
            tensors[name] = Tensor(shape, functools.partial(file.get_tensor, name))
    return tensors


def shards(index: Path) -> list[Path]:
    """The files that a `model.safetensors.index.json` names.

    Raises:
      ValueError: if it is not an index, a file is missing, or a file lacks a tensor that the
        index places in it.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} has no weight_map; download it again")
    paths = [index.parent / name for name in sorted(set(places.values()))]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise ValueError(f"{index} names files that are not there: {', '.join(missing)}")
    for path in paths:
        placed = {name for name, file in places.items() if file == path.name}
        if lost := sorted(placed - open_safetensors([path]).keys()):
            raise ValueError(f"{path} lacks {lost[0]}, which {index.name} places in it")
    return paths


def open_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of an `.npz`; 2-byte void arrays are bfloat16, which NumPy cannot name.

    Raises:
      ValueError: for a file that is missing, truncated or something else, or holds pickles.
    """
    _refuse_pointer(path)
    tensors = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as file:
                    shape, dtype = _npy_header(file)
                if dtype.hasobject:
                    raise ValueError(f"{member} is pickled, and pickles are never opened")
                name = member.removesuffix(".npy")
                tensors[name] = Tensor(shape, functools.partial(_read_npy, path, member))
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read as .npz ({error}); if it should be one, download it again"
        ) from error
    return tensors


def _npy_header(file) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _read_npy(path: Path, member: str) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        raise ValueError(f"{member} of {path} is damaged ({error}); download it again") from error
    # big_vision writes bfloat16 as it is, and NumPy reads it back as two bytes without a name.
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


def _refuse_pointer(path: Path) -> None:
    """A clone without git-lfs has small text files in place of the weights."""
    if not path.is_file():
        raise ValueError(f"there is no {path}")
    with open(path, "rb") as file:
        if file.read(24) == b"version https://git-lfs.":
            raise ValueError(f"{path} is a git-lfs pointer, not the weights; run git lfs pull")

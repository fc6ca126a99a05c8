"""Decoded images in memory, for models that are evaluated again and again on the same ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ccl_jax.evaluation.results import Image


class PixelCache:
    """Images as a model takes them, up to a number of bytes.

    Those that come first stay. Evaluations go through their images in one order: dropping the
    oldest would drop each one just before it is asked for again.
    """

    def __init__(self, max_bytes: int):
        """Holds nothing yet.

        Args:
          max_bytes: of pixels; what does not fit is decoded anew each time.
        """
        self._room = max_bytes
        self._kept: dict[tuple, np.ndarray] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def of(
        self, image: Image, options: Mapping[str, Any], read: Callable[[Image], np.ndarray]
    ) -> np.ndarray:
        """The pixels of an image, kept or from `read`; several threads may ask.

        Args:
          image: known by its identity.
          options: of its preparation; other ones give other pixels.
          read: decodes and prepares; what it raises is passed on.

        Returns:
          What `read` gives; not to be changed.
        """
        key = (image.identity, *sorted(options.items()))
        found = self._kept.get(key)
        if found is not None:
            return found
        found = read(image)
        with self._lock:
            if key not in self._kept and found.nbytes <= self._room:
                self._kept[key] = found
                self._room -= found.nbytes
        return found

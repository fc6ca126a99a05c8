"""Folders in the published layouts, made of images of one colour."""

import io
import json
import pathlib
import tarfile

import numpy as np
import pytest
from PIL import Image

from ccl_jax.evaluation.models import EvaluatedModel


class Folder:
    """A data folder that tests fill."""

    def __init__(self, path: pathlib.Path, colours):
        self.path = path
        self._colours = colours

    def encoded(self, colour, size=(32, 32), form="PNG") -> bytes:
        file = io.BytesIO()
        Image.new("RGB", size, self._colours[colour]).save(file, form)
        return file.getvalue()

    def image(self, name, colour, size=(32, 32)):
        """A lossless image, whatever its name ends in."""
        self.bytes(name, self.encoded(colour, size))

    def bytes(self, name, data):
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def json(self, name, values):
        self.bytes(name, json.dumps(values).encode())

    def text(self, name, text):
        self.bytes(name, text.encode())

    def mask(self, name, array):
        file = io.BytesIO()
        Image.fromarray(np.asarray(array, np.uint8)).save(file, "PNG")
        self.bytes(name, file.getvalue())

    def tar(self, name, members):
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def folder(tmp_path, fake):
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
    return Folder(tmp_path, colours)


@pytest.fixture
def run(folder):
    """`run(benchmark, predictor)` -> result on the data folder."""

    def run(benchmark, predictor):
        data = benchmark.open(folder.path)
        found = benchmark.run(EvaluatedModel("m", predictor), data)
        if getattr(benchmark, "stride_share", 1) == 1:  # a part of it is enough for metrics, too
            part = benchmark.run(EvaluatedModel("m", predictor), benchmark.bounded(data, 6))
            assert part.headline == found.headline in part.metrics
        return found

    return run


@pytest.fixture
def values(run, fake):
    """`values(benchmark)` -> {metric: percent} of the predictor that knows colours."""

    def values(benchmark, predictor=None):
        found = run(benchmark, predictor or fake.Predictor())
        return {name: metric.value for name, metric in found.metrics.items()}

    return values

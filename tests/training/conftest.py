"""A WebDataset tar of coloured squares and a config that trains on it in seconds."""

import io
import json
import tarfile

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from ccl_jax.training.config import default_config

COLORS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "white": (250,) * 3}


def add_member(tar, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def square(color, size=20) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), color).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="session")
def squares_tar(tmp_path_factory):
    """24 images of one colour each, two captions an image."""
    path = tmp_path_factory.mktemp("squares") / "squares.tar"
    with tarfile.open(path, "w") as tar:
        for index in range(24):
            name = list(COLORS)[index % len(COLORS)]
            captions = [f"a {name} square number {index}", f"there is a {name} square"]
            add_member(tar, f"{index:03}.png", square(COLORS[name]))
            add_member(tar, f"{index:03}.json", json.dumps({"captions": captions}).encode())
    return str(path)


@pytest.fixture
def make_config(squares_tar):
    """Builds a config of a tiny model on the squares."""

    def make(**objective) -> ConfigDict:
        config = default_config()
        with config.unlocked():
            config.objective = objective or {"siglip": {"weight": 1.0}}
            config.data.source = {"kind": "webdataset", "path": squares_tar}
            config.model.image = {"image_size": 16, "width": 16, "depth": 1}
            config.model.text = {"width": 16, "depth": 1, "length": 8, "vocab_size": 64}
            config.evaluators = {
                "retrieval": {
                    "evaluator": "retrieval",
                    "source": {"kind": "webdataset", "path": squares_tar},
                }
            }
        config.model.preset = "tiny"
        config.data.batch_size = 16
        config.train.compilation_cache = ""  # tests leave nothing outside their folders
        config.data.phrase_group = 2
        config.data.phrase_length = 5
        config.data.phrases_per_image = 2.0
        config.optimizer.warmup_steps = 2
        config.train.steps = 6
        config.train.log_every = 1
        config.train.checkpoint_every = 3
        return config

    return make


@pytest.fixture
def batch():
    """A batch of noise for the model of `make_config`."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8),
        "text": rng.integers(0, 64, (16, 8), dtype=np.int32),
        "phrase_text": rng.integers(0, 4, (32, 5), dtype=np.int32),
        # A device's slice of phrases belongs to its slice of images; some are padding.
        "phrase_image": np.where(np.arange(32) % 4 == 3, -1, np.arange(32) // 2).astype(np.int32),
        "sample_id": np.arange(16, dtype=np.int32),
    }

"""Golden Hugging Face checkpoints, and a small one of our own for tests without them."""

import json
import types

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoints import MODELS, random_params

from ccl_jax import weights


def _golden(shared, name):
    folder = shared / "golden" / f"hf_{name}_tiny"
    return types.SimpleNamespace(
        folder=folder,
        tensors=load_file(folder / "model.safetensors"),
        config=json.loads((folder / "config.json").read_text()),
        expected=dict(np.load(folder / "expected.npz")),
        loaded=weights.load(folder),
    )


@pytest.fixture(scope="session")
def siglip(shared):
    return _golden(shared, "siglip")


@pytest.fixture(scope="session")
def clip(shared):
    return _golden(shared, "clip")


@pytest.fixture(params=["siglip", "clip"])
def golden(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session", params=["siglip", "clip"])
def model(request):
    return MODELS[request.param]


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny SigLIP checkpoint on disk; `change` rewrites its tensors."""
    folder = tmp_path / "checkpoint"
    params = random_params(MODELS["siglip"])
    weights.save(folder, params, MODELS["siglip"])
    file = folder / "model.safetensors"

    def change(edit):
        tensors = load_file(file)
        edit(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return types.SimpleNamespace(folder=folder, file=file, params=params, change=change)

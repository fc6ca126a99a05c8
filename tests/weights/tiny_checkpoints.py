"""Small models, their parameters, and what the tests compare of them."""

import functools
import json

import jax
import numpy as np
from flax import traverse_util

from ccl_jax.models.image_tower import ImageTower
from ccl_jax.models.presets import build_model
from ccl_jax.weights.mapping import parameter_shapes

TOWER = {"width": 8, "depth": 2, "heads": 2, "mlp_dim": 12}
IMAGE = TOWER | {"image_size": 16, "patch_size": 4}
TEXT = TOWER | {"vocab_size": 11, "length": 6}
MODELS = {
    "siglip": {"image": IMAGE | {"pool": "map"}, "text": TEXT | {"pool": "last"}},
    "clip": {
        "image": IMAGE | {"pool": "cls", "embed_dim": 6, "activation": "quick_gelu"},
        "text": TEXT | {"pool": "eot", "eot_id": 10, "embed_dim": 6, "activation": "quick_gelu"},
    },
}


def random_params(model, seed=0):
    rng = np.random.default_rng(seed)
    flat = {
        path: np.float32(rng.normal(size=shape))
        for path, shape in sorted(parameter_shapes(model).items())
    }
    return traverse_util.unflatten_dict(flat, sep="/")


def flat(params):
    return traverse_util.flatten_dict(params, sep="/")


def assert_identical(found, expected):
    """Two trees or dicts of float32 arrays, equal to the bit."""
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float32, name
        np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)


@functools.cache
def _program(model):
    """Everything a checkpoint's outputs can be compared in; compiled once for equal models."""
    model = json.loads(model)
    towers = build_model(model, eot_id=0)
    tower = ImageTower(**model["image"])

    def outputs(params, pixels, ids):
        embeddings = towers.apply({"params": params}, pixels, ids, image_tokens=True)
        features = tower.apply({"params": params["image_tower"]}, pixels, tokens=True)
        return embeddings, features

    return jax.jit(outputs)


def run(checkpoint, expected):
    """Embeddings and image features of a checkpoint for the golden inputs."""
    pixels = expected["pixel_values_nchw"].transpose(0, 2, 3, 1)
    program = _program(json.dumps(checkpoint.model, sort_keys=True))
    return program(checkpoint.params, pixels, expected["input_ids"].astype(np.int32))

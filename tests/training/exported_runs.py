"""Runs as training leaves them, made without training, and tokenizers for them."""

import json
import types

import jax
import numpy as np
from flax import traverse_util

from ccl_jax import weights
from ccl_jax.data.text import Tokenizer
from ccl_jax.data.text_ids import swap_ids
from ccl_jax.training import config as configs
from ccl_jax.training import pretrained
from ccl_jax.training.checkpoints import Checkpoints
from ccl_jax.training.sharding import create_mesh
from ccl_jax.training.step import create_trainer

CAPTIONS = [
    "a red cube and a blue ball",
    "a green ball, left of the cube",
    "Blue! and two yellow cones behind them",
    "the small cylinder is right of a purple pyramid",
]
METRICS = {"retrieval/image to text R@1": 51.25, "retrieval/text to image R@1": 49.0}


def make_tokenizer(end=2):
    """64 tokens learnt on the captions; the end-of-text token has the id `end`."""
    tokenizer = Tokenizer.train(CAPTIONS, 64)
    assert tokenizer.vocab_size == 64
    return tokenizer if end == 2 else swap_ids(tokenizer, 2, end)


def make_run(folder, config, tokenizer, *, metrics=None, name=""):
    """A checkpoint with random parameters, or those of `init_from`, and all files beside it."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(configs.to_json(config)))
    single = pretrained.settle(configs.run_configs(config)[name], str(place))
    pretrained.write_settled(single, str(place))
    tokenizer.save(str(place / "tokenizer"))
    mesh = create_mesh()
    trainer = create_trainer(single, mesh, eot_id=tokenizer.eot_id)
    # Nothing is compiled, and no bias is zero.
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda x: np.asarray(rng.normal(scale=0.5, size=x.shape), x.dtype),
        jax.eval_shape(trainer.init),
    )
    if single.init_from:
        bias = single.model.init_bias
        state = state.replace(params=weights.load(single.init_from, init_bias=bias).params)
    state = state.replace(step=np.int32(6))
    checkpoints = Checkpoints(str(place))
    checkpoints.save(state)
    checkpoints.close()
    if metrics:
        (place / "results.json").write_text(json.dumps({"metrics": metrics, "step": 6}))
    params = jax.tree.map(np.asarray, state.params)
    return types.SimpleNamespace(folder=str(folder), config=single, params=params)


def assert_identical(found, expected):
    """Two trees of arrays, equal to the bit."""
    found, expected = (traverse_util.flatten_dict(tree, sep="/") for tree in (found, expected))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)

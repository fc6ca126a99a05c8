"""configs/pacl_clip_b16.py: its embedder, and a small run of it from a CLIP checkpoint."""

import importlib.util
import json
import math
import pathlib
import tarfile

import jax
import numpy as np
import pytest

from ccl_jax import weights
from ccl_jax.training import loop, parameters, sharding
from ccl_jax.training.optimizer import trainable_paths
from ccl_jax.training.step import create_trainer
from ccl_jax.weights.mapping import parameter_shapes
from tests.training.conftest import add_member, square
from tests.training.exported_runs import CAPTIONS, make_tokenizer

PATH = pathlib.Path(__file__).parents[1] / "configs" / "pacl_clip_b16.py"
TOWER = {"width": 16, "depth": 1, "heads": 2, "activation": "quick_gelu", "embed_dim": 12}
CLIP = {
    "image": TOWER | {"image_size": 16, "patch_size": 8, "pool": "cls", "norm_eps": 1e-5},
    "text": TOWER | {"vocab_size": 64, "length": 12, "pool": "eot", "eot_id": 63, "norm_eps": 1e-5},
}


def get_config(arg=""):
    spec = importlib.util.spec_from_file_location("pacl_clip_b16", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def test_the_embedder_is_that_of_the_paper_and_all_that_is_trained():
    config = get_config()
    trainer = create_trainer(config, sharding.create_mesh(jax.devices()[:1]), eot_id=2)
    shapes = jax.eval_shape(trainer.init).params
    sizes = {path: math.prod(x.shape) for path, x in parameters.flatten(shapes).items()}
    trained = {path for path in trainable_paths(config.optimizer, shapes)}
    assert trained == {path for path in sizes if "_tower/" not in path}
    # "About 1.05 M parameters for B/16": three linear layers with biases.
    assert sum(sizes[path] for path in trained if path.startswith("embedder/")) == (
        2 * (768 * 512 + 512) + 512 * 512 + 512
    )
    assert config.train.steps == 73_242  # ten epochs of thirty million in batches of 4096


@pytest.mark.slow
def test_a_small_run_starts_from_clip_and_trains_the_embedder_from_a_store(tmp_path):
    rng = np.random.default_rng(0)
    made = {
        path: np.float32(rng.normal(scale=0.2, size=shape))
        for path, shape in sorted(parameter_shapes(CLIP).items())
    }
    made["log_scale"] = np.float32(math.log(50))
    weights.save(tmp_path / "clip", parameters.unflatten(made), CLIP)
    make_tokenizer(end=63).save(str(tmp_path / "tokenizer"))
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        for index in range(20):
            add_member(tar, f"{index:02}.png", square(tuple(rng.integers(0, 256, 3)), 20))
            add_member(tar, f"{index:02}.txt", CAPTIONS[index % 4].encode())

    config = get_config("tiny")
    with config.unlocked():
        config.model.image, config.model.text = {}, {}
        config.data.source = {"kind": "webdataset", "path": str(tmp_path / "data.tar")}
        config.evaluators = {
            "retrieval": {"evaluator": "retrieval", "source": config.data.source.to_dict()}
        }
    config.init_from = str(tmp_path / "clip")
    config.data.tokenizer = str(tmp_path / "tokenizer")
    config.tower_store.folder = str(tmp_path / "store")
    config.train.log_every = 1
    loop.run(config, str(tmp_path / "run"))

    found = parameters.flatten(loop.load_predictor(config, str(tmp_path / "run")).params)
    for path, value in made.items():
        if "_tower/" in path:
            np.testing.assert_array_equal(found[path], value, err_msg=path)
    assert any(path.startswith("embedder/") for path in found)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    history = [json.loads(line) for line in lines]
    assert [line["step"] for line in history] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(line["loss"]) and line["gradient_norm"] > 0 for line in history)
    assert history[0]["scale"] == np.float32(50) or abs(history[0]["scale"] - 50) < 1
    # 4 patches of width 16 in bfloat16, the type that CLIP computes in here.
    store = json.loads((tmp_path / "store" / "store.json").read_text())
    assert store["records"] == 20 and store["made_of"]["model"]["dtype"] == "bfloat16"

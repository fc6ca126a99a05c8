"""What a model card says of how a run was measured."""

import pytest

from ccl_jax.training.model_card import Trained, model_card

SIZES = {"hidden_size": 16, "num_hidden_layers": 1}
HF_CONFIG = {
    "architectures": ["SiglipModel"],
    "model_type": "siglip",
    "vision_config": SIZES | {"image_size": 16, "patch_size": 8},
    "text_config": SIZES | {"vocab_size": 64, "max_position_embeddings": 8},
}


def test_evaluators_with_and_without_a_source(make_config):
    config = make_config()
    with config.unlocked():
        config.evaluators.crepe = {
            "evaluator": "benchmarks",
            "data_dir": "/data/of/mine",
            "names": ("sugarcrepe",),
            "items": 50,
        }
    results = {"metrics": {"retrieval/recall": 1.0, "crepe/mean": 2.0}, "step": 6}
    text = model_card(Trained(config, "siglip", "", 6, results, 1_000), HF_CONFIG, [])
    row = next(line for line in text.splitlines() if line.startswith("| crepe |"))
    assert '{"data_dir": "mine", "items": 50, "names": ["sugarcrepe"]}' in row
    row = next(line for line in text.splitlines() if line.startswith("| retrieval |"))
    assert '"kind": "webdataset"' in row and "/squares" not in row


@pytest.mark.parametrize("results", [None, {"metrics": {}, "step": 0}])
def test_a_run_that_was_not_evaluated(make_config, results):
    text = model_card(Trained(make_config(), "siglip", "", 6, results, 1_000), HF_CONFIG, [])
    assert "the run has not been evaluated" in text

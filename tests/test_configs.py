"""Every config file builds, is valid, and its model initialises (shapes alone)."""

import importlib.util
import pathlib

import jax
import pytest

from ccl_jax.evaluation import runner
from ccl_jax.training import config as configs
from ccl_jax.training import loop, sharding
from ccl_jax.training.step import create_trainer

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
VARIANTS = {
    "quickstart": ["", "siglip", "ccl", "pacl", "smoke"],
    "finetune_webdataset": ["", "siglip", "tiny", "tiny,siglip"],
    "ccl_siglip_b16_cc3m": ["", "siglip", "tiny", "tiny,siglip"],
    "ccl_siglip2_b16": ["", "tiny"],
    "ccl_clip_b32": ["", "tiny"],
    "siglip_b16": ["", "tiny"],
    "pacl_clip_b16": ["", "tiny"],
}


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_config_is_tested():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(VARIANTS)


@pytest.mark.parametrize(
    ("name", "variant"), [(name, v) for name, variants in VARIANTS.items() for v in variants]
)
def test_a_config_is_valid(name, variant):
    config = load(name).get_config(variant)
    assert (
        configs.differences(
            configs.to_json(configs.from_json(configs.to_json(config))), configs.to_json(config)
        )
        == []
    )
    mesh = sharding.create_mesh(jax.devices()[:1])
    for single in configs.run_configs(config).values():
        configs.check_config(single)
        configs.pipeline_options(single)
        runner.check(single.evaluators.to_dict())
        trainer = create_trainer(single, mesh, eot_id=2)
        state = jax.eval_shape(trainer.init)
        assert state.params["log_scale"].shape == ()
        assert ("embedder" in state.params) == ("pacl" in single.objective)


@pytest.mark.parametrize("name", VARIANTS)
def test_an_unknown_variant_is_refused(name):
    with pytest.raises(ValueError, match="nonsense"):
        load(name).get_config("nonsense")


def test_the_quickstart_compares_on_the_same_data_and_model():
    config = load("quickstart").get_config()
    siglip, ccl = configs.run_configs(config).values()
    assert list(configs.run_configs(config)) == ["siglip", "ccl"]
    changed = configs.differences(configs.to_json(siglip), configs.to_json(ccl))
    assert changed and all(line.startswith("config.objective.") for line in changed)


@pytest.mark.slow
def test_webdataset_config_trains_on_flickr(shared, tmp_path):
    """Real photographs and captions, phrases extracted on the way; a few steps."""
    data = shared / "data"
    config = load("finetune_webdataset").get_config("tiny")
    config.data.source.path = str(data / "flickr8k_112_train-0000{0,1,2}.tar")
    config.evaluators.retrieval.source.path = str(data / "flickr8k_112_dev-00000.tar")
    assert config.heatmaps.source.path == config.evaluators.retrieval.source.path
    with config.unlocked():
        config.model.image = {"image_size": 32, "patch_size": 16, "width": 16, "depth": 1}
        config.model.text.update({"width": 16, "depth": 1})
        config.evaluators.retrieval.limit = 50
    config.data.batch_size = 16
    config.data.phrase_group = 2
    config.data.tokenizer_captions = 1_000
    config.optimizer.warmup_steps = 2
    config.train.steps = 4
    config.heatmaps.images = 2
    (results,) = loop.run(config, str(tmp_path)).values()
    assert set(results) == {
        f"retrieval/{way}_recall@{k}"
        for way in ("image_to_text", "text_to_image")
        for k in (1, 5, 10)
    }
    assert (tmp_path / "heatmaps.png").stat().st_size > 10_000

"""The recipes: what they promise, the values of the published one, and a tiny run of each."""

import json
import shutil

import jax
import pytest

from ccl_jax.models.presets import PRESETS, build_model
from ccl_jax.training import config as configs
from ccl_jax.training import loop, optimizer, parameters, pretrained
from ccl_jax.training.step import initial_params
from tests.test_configs import load

RECIPES = ["ccl_siglip_b16_cc3m", "ccl_siglip2_b16", "ccl_clip_b32", "siglip_b16"]


def flat(config, prefix=""):
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_the_published_recipe_is_the_published_one():
    """reference/ccl.md, "Recipe (code)" and "Losses (code)"."""
    config = load("ccl_siglip_b16_cc3m").get_config()
    values = dict(flat(configs.to_json(config)))
    expected = {
        "objective.siglip.weight": 1.0,
        "objective.npc.weight": 1.0,
        "objective.npc.duplicates": "negative",
        "objective.xac.weight": 0.01,
        "objective.xac.sharpness": 1.0,
        "data.batch_size": 96 * 8,
        "data.crop_scale": [0.9, 1.0],
        "data.transform": "random_resized_crop",
        "data.resample": "bicubic",
        "data.mean": [0.5] * 3,
        "data.std": [0.5] * 3,
        "data.phrase_length": 64,
        "data.source.caption_fields": ["shortLLA_captions"],
        "optimizer.learning_rate": 1e-5,
        "optimizer.b1": 0.9,
        "optimizer.b2": 0.98,
        "optimizer.eps": 1e-6,
        "optimizer.weight_decay": 0.1,
        "optimizer.warmup_steps": 50,
        "optimizer.clip_norm": 0.0,
        "optimizer.max_scale": 100.0,
        "optimizer.frozen": "",
        "train.steps": 18_380,
        "model.dtype": "bfloat16",
        "lora.rank": 0,
    }
    assert {key: values[key] for key in expected} == expected
    # Five epochs, the last batch of each left out or not.
    assert config.train.steps == pytest.approx(5 * 2_823_019 / 768, abs=5)
    assert PRESETS["B/16"]["text"]["length"] == 64

    # Decay of everything with two dimensions and more, of nothing else.
    model = build_model(config.model.to_dict(), eot_id=2)
    shapes = jax.eval_shape(lambda: initial_params(config, model))
    decays = optimizer.weight_decays(config.optimizer, shapes)
    for path, value in parameters.flatten(shapes).items():
        assert decays[path] == (0.1 if value.ndim > 1 else 0.0), path
    assert set(optimizer.trainable_paths(config.optimizer, shapes)) == set(decays)


def test_the_baseline_differs_in_the_objective_alone():
    both = (configs.to_json(load("ccl_siglip_b16_cc3m").get_config(a)) for a in ("", "siglip"))
    changed = configs.differences(*both)
    assert changed and all(line.startswith("config.objective.") for line in changed)


def test_clip_starts_its_new_bias_where_it_can_learn():
    config = load("ccl_clip_b32").get_config()
    shapes = {"bias": 0.0, "log_scale": 0.0, "image_tower": {"bias": 0.0}}
    shapes = jax.tree.map(lambda _: jax.ShapeDtypeStruct((), "float32"), shapes)
    found = optimizer.lr_multipliers(config.optimizer, shapes)
    assert found == {"bias": 1000.0, "log_scale": 1.0, "image_tower/bias": 1.0}


@pytest.mark.parametrize(
    ("name", "golden"), [("ccl_siglip_b16_cc3m", "siglip"), ("ccl_clip_b32", "clip")]
)
def test_towers_and_images_come_from_the_checkpoint(name, golden, shared, tmp_path):
    folder = tmp_path / golden
    shutil.copytree(shared / "golden" / f"hf_{golden}_tiny", folder)
    kind = {"siglip": "SiglipImageProcessor", "clip": "CLIPImageProcessor"}[golden]
    processor = {
        "image_processor_type": kind,
        "size": {"height": 32, "width": 32} if golden == "siglip" else {"shortest_edge": 32},
        "crop_size": 32,
        "resample": 3,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    config = load(name).get_config()
    config.init_from = str(folder)
    found = pretrained.settle(config, str(tmp_path / "run"))
    configs.check_config(found)
    assert (found.model.image.width, found.model.image.image_size) == (32, 32)
    assert found.model.image.pool == PRESETS[config.model.preset]["image"]["pool"]
    assert tuple(found.data.mean) == (0.4, 0.5, 0.6)
    assert found.data.phrase_length == (found.model.text.length if golden == "siglip" else 16)


@pytest.mark.parametrize("name", RECIPES)
def test_tiny_is_the_recipe_but_for_its_size(name):
    whole, tiny = (load(name).get_config(arg) for arg in ("", "tiny"))
    kept = ("objective", "lora", "optimizer", "model")
    for part in kept:
        before, after = (dict(flat(c[part].to_dict())) for c in (whole, tiny))
        changed = {key for key in before.keys() & after.keys() if before[key] != after[key]}
        assert changed <= {"learning_rate", "warmup_steps", "preset"}
    preset = PRESETS[whole.model.preset]
    for part in ("image", "text"):
        for field in ("pool", "activation", "norm_eps"):
            assert tiny.model[part].get(field) == preset[part].get(field)
    model = build_model(tiny.model.to_dict(), eot_id=2)
    shapes = jax.eval_shape(lambda: initial_params(tiny, model))
    assert sum(x.size for x in jax.tree.leaves(shapes)) < 150_000
    assert tiny.data.source.kind == "scenes" and not tiny.init_from


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_tiny_runs_from_end_to_end(name, tmp_path, tiny_scenes):
    config = load(name).get_config("tiny")
    with config.unlocked():
        for source in (config.data.source, config.evaluators.retrieval.source):
            source.data_dir = tiny_scenes
    (results,) = loop.run(config, str(tmp_path)).values()
    assert all(0 <= value <= 100 for value in results.values()) and results
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]
    assert losses and all(loss == loss for loss in losses)
    assert (tmp_path / "report.md").exists()


@pytest.fixture(scope="module")
def tiny_scenes(tmp_path_factory):
    """One folder for the scenes, so that they are drawn once."""
    return str(tmp_path_factory.mktemp("scenes"))

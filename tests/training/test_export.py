"""Runs as Hugging Face folders: to the bit and back, the card, and what is refused."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from ccl_jax import weights
from ccl_jax.data.image_options import read_image_options
from ccl_jax.data.text_formats import open_tokenizer
from ccl_jax.models.presets import build_model
from ccl_jax.training import loop
from ccl_jax.training.export import export

from .exported_runs import CAPTIONS, METRICS, assert_identical, make_run, make_tokenizer

POOLS = {"siglip": ("map", "last"), "clip": ("cls", "eot")}


@pytest.fixture
def make_family(make_config):
    """Builds the config of a tiny model that SiglipModel or CLIPModel can express."""

    def make(family, **objective):
        config = make_config(**objective)
        with config.unlocked():
            for part, pool in zip(("image", "text"), POOLS[family], strict=True):
                config.model[part].pool = pool
                if family == "clip":
                    config.model[part].embed_dim = 12
        return config

    return make


@pytest.fixture
def siglip_run(make_family, tmp_path):
    config = make_family("siglip", siglip={"weight": 1.0}, xac={"weight": 0.01, "sharpness": 10.0})
    return make_run(tmp_path / "run", config, make_tokenizer(), metrics=METRICS)


def leaf(tree, path):
    """The array at a path of a tree."""
    for name in path:
        tree = tree[name]
    return tree


def embed(params, model, tokenizer):
    """Text embeddings of the captions."""
    towers = build_model(model, eot_id=tokenizer.eot_id)
    rows = tokenizer(CAPTIONS, model["text"]["length"])
    return np.asarray(jax.jit(lambda p, x: towers.apply({"params": p}, text=x).text)(params, rows))


@pytest.mark.parametrize("family", ["siglip", "clip"])
def test_golden_in_out_in_is_bit_identical(family, shared, make_config, tmp_path):
    golden = shared / "golden" / f"hf_{family}_tiny"
    config = make_config()
    with config.unlocked():
        config.model.image, config.model.text = {}, {}
    config.init_from, config.data.image_options = str(golden), "config"
    # The checkpoint of CLIP pools at 63.
    tokenizer = make_tokenizer(end=63 if family == "clip" else 2)
    run = make_run(tmp_path / "run", config, tokenizer)
    out = tmp_path / "out"
    assert export(run.folder, str(out)).notes == ()
    assert_identical(load_file(out / "model.safetensors"), load_file(golden / "model.safetensors"))
    again = weights.load(out, init_bias=config.model.init_bias)
    assert again.model == weights.load(golden).model
    assert_identical(again.params, run.params)
    # And once more, as a run that starts from what was written, its tokenizer included.
    config.init_from = str(out)
    second = make_run(tmp_path / "second", config, open_tokenizer(str(out)))
    export(second.folder, str(tmp_path / "again"))
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_files_are_those_of_the_run(siglip_run, tmp_path):
    out = tmp_path / "made" / "here"
    found = export(siglip_run.folder, str(out))
    assert (found.architecture, found.step, found.notes) == ("SiglipModel", 6, ())
    assert sorted(os.listdir(out)) == [
        "README.md",
        "ccl_tokenizer.json",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sorted(os.listdir(out.parent)) == ["here"]
    text = json.loads((out / "config.json").read_text())["text_config"]
    assert [text[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [None, 2, 0]
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert (settings["model_max_length"], settings["model_input_names"]) == (8, ["input_ids"])
    options, data = read_image_options(str(out)), siglip_run.config.data
    assert (options.size, options.transform, options.resample) == (16, "squash", "bicubic")
    assert (options.mean, options.std) == (tuple(data.mean), tuple(data.std))
    assert_identical(weights.load(out).params, siglip_run.params)
    np.testing.assert_array_equal(
        open_tokenizer(str(out))(CAPTIONS, 8), make_tokenizer()(CAPTIONS, 8)
    )


def test_an_end_of_text_of_2_moves_and_embeddings_stay(make_family, tmp_path):
    config = make_family("clip", clip={"weight": 1.0})
    tokenizer = make_tokenizer()
    run = make_run(tmp_path / "run", config, tokenizer)
    out = tmp_path / "out"
    assert export(run.folder, str(out)).architecture == "CLIPModel"
    again, moved = weights.load(out), open_tokenizer(str(out))
    assert again.model["text"]["eot_id"] == moved.eot_id == 63
    before = build_model(run.config.model.to_dict(), eot_id=2)
    expected = embed(run.params, {"image": before.image, "text": before.text}, tokenizer)
    np.testing.assert_array_equal(embed(again.params, again.model, moved), expected)
    # Another run can start from it; without our settings file, too.
    (out / "ccl_tokenizer.json").unlink()
    assert open_tokenizer(str(out)).eot_id == 63


def test_the_card_says_what_the_run_says(siglip_run, tmp_path):
    export(siglip_run.folder, str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    head, body = card.split("---\n")[1:3]
    for line in ("license: other", "library_name: transformers", "- siglip", "- xac"):
        assert line in head
    assert "| xac | 0.01 | sharpness = 10.0 |" in body
    assert '"kind": "webdataset", "path": "squares.tar"' in body
    assert "| image to text R@1 | 51.2 |" in body  # percent, one decimal
    assert "step 6" in body and "| steps | 6 of 6 |" in body
    assert "python -m ccl_jax.tools.export --workdir DIR --out OUT\n" in body
    assert str(tmp_path) not in card
    os.remove(os.path.join(siglip_run.folder, "results.json"))
    export(siglip_run.folder, str(tmp_path / "second"))
    assert "has not been evaluated" in (tmp_path / "second" / "README.md").read_text()


def test_the_patch_embedder_lies_beside(make_family, tmp_path):
    config = make_family("siglip", pacl={"weight": 1.0})
    config.model.patch_embedder = True
    run = make_run(tmp_path / "run", config, make_tokenizer())
    out = tmp_path / "out"
    (note,) = export(run.folder, str(out)).notes
    assert "patch_embedder.safetensors" in note and note in (out / "README.md").read_text()
    beside = load_file(out / "patch_embedder.safetensors")
    np.testing.assert_array_equal(beside["up/kernel"], run.params["embedder"]["up"]["kernel"])
    assert_identical(weights.load(out).params, run.params | {"embedder": {}})


def test_what_clip_has_no_place_for_is_told(make_family, tmp_path):
    run = make_run(tmp_path / "run", make_family("clip"), make_tokenizer())
    (note,) = export(run.folder, str(tmp_path / "out")).notes
    assert "CLIPModel has no bias" in note and str(float(run.params["bias"])) in note


def test_low_rank_updates_and_averages_are_in_the_weights(make_family, tmp_path):
    config = make_family("siglip")
    config.lora.rank, config.train.ema_decay = 2, 0.9
    run = make_run(tmp_path / "run", config, make_tokenizer())
    export(run.folder, str(tmp_path / "out"))
    found = weights.load(tmp_path / "out").params
    assert_identical(found, loop.load_predictor(run.config, run.folder).params)
    kernel = ("text_tower", "block_0", "mlp", "up", "kernel")
    assert not np.array_equal(leaf(found, kernel), leaf(run.params, kernel))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| rank 2 |" in card and "| moving average, decay 0.9 |" in card


def test_one_of_several_runs(make_family, tmp_path):
    config = make_family("siglip")
    with config.unlocked():
        config.runs = {"first": {"objective": {"siglip": {}}}, "second": {"data": {}}}
        config.run_order = ("first", "second")
    run = make_run(tmp_path / "run", config, make_tokenizer(), name="second")
    with pytest.raises(ValueError, match="several runs; choose one by --run: first, second"):
        export(run.folder, str(tmp_path / "out"))
    with pytest.raises(ValueError, match="no run 'third'; choose one by --run: first, second"):
        export(run.folder, str(tmp_path / "out"), "third")
    with pytest.raises(ValueError, match="no checkpoint in .*first"):
        export(run.folder, str(tmp_path / "out"), "first")
    assert not (tmp_path / "out").exists() and not (tmp_path / "run" / "first").exists()
    export(run.folder, str(tmp_path / "out"), "second")
    assert "--run second" in (tmp_path / "out" / "README.md").read_text()
    # A run's own folder is a run as well.
    export(os.path.join(run.folder, "second"), str(tmp_path / "alone"))
    with pytest.raises(ValueError, match="one run without a name; leave --run x out"):
        export(os.path.join(run.folder, "second"), str(tmp_path / "other"), "x")


def test_a_folder_that_is_taken_or_holds_no_run(siglip_run, tmp_path):
    (tmp_path / "taken").mkdir()
    export(siglip_run.folder, str(tmp_path / "taken"))  # empty: free
    for name in ("taken", "taken/README.md"):
        with pytest.raises(ValueError, match="is not an empty folder; choose another --out"):
            export(siglip_run.folder, str(tmp_path / name))
    with pytest.raises(ValueError, match="holds no run"):
        export(str(tmp_path / "nothing"), str(tmp_path / "out"))
    shutil.rmtree(os.path.join(siglip_run.folder, "checkpoints"))
    with pytest.raises(ValueError, match="no checkpoint in"):
        export(siglip_run.folder, str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": {"pool": "eot"}}, "config.model.image.pool and config.model.text.pool"),
        ({"image": {"patch_stride": 4}}, "image.patch_stride 4"),
        ({"data": {"eval_transform": "random_resized_crop"}}, "config.data.eval_transform"),
        ({"image": {"pool": "cls"}, "text": {"pool": "eot", "eot_id": 5}}, "pools at token 5"),
    ],
)
def test_what_cannot_be_expressed_is_refused(change, message, make_family, tmp_path):
    config = make_family("siglip")
    with config.unlocked():
        for part in ("image", "text"):
            config.model[part].update(change.get(part, {}))
        config.data.update(change.get("data", {}))
    run = make_run(tmp_path / "run", config, make_tokenizer())
    with pytest.raises(ValueError, match=message):
        export(run.folder, str(tmp_path / "out"))
    assert sorted(os.listdir(tmp_path)) == ["run"]

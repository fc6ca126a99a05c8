"""Models by name: runs, checkpoints, what they lack; and the evaluation of two of them."""

import csv
import json
import os
import shutil

import jax
import numpy as np
import pytest

from ccl_jax.data.text import Tokenizer
from ccl_jax.data.text_ids import swap_ids
from ccl_jax.training import export, loop, serving


@pytest.fixture(autouse=True)
def quick():
    """The models are small: compiling is what takes long."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def trained():
    return Tokenizer.train(["a cat and a dog", "two birds on a red car", "the sea"], 62)


@pytest.fixture
def siglip(shared, tmp_path, trained):
    """A SigLIP checkpoint of Hugging Face's with a tokenizer of its own."""
    folder = tmp_path / "siglip"
    shutil.copytree(shared / "golden" / "hf_siglip_tiny", folder)
    os.chmod(folder, 0o755)
    swap_ids(trained, 0, 1).save(str(folder))  # its config pads with 1
    return str(folder)


def test_a_checkpoint_gives_the_embeddings_of_transformers(siglip, shared):
    predictor = serving.open_model(siglip, batch_size=8)
    expected = np.load(shared / "golden/hf_siglip_tiny/expected.npz")
    pixels = expected["pixel_values_nchw"].transpose(0, 2, 3, 1)
    apply = jax.jit(lambda p, x, t: predictor.model.apply({"params": p}, image=x, text=t))
    embedded = apply(predictor.params, pixels, expected["input_ids"])
    np.testing.assert_allclose(embedded.image, expected["image_embeds"], atol=1e-5)
    np.testing.assert_allclose(embedded.text, expected["text_embeds"], atol=1e-5)
    assert predictor.image_options["size"] == 32 and predictor.transform == "squash"
    processor = {"image_processor_type": "SiglipImageProcessor", "image_mean": [0.1, 0.2, 0.3],
                 "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}}  # fmt: skip
    with open(os.path.join(siglip, "preprocessor_config.json"), "w", encoding="utf-8") as file:
        json.dump(processor, file)
    other = serving.open_model(siglip, batch_size=8)
    assert other.normalisation[0] == (0.1, 0.2, 0.3)
    assert other.fingerprint() != predictor.fingerprint()


def test_a_finer_stride_keeps_the_model(siglip):
    predictor = serving.open_model(siglip, batch_size=8)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    coarse = predictor.image_tokens(pixels)
    fine = serving.with_patch_stride(predictor, 4)
    assert (predictor.grid, fine.grid) == ((4, 4), (7, 7))
    assert fine.image_tokens(pixels).shape == (2, 49, coarse.shape[-1])
    same = serving.with_patch_stride(predictor, 8)
    np.testing.assert_allclose(same.image_tokens(pixels), coarse, atol=1e-5)
    np.testing.assert_allclose(fine.texts(["a cat"]), predictor.texts(["a cat"]), atol=1e-5)


def test_what_is_missing_is_said(siglip, shared, tmp_path, trained):
    with pytest.raises(ValueError, match="--tokenizer"):
        serving.open_model(str(shared / "golden/hf_siglip_tiny"))
    with pytest.raises(ValueError, match="there is no"):
        serving.open_model(str(tmp_path / "nowhere"))
    large = str(tmp_path / "large")
    Tokenizer.train([f"word{i} other{i}" for i in range(300)], 500).save(large)
    with pytest.raises(ValueError, match="the tokenizer has"):
        serving.open_model(siglip, tokenizer=large)
    clip = shared / "golden/hf_clip_tiny"
    trained.save(str(tmp_path / "trained"))
    with pytest.raises(ValueError, match="pools at id 63"):
        serving.open_model(str(clip), tokenizer=str(tmp_path / "trained"))
    with pytest.raises(ValueError, match="dtype"):
        serving.open_model(siglip, dtype="float16")
    os.makedirs(tmp_path / "run")
    with open(tmp_path / "run" / "config.json", "w", encoding="utf-8") as file:
        json.dump({"objective": {}, "runs": {}, "run_order": []}, file)
    with pytest.raises(ValueError, match="no checkpoint"):
        serving.open_model(str(tmp_path / "run"))


@pytest.mark.slow
def test_a_run_its_export_and_one_of_several(make_config, tmp_path):
    config = make_config(siglip={"weight": 1.0}, pacl={"weight": 1.0})
    config.model.patch_embedder = True
    config.train.steps = 3
    workdir = str(tmp_path / "run")
    loop.run(config, workdir)
    run = serving.open_model(workdir)
    out = str(tmp_path / "exported")
    export.export(workdir, out)
    assert os.path.exists(os.path.join(out, serving.EMBEDDER_FILE))
    assert serving.EMBEDDER_FILE == export.EMBEDDER_FILE
    exported = serving.open_model(out)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    np.testing.assert_allclose(exported.images(pixels), run.images(pixels), atol=1e-5)
    np.testing.assert_allclose(
        exported.image_tokens(pixels, "patch_emb"), run.image_tokens(pixels), atol=1e-5
    )
    texts = ["a red square", "white"]
    np.testing.assert_allclose(exported.texts(texts), run.texts(texts), atol=1e-5)
    # A workdir of several runs names them.
    both = tmp_path / "both"
    shutil.copytree(workdir, both / "one")
    with open(both / "config.json", "w", encoding="utf-8") as file:
        values = json.loads((tmp_path / "run" / "config.json").read_text())
        json.dump(values | {"runs": {"one": {}}, "run_order": ["one"]}, file)
    with pytest.raises(ValueError, match="both/one"):
        serving.open_model(str(both))
    np.testing.assert_array_equal(
        serving.open_model(str(both / "one")).texts(texts), run.texts(texts)
    )


def test_two_models_side_by_side(siglip, shared, tmp_path, monkeypatch, trained):
    """Other tokenizers, widths and heads; the second time nothing is embedded."""
    clip = tmp_path / "clip"
    shutil.copytree(shared / "golden" / "hf_clip_tiny", clip)
    os.chmod(clip, 0o755)
    config = json.loads((clip / "config.json").read_text())
    config["text_config"]["bos_token_id"] = None  # ours has no start of text
    os.chmod(clip / "config.json", 0o644)
    (clip / "config.json").write_text(json.dumps(config))
    full = Tokenizer.train([f"word{i} cat dog" for i in range(60)], 64)
    assert full.vocab_size == 64
    swap_ids(full, full.eot_id, 63).save(str(clip))
    arguments = ([siglip, str(clip)], ["sugarcrepe", "winoground"], str(shared / "data"))
    options = {"cache_dir": str(tmp_path / "cache"), "batch_size": 64}
    text = serving.evaluate(*arguments, output=str(tmp_path / "out"), **options)
    assert "| clip - siglip |" in text and "winoground: no Winoground annotations" in text
    values = json.loads((tmp_path / "out/results.json").read_text())
    assert values["models"] == ["siglip", "clip"]
    cell = values["benchmarks"]["sugarcrepe"]["metrics"]["mean"]["models"]["clip"]
    assert 0 < cell["coverage"] < 0.2 and cell["low"] <= cell["value"] <= cell["high"]
    with open(tmp_path / "out/items/sugarcrepe.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == cell["items"]

    def refuse(*_):
        raise AssertionError("embedded again")

    monkeypatch.setattr("ccl_jax.evaluation.embeddings.Predictor._batched", refuse)
    again = serving.evaluate(*arguments, **options)
    assert again.split("## Settings")[0] == text.split("## Settings")[0]


def test_labels_are_as_short_as_they_can_be():
    assert serving._labels(["x/a", "y/b/"]) == ["a", "b"]
    assert serving._labels(["x/a", "y/a"]) == ["x/a", "y/a"]
    assert serving._labels(["x/a", "x/a"]) == ["x/a (1)", "x/a (2)"]
    assert serving._labels(["google/siglip-base"]) == ["siglip-base"]


def test_one_tokenizer_for_all_or_one_for_each():
    with pytest.raises(ValueError, match="2 tokenizers for 3 models"):
        serving.evaluate(["a", "b", "c"], ["valse"], "x", tokenizers=["s", "t"])


def test_batches_suit_the_devices(siglip):
    assert serving.open_model(siglip).batch_size % jax.local_device_count() == 0

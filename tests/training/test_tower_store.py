"""Training from stored outputs of frozen towers is training from pixels; what a store refuses."""

import json
import os
import tarfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from ccl_jax.data.pipeline import TrainingBatches
from ccl_jax.data.sources import open_source
from ccl_jax.data.text import Tokenizer
from ccl_jax.models.presets import build_model
from ccl_jax.training import config as configs
from ccl_jax.training import loop, metrics, parameters, tower_shards, tower_storing
from ccl_jax.training.sharding import create_mesh, to_devices
from ccl_jax.training.step import abstract_state, create_trainer
from ccl_jax.training.tower_store import TowerStore
from tests.training.conftest import COLORS, add_member, square

RECORDS, BAD = 21, 7
PACL = {"pacl": {"weight": 1.0}}


@pytest.fixture(autouse=True, scope="module")
def quick():
    """The programs are small: compiling is what takes long."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def tar(tmp_path_factory):
    """Images of three sizes, one to three captions with phrases of their own; one is damaged."""
    path = tmp_path_factory.mktemp("store") / "data.tar"
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as file:
        for index in range(RECORDS):
            name = list(COLORS)[index % len(COLORS)]
            texts = [f"a {name} square number {index}", f"{name} {index} there", f"one {name}"]
            texts = texts[: 1 + index % 3]
            phrases = [
                [f"a {name} square", f"number {index}"][: 1 + index % 2],
                [],
                [f"one {name}"],
            ]
            phrases = phrases[: len(texts)]
            color = tuple(int(x) for x in rng.integers(0, 256, 3))
            image = b"<html>" if index == BAD else square(color, 16 + index % 3)
            add_member(file, f"{index:03}.png", image)
            fields = {"captions": texts, "phrases": phrases}
            add_member(file, f"{index:03}.json", json.dumps(fields).encode())
    return str(path)


_MADE = {}


def initial(model):
    """The parameters that every run of this module starts with; compiled once."""
    if model.patch_embedder not in _MADE:
        params = jax.jit(lambda: parameters.initial(model, 0))()
        _MADE[model.patch_embedder] = jax.tree.map(np.asarray, params)
    return _MADE[model.patch_embedder]


class Setting:
    """A run's parts as the loop puts them together."""

    def __init__(self, config, folder=""):
        self.config = config
        config.tower_store.folder = str(folder)
        self.source = open_source(**config.data.source)
        captions = [f"a {name} square number there one" for name in COLORS]
        self.tokenizer = Tokenizer.train(captions, 64)
        self.options = configs.pipeline_options(config)
        fields = config.model.to_dict()
        fields["dtype"] = jnp.dtype(fields["dtype"])
        self.model = build_model(fields, eot_id=self.tokenizer.eot_id)

    def batches(self, params=None):
        """From the store if there is a folder, else from pixels."""
        parts = self.source, self.tokenizer, self.options
        if not self.config.tower_store.folder:
            return TrainingBatches(*parts)
        params = params or initial(self.model)
        return tower_storing.stored_batches(self.config, self.model, params, *parts)

    def train(self, steps):
        """Metrics of each step, and the parameters after the last.

        From pixels on one device, from the store on two.
        """
        mesh = create_mesh(jax.devices()[: 2 if self.config.tower_store.folder else 1])
        trainer = create_trainer(self.config, mesh, eot_id=self.tokenizer.eot_id)
        # As `trainer.init`, which takes long to compile: AdamW starts at zeros.
        state = jax.tree.map(
            lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding),
            abstract_state(trainer),
        )
        state = trainer.start(state, initial(self.model))
        history = []
        stream = self.batches(state.params).batches(0, steps)
        for batch in to_devices(stream, mesh):
            state, values = trainer.step(state, batch)
            history.append({name: float(value) for name, value in values.items()})
        return history, parameters.flatten(jax.tree.map(np.asarray, state.params))


@pytest.fixture
def make_setting(make_config, tar):
    """Builds a `Setting` of PACL on frozen towers, which reads all that can be stored."""

    def make(folder="", objective=None, **changes):
        objective = objective or {
            "pacl": {"weight": 1.0},
            "npc": {"weight": 0.5, "duplicates": "positive"},
            "xac": {"weight": 0.5, "duplicates": "positive"},
        }
        config = make_config(**objective)
        with config.unlocked():
            config.data.source = {"kind": "webdataset", "path": tar}
        config.model.patch_embedder = "pacl" in objective
        config.optimizer.frozen = "towers"
        config.data.transform = "center_crop"
        config.data.max_bad_share = 0.1
        config.data.phrases_per_image = 1.5
        config.tower_store.dtype = "float32"
        config.tower_store.images_per_shard = 6
        config.tower_store.batch_size = 8
        for name, value in changes.items():
            part, _, field = name.partition("__")
            config[part][field] = value
        return Setting(config, folder)

    return make


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of a store that the first test that asks makes, and no test changes."""
    return tmp_path_factory.mktemp("made") / "store"


def shards(folder):
    return sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))


def modified(folder):
    return {name: (folder / name).stat().st_mtime_ns for name in shards(folder)}


def assert_same_training(pixels, stored):
    for left, right in zip(pixels[0], stored[0], strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert right[name] == pytest.approx(value, rel=2e-5, abs=1e-6), name
    for path, value in pixels[1].items():
        # Adam divides small gradients by their own size, rounding included.
        np.testing.assert_allclose(stored[1][path], value, atol=1e-4, err_msg=path)


def test_training_from_the_store_is_training_from_pixels(make_setting, tmp_path, capsys):
    pixels, stored = make_setting("", PACL).train(4), make_setting(tmp_path, PACL).train(4)
    assert "21 of 21 images stored" in capsys.readouterr().err
    assert shards(tmp_path) == [f"outputs-{i:05}-of-00004.safetensors" for i in range(4)]
    assert_same_training(pixels, stored)
    start = parameters.flatten(initial(make_setting().model))
    for path, value in stored[1].items():
        moved = not np.array_equal(value, start[path])
        assert moved == path.startswith(("embedder/", "log_scale")), path
    tensors = load_file(tmp_path / shards(tmp_path)[0])
    assert tensors.keys() & {"patches", "image", "image_tokens", "text", "phrase"} == {
        "patches",
        "text",
    }


@pytest.mark.slow
def test_training_reads_every_kind_of_output(make_setting, folder):
    assert_same_training(make_setting().train(4), make_setting(folder).train(4))


def test_batches_are_those_of_the_pipeline(make_setting, folder):
    """Order, captions and phrases over several epochs, around the bad record, from any step."""
    pixels, stored = make_setting().batches(), make_setting(folder).batches()
    whole = list(stored.batches(0, 6))
    for left, right in zip(pixels.batches(0, 6), whole, strict=True):
        assert "image" not in right
        for name in ("text", "sample_id", "phrase_text", "phrase_image"):
            np.testing.assert_array_equal(left[name], right[name], err_msg=name, strict=True)
    assert stored.skipped == pixels.skipped == {"unreadable image": 1}
    assert stored.dropped_phrases == pixels.dropped_phrases > 0
    assert BAD not in np.concatenate([batch["sample_id"] for batch in whole])
    # Another process that goes on at step 4.
    for left, right in zip(make_setting(folder).batches().batches(4, 6), whole[4:], strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name, strict=True)


def test_what_is_stored_is_what_the_towers_give(make_setting, folder):
    """Outputs of single records and captions, by the model itself."""
    setting = make_setting(folder)
    (batch,) = setting.batches().batches(0, 1)
    (pixels,) = make_setting().batches().batches(0, 1)
    params = initial(setting.model)
    image = pixels["image"].astype(np.float32) / 255
    image = (image - np.float32(0.5)) / np.float32(0.5)
    model = setting.model
    found = jax.jit(
        lambda p: model.apply(
            {"params": p}, image, pixels["text"], pixels["phrase_text"], image_tokens=True,
            patch_emb=True,
        )
    )(params)  # fmt: skip
    embedder = jax.tree.map(np.asarray, params["embedder"])
    x = batch["stored_patches"]
    dense = lambda x, name: x @ embedder[name]["kernel"] + embedder[name]["bias"]  # noqa: E731
    patch_emb = dense(x, "skip") + dense(np.maximum(dense(x, "up"), 0), "down")
    np.testing.assert_allclose(patch_emb, found.patch_emb, atol=1e-5)
    for name in ("image", "image_tokens", "text"):
        np.testing.assert_allclose(batch[f"stored_{name}"], getattr(found, name), atol=1e-5)
    real = pixels["phrase_image"] >= 0
    assert 0 < real.sum() < len(real)
    np.testing.assert_allclose(batch["stored_phrase"][real], found.phrase[real], atol=1e-5)


def test_a_killed_run_goes_on_with_the_next_shard(make_setting, folder, tmp_path, monkeypatch):
    make_setting(folder).batches()
    write, there = tower_shards.save_file, []

    def kill(tensors, path, metadata):
        if len(there) == 2:
            with open(path, "wb") as file:  # in the middle of a shard
                file.write(b"half")
            raise KeyboardInterrupt
        there.append(path)
        write(tensors, path, metadata=metadata)

    with monkeypatch.context() as patch:
        patch.setattr(tower_shards, "save_file", kill)
        with pytest.raises(KeyboardInterrupt):
            make_setting(tmp_path).batches()
    assert len(shards(tmp_path)) == 2
    before = modified(tmp_path)
    make_setting(tmp_path).batches()
    assert shards(tmp_path) == shards(folder)
    for name in shards(folder):
        made, expected = (safe_open(place / name, "np") for place in (tmp_path, folder))
        assert made.metadata() == expected.metadata()
        for tensor in expected.keys():
            np.testing.assert_array_equal(made.get_tensor(tensor), expected.get_tensor(tensor))
    assert before.items() <= modified(tmp_path).items()
    (line,) = (tmp_path / "skipped-0.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == f"{BAD:03}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__transform": "squash"}, "pixels.transform: 'center_crop' -> 'squash'"),
        ({"data__mean": (0.4, 0.5, 0.5)}, r"pixels.mean: \[0.5, 0.5, 0.5\] -> \[0.4"),
        ({"data__phrase_length": 4}, "phrases.length: 5 -> 4"),
        ({"model__dtype": "bfloat16"}, "model.dtype: 'float32' -> 'bfloat16'"),
        ({"tower_store__dtype": "float16"}, "dtype: 'float32' -> 'float16'"),
        ({"objective": {"pacl": {}}}, r"outputs: \[.*\] -> \['patches', 'text'\]"),
    ],
)
def test_a_store_of_another_run_is_refused(make_setting, folder, changes, message):
    make_setting(folder).batches()
    with pytest.raises(ValueError, match=f"holds outputs of other.*{message}"):
        make_setting(folder, **changes).batches()


def test_a_store_of_other_weights_or_data_is_refused(make_setting, folder, squares_tar):
    setting = make_setting(folder)
    setting.batches()
    params = parameters.flatten(initial(setting.model))
    changed = dict(params)
    changed["text_tower/block_0/mlp/up/bias"] = changed["text_tower/block_0/mlp/up/bias"] + 1e-6
    with pytest.raises(ValueError, match=r"data \(store.model.text.weights_sha256: \S+ -> \S+\)"):
        setting.batches(parameters.unflatten(changed))
    # What is trained is no part of it.
    setting.batches(parameters.unflatten(params | {"embedder/up/bias": params["log_scale"]}))
    setting.tokenizer = Tokenizer.train(["other words"], 64)
    with pytest.raises(ValueError, match="store.text.sample_sha256"):
        setting.batches()
    with setting.config.unlocked():
        setting.config.data.source.path = squares_tar
    with pytest.raises(ValueError, match="store.source.sample_sha256.*store.records: 21 -> 24"):
        Setting(setting.config, folder).batches()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__transform": "random_resized_crop"}, "transform = 'random_resized_crop'.*center"),
        ({"optimizer__frozen": "text"}, "image tower is trained.*'towers'"),
        ({"model__patch_dropout": 0.5}, "patch_dropout = 0.5"),
        ({"tower_store__dtype": "int8"}, "dtype = 'int8'; use one of bfloat16"),
        ({"tower_store__batch_size": 0}, "batch_size = 0"),
    ],
)
def test_what_cannot_be_stored_is_refused(make_setting, changes, message):
    setting = make_setting("anywhere", **changes)
    with pytest.raises(ValueError, match=message):
        configs.check_config(setting.config)


def test_too_many_bad_records_stop_the_run(make_setting, tmp_path, tar):
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w") as file:
        for index in range(RECORDS):
            data = square((9, 9, index)) if index % 4 else b"<html>"
            add_member(file, f"{index:03}.png", data)
            add_member(file, f"{index:03}.txt", b"a square")
    setting = make_setting(tmp_path / "store", tower_store__images_per_shard=RECORDS)
    with setting.config.unlocked():
        setting.config.data.source.path = str(path)
    with pytest.raises(ValueError, match="of 21 records are unusable.*max_bad_share"):
        Setting(setting.config, tmp_path / "store").batches()


def test_damage_is_named_with_the_shard(make_setting, folder, tmp_path):
    make_setting(folder).batches()
    for name in os.listdir(folder):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    TowerStore(str(tmp_path), "data", verify=True)
    first, second = (tmp_path / name for name in shards(tmp_path)[:2])
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    TowerStore(str(tmp_path), "data")  # sizes and layout are as they were
    with pytest.raises(ValueError, match=f"damaged: {first}; delete"):
        TowerStore(str(tmp_path), "data", verify=True)
    whole = second.read_bytes()
    for cut in (whole[:-1], whole[:100], b""):
        second.write_bytes(cut)
        with pytest.raises(ValueError, match=f"{second} cannot be read.*delete it"):
            TowerStore(str(tmp_path), "data")
    second.unlink()
    with pytest.raises(ValueError, match=f"{second} is missing: start the run again"):
        TowerStore(str(tmp_path), "data")


def test_a_bfloat16_store_keeps_all_that_bfloat16_towers_give(make_setting, tmp_path):
    found = {}
    for dtype in ("bfloat16", "float32"):
        folder = tmp_path / dtype
        changes = {"model__dtype": "bfloat16", "tower_store__dtype": dtype}
        make_setting(folder, PACL, tower_store__images_per_shard=32, **changes).batches()
        found[dtype] = load_file(folder / shards(folder)[0])
    patches = found["bfloat16"]["patches"]
    assert patches.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(patches.astype(np.float32), found["float32"]["patches"])
    # Global embeddings are normalised in float32, and small.
    assert found["bfloat16"]["text"].dtype == np.float32
    np.testing.assert_array_equal(found["bfloat16"]["text"], found["float32"]["text"])


@pytest.mark.slow
def test_a_trained_text_tower_reads_tokens_beside_stored_images(make_setting, tmp_path):
    """LiT, in micro-batches."""
    changes = {"optimizer__frozen": "image", "train__micro_batch": 16, "data__batch_size": 32}
    objective = {"siglip": {"weight": 1.0}, "npc": {"weight": 1.0, "duplicates": "positive"}}
    pixels, params = make_setting("", objective, **changes).train(3)
    stored, stored_params = make_setting(tmp_path, objective, **changes).train(3)
    assert set(load_file(tmp_path / shards(tmp_path)[0])) == {
        "image", "row", "sample_id", "caption_start", "text_ids", "phrase_start", "phrase_row",
        "phrase_ids",
    }  # fmt: skip
    for left, right in zip(pixels, stored, strict=True):
        assert right["loss"] == pytest.approx(left["loss"], rel=1e-4)
    for path, value in params.items():
        np.testing.assert_allclose(stored_params[path], value, atol=3e-4, err_msg=path)


@pytest.mark.slow
def test_a_run_from_a_store_is_interrupted_and_evaluated_as_any_other(
    make_setting, tmp_path, monkeypatch
):
    config = make_setting(tmp_path / "store", PACL).config
    whole = loop.run(config, str(tmp_path / "whole"))
    show = metrics.Progress.show

    def interrupt(self, number, loss):
        if number == 5:
            raise KeyboardInterrupt
        return show(self, number, loss)

    with monkeypatch.context() as patch:
        patch.setattr(metrics.Progress, "show", interrupt)
        with pytest.raises(KeyboardInterrupt):
            loop.run(config, str(tmp_path / "cut"))
    assert loop.run(config, str(tmp_path / "cut")) == whole
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut")]
    losses = [[json.loads(line)["loss"] for line in text.splitlines()] for text in lines]
    assert losses[0] == losses[1] and len(losses[0]) == 6

"""What cannot be read is told in one message that says what to do."""

import json
import pathlib

import numpy as np
import pytest

from ccl_jax import weights
from ccl_jax.weights.files import open_npz


def edit_config(folder, edit):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))


def test_missing_surplus_and_misshapen_tensors_are_named(checkpoint):
    def edit(tensors):
        del tensors["vision_model.head.probe"]
        tensors["vision_model.classifier.weight"] = np.zeros(2, np.float32)
        tensors["text_model.head.bias"] = np.zeros(9, np.float32)

    checkpoint.change(edit)
    with pytest.raises(ValueError) as error:
        weights.load(checkpoint.folder)
    for part in (
        "1 missing: vision_model.head.probe",
        "1 surplus: vision_model.classifier.weight",
        "1 of another shape: text_model.head.bias (9,), not (8,)",
        str(checkpoint.folder),
    ):
        assert part in str(error.value)


def test_a_transposed_tensor_is_not_taken(checkpoint):
    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    checkpoint.change(lambda t: t.update({name: np.ascontiguousarray(t[name].T)}))
    with pytest.raises(ValueError, match=rf"{name} \(8, 12\), not \(12, 8\)"):
        weights.load(checkpoint.folder)


def test_long_lists_are_cut(checkpoint):
    def edit(tensors):
        for name in [name for name in tensors if name.startswith("text_model")]:
            del tensors[name]

    checkpoint.change(edit)
    with pytest.raises(ValueError, match="38 missing: .* and 33 more"):
        weights.load(checkpoint.folder)


def test_quantised_weights(checkpoint):
    name = "text_model.head.bias"
    checkpoint.change(lambda t: t.update({name: t[name].astype(np.int8)}))
    with pytest.raises(ValueError, match=f"{name} is int8; quantised"):
        weights.load(checkpoint.folder)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_truncated_safetensors(checkpoint, keep):
    checkpoint.file.write_bytes(checkpoint.file.read_bytes()[:keep])
    with pytest.raises(ValueError, match="model.safetensors is truncated.*download it again"):
        weights.load(checkpoint.folder)


def test_git_lfs_pointer(checkpoint):
    checkpoint.file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        weights.load(checkpoint.folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_pickles_are_never_opened(checkpoint, name):
    pickle = checkpoint.folder / name
    checkpoint.file.rename(pickle)
    pickle.write_bytes(b"cos\nsystem\n(S'false'\ntR.")  # runs a command, if unpickled
    for source in (pickle, checkpoint.folder):
        with pytest.raises(ValueError, match=f"{name} is a pickle.*never opened.*save_file"):
            weights.load(source)


def test_pickled_arrays_in_an_npz(tmp_path):
    np.savez(tmp_path / "w.npz", **{"params/t": np.array([{}], object)}, allow_pickle=True)
    with pytest.raises(ValueError, match="params/t.npy is pickled, and pickles are never opened"):
        weights.load(tmp_path / "w.npz")


@pytest.mark.parametrize("keep", [0, 10, 300, -5])
def test_truncated_npz(tmp_path, keep):
    path = tmp_path / "w.npz"
    np.savez(path, **{"params/t": np.zeros(100)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="w.npz cannot be read as .npz.*download it again"):
        weights.load(path)


def test_damaged_npz(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, **{"params/img/embedding/kernel": np.zeros((16, 16, 3, 80))})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="embedding/kernel.npy .* is damaged"):
        open_npz(path)["params/img/embedding/kernel"].load()


def test_npz_of_another_model(tmp_path):
    np.savez(tmp_path / "w.npz", **{"Transformer/encoderblock_0/LayerNorm_0/scale": np.zeros(3)})
    with pytest.raises(ValueError, match="no img/embedding/kernel; SigLIP checkpoints of big_vis"):
        weights.load(tmp_path / "w.npz")


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("bert", "of a 'bert' model.*'siglip', 'siglip2', 'clip'"),
        ("siglip_vision_model", "of a 'siglip_vision_model' model.*with both towers"),
    ],
)
def test_config_of_another_family(checkpoint, family, message):
    edit_config(checkpoint.folder, lambda c: c.update(model_type=family))
    with pytest.raises(ValueError, match=message):
        weights.load(checkpoint.folder)


def test_config_of_a_run(checkpoint):
    (checkpoint.folder / "config.json").write_text('{"model": {"preset": "tiny"}}')
    with pytest.raises(ValueError, match="names no model_type; give a folder"):
        weights.load(checkpoint.folder)


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_config_that_is_no_json(checkpoint, text):
    (checkpoint.folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json .*download it again"):
        weights.load(checkpoint.folder)


def test_a_config_that_is_not_of_these_weights(checkpoint):
    edit_config(checkpoint.folder, lambda c: c["text_config"].update(vocab_size=20))
    with pytest.raises(ValueError, match=r"token_embedding.weight \(11, 8\), not \(20, 8\)"):
        weights.load(checkpoint.folder)


def test_a_folder_without_weights(checkpoint):
    checkpoint.file.unlink()
    with pytest.raises(ValueError, match="has no model.safetensors; download it too"):
        weights.load(checkpoint.folder)


def test_shards_that_lack_a_tensor(checkpoint):
    index = {"weight_map": {"nowhere": "model-00001-of-00001.safetensors"}}
    checkpoint.file.rename(checkpoint.folder / "model-00001-of-00001.safetensors")
    (checkpoint.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="lacks nowhere, which model.safetensors.index.json"):
        weights.load(checkpoint.folder)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/at/all", "there is no nowhere/at/all: give a folder"),
        ("missing.npz", "there is no missing.npz: give"),
        ("some/missing.npz", "there is no some/missing.npz: give"),
        ("gs://bucket/siglip.npz", "copy it here first"),
    ],
)
def test_sources_that_are_not_there(source, message):
    with pytest.raises(ValueError, match=message):
        weights.load(source)


def test_files_of_no_known_kind(tmp_path):
    path = pathlib.Path(tmp_path / "weights.msgpack")
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match="of no kind that can be read: give a folder"):
        weights.load(path)
    with pytest.raises(ValueError, match="has no config.json or open_clip_config.json"):
        weights.load(tmp_path)

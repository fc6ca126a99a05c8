"""Parameters for another resolution, stride or text length, and over fresh ones."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image
from tiny_checkpoints import MODELS, assert_identical, flat, random_params

from ccl_jax import weights
from ccl_jax.models.presets import build_model


def table(grid, width=5, extra=0, seed=0):
    rng = np.random.default_rng(seed)
    return np.float32(rng.normal(size=(grid**2 + extra, width)))


@pytest.mark.parametrize(("old", "new"), [(7, 12), (12, 7), (4, 16), (16, 5)])
def test_resampling_is_that_of_pillow(old, new):
    # Pillow's bicubic is Keys' with a = -0.5 and widens its kernel when it makes an image
    # smaller; so does torch with antialias=True, which OpenCLIP and timm use.
    positions = table(old)
    found = weights.resample_positions(positions, old, new).reshape(new, new, -1)
    for channel in range(positions.shape[1]):
        image = Image.fromarray(positions[:, channel].reshape(old, old))
        expected = np.asarray(image.resize((new, new), Image.Resampling.BICUBIC))
        np.testing.assert_allclose(found[..., channel], expected, atol=5e-6)


def test_resampling_is_that_of_jax():
    positions = table(5)
    resized = jax.image.resize(positions.reshape(5, 5, -1), (9, 9, 5), "cubic")
    found = weights.resample_positions(positions, 5, 9)
    np.testing.assert_allclose(found, resized.reshape(81, 5), atol=5e-6)


def test_nothing_to_resample():
    positions = table(6)
    assert weights.resample_positions(positions, 6, 6) is positions


def test_the_class_token_keeps_its_position():
    positions = table(4, extra=1)
    found = weights.resample_positions(positions, 4, 6, class_token=True)
    assert found.shape == (37, 5)
    np.testing.assert_array_equal(found[0], positions[0])
    alone = weights.resample_positions(positions[1:], 4, 6)
    np.testing.assert_array_equal(found[1:], alone)


@pytest.mark.parametrize(("old_stride", "new_stride"), [(16, 4), (16, 8), (8, 16), (8, 4)])
def test_overlapping_patches_get_the_positions_of_their_centres(old_stride, new_stride):
    # A table that says where in the image a patch is centred must say so afterwards.
    side, patch = 112, 16

    def centres(stride):
        row = np.arange(0, side - patch + 1, stride, dtype=np.float32) + patch / 2
        return np.stack(np.meshgrid(row, row, indexing="ij"), axis=-1).reshape(-1, 2), len(row)

    (positions, old), (expected, new) = centres(old_stride), centres(new_stride)
    found = weights.resample_positions(
        positions, old, new, old_step=old_stride / patch, new_step=new_stride / patch
    )
    # A cubic kernel is exact on a plane, but at the border, where it has no neighbours, only
    # nearly so.
    inner = ((expected > 2 * patch) & (expected < side - 2 * patch)).all(axis=1)
    assert inner.sum() >= 4
    np.testing.assert_allclose(found[inner], expected[inner], atol=1e-3)
    assert abs(found - expected).max() < patch / 4


@pytest.mark.parametrize(("grid", "class_token"), [(5, False), (4, True)])
def test_a_table_of_another_size_is_refused(grid, class_token):
    with pytest.raises(ValueError, match=f"16 rows is not of {grid} x {grid}"):
        weights.resample_positions(table(4), grid, 6, class_token=class_token)


@pytest.mark.parametrize(
    ("changes", "grid"),
    [
        ({"image_size": 24}, 6),
        ({"patch_stride": 2}, 7),
        ({"image_size": 18, "patch_stride": 4}, 4),
        ({"image_size": 8, "patch_stride": 1}, 5),
    ],
)
def test_loading_for_another_resolution_or_stride(model, tmp_path, changes, grid):
    params = random_params(model)
    weights.save(tmp_path, params, model)
    found = weights.load(tmp_path, {"image": changes}, init_bias=float(params["bias"]))
    path = "image_tower/position_embedding"
    extra = int(model["image"]["pool"] == "cls")
    expected = weights.resample_positions(
        flat(params)[path],
        4,
        grid,
        class_token=bool(extra),
        new_step=changes.get("patch_stride", 4) / 4,
    )
    rest = {name: value for name, value in flat(found.params).items() if name != path}
    assert_identical(rest, {name: value for name, value in flat(params).items() if name != path})
    np.testing.assert_array_equal(flat(found.params)[path], expected, strict=True)
    # The model that the fields describe takes these parameters.
    towers = build_model(found.model, eot_id=0)
    side = found.model["image"]["image_size"]
    image = jax.ShapeDtypeStruct((2, side, side, 3), np.float32)
    out = jax.eval_shape(
        lambda p, x: towers.apply({"params": p}, x, image_tokens=True), found.params, image
    )
    assert out.image_tokens.shape[1] == grid**2


def test_shorter_texts_of_a_causal_tower_use_the_first_positions(tmp_path, caplog):
    model = MODELS["clip"]
    params = random_params(model)
    weights.save(tmp_path, params, model)
    found = flat(weights.load(tmp_path, {"text": {"length": 4}}).params)
    path = "text_tower/position_embedding"
    np.testing.assert_array_equal(found.pop(path), flat(params)[path][:4], strict=True)
    assert "moves" not in caplog.text


def test_shorter_texts_of_siglip_are_warned_of(checkpoint, caplog):
    found = weights.load(checkpoint.folder, {"text": {"length": 4}})
    assert found.params["text_tower"]["position_embedding"].shape == (4, 8)
    assert "moves from 6 to 4" in caplog.text


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("text", "vocab_size", 12, "vocab_size = 12.*11: the tokenizer does not belong"),
        ("text", "vocab_size", 10, "vocab_size = 10.*the tokenizer does not belong"),
        ("text", "length", 7, "length = 7.*positions for 6"),
        ("text", "depth", 3, "config.model.text.depth = 3, and that of the weights is 2"),
        ("image", "width", 16, "config.model.image.width = 16, and that of the weights is 8"),
        ("image", "patch_size", 8, "config.model.image.patch_size = 8"),
        ("image", "pool", "cls", "config.model.image.pool = 'cls'"),
        ("image", "mlp_dim", None, "config.model.image.mlp_dim = 32.* is 12"),
    ],
)
def test_fields_that_weights_cannot_follow(checkpoint, part, field, value, message):
    with pytest.raises(ValueError, match=message):
        weights.load(checkpoint.folder, {part: {field: value}})


def test_another_end_of_text_is_another_tokenizer():
    model = MODELS["clip"]
    new = {"image": model["image"], "text": model["text"] | {"eot_id": 2}}
    with pytest.raises(ValueError, match="eot_id = 2.*the tokenizer does not belong"):
        weights.adapt(random_params(model), model, new)


def test_all_fields_may_be_given(checkpoint):
    preset = {"image": MODELS["siglip"]["image"], "text": MODELS["siglip"]["text"]}
    assert_identical(weights.load(checkpoint.folder, preset).params, checkpoint.params)


def test_vocabulary_of_a_tokenizer():
    weights.check_vocabulary(11, MODELS["siglip"])
    with pytest.raises(ValueError, match="12 tokens and the embedding table 11 rows"):
        weights.check_vocabulary(12, MODELS["siglip"])


def test_merge_keeps_fresh_what_no_checkpoint_has(checkpoint):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    fresh = jax.tree.map(np.zeros_like, checkpoint.params)
    fresh["embedder"] = {"up": {"bias": np.ones(3, np.float32)}}
    kernel = fresh["image_tower"]["head"]["mlp"]["up"]["kernel"]
    fresh["image_tower"]["head"]["mlp"]["up"]["kernel"] = jax.device_put(kernel, rows)
    merged = weights.merge(fresh, checkpoint.params)
    placed = merged["image_tower"]["head"]["mlp"]["up"]["kernel"]
    assert placed.sharding == rows
    assert_identical(
        jax.tree.map(np.asarray, merged), checkpoint.params | {"embedder": fresh["embedder"]}
    )


def test_merge_names_what_does_not_fit(checkpoint):
    with pytest.raises(ValueError, match="only one of model and weights has new"):
        weights.merge(checkpoint.params | {"new": np.zeros(1)}, checkpoint.params)
    with pytest.raises(ValueError, match="only one of model and weights has bias"):
        weights.merge(
            {k: v for k, v in checkpoint.params.items() if k != "bias"}, checkpoint.params
        )
    with pytest.raises(ValueError, match=r"log_scale is \(\) in the weights and \(2,\)"):
        weights.merge(checkpoint.params | {"log_scale": np.zeros(2)}, checkpoint.params)

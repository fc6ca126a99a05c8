"""The two towers at a tiny size: shapes, pooling, masks, value-path tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax.models.image_tower import ImageTower, _patchify, patch_grid
from ccl_jax.models.layers import Attention, MapHead, PatchEmbedder
from ccl_jax.models.text_tower import TextTower
from ccl_jax.models.two_towers import TwoTowers, normalize_image

IMAGE = {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2}
TEXT = {"vocab_size": 11, "length": 9, "width": 16, "depth": 1, "heads": 2}
CLS = {"pool": "cls", "embed_dim": 12}
EOT = {"pool": "eot", "eot_id": 2, "embed_dim": 12}


@functools.cache
def pixels():
    return np.float32(np.random.default_rng(0).normal(size=(3, 16, 16, 3)))


# Rows end at different places; 2 ends a text, 0 pads it.
TOKENS = np.array([[5, 6, 7, 2, 0, 0], [8, 2, 0, 0, 0, 0], [3, 4, 5, 6, 9, 2]], np.int32)


def scrambled(params, seed=0):
    """The same tree with every entry drawn anew, so that no bias or scale is at 0 or 1."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape, scale=0.5)), params)


def shapes(model, *args, **kwargs):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), *args, **kwargs))


@functools.cache
def image_program(pool):
    tower = ImageTower(**IMAGE, **(CLS if pool == "cls" else {}))
    params = scrambled(shapes(tower, pixels(), tokens=True))
    return params, jax.jit(lambda p, x: tower.apply(p, x, tokens=True))


@functools.cache
def text_program(pool):
    tower = TextTower(**TEXT, **(EOT if pool == "eot" else {}))
    params = scrambled(shapes(tower, TOKENS))
    return params, jax.jit(tower.apply)


@pytest.mark.parametrize(("pool", "width"), [("map", 16), ("cls", 12)])
def test_image_tower_shapes(pool, width):
    params, apply = image_program(pool)
    out = apply(params, pixels())
    assert out.pooled.shape == (3, width)
    assert out.tokens.shape == (3, 4, width)
    assert out.patches.shape == (3, 4, 16)  # without the class token


def test_tokens_are_computed_only_if_asked_for():
    for options in ({}, CLS):
        tower = ImageTower(**IMAGE, **options)
        out, _ = jax.eval_shape(lambda t=tower: t.init_with_output(jax.random.key(0), pixels()))
        assert out.tokens is None


def test_a_value_token_is_the_head_on_its_patch_alone():
    # A softmax over one patch is 1, whatever query and key say: an oracle without value_path.
    params, apply = image_program("map")
    out = apply(params, pixels())
    head = MapHead(IMAGE["heads"], 4 * IMAGE["width"])
    alone = jax.jit(lambda x: head.apply({"params": params["params"]["head"]}, x)[0])
    for i in range(4):
        expected = alone(out.patches[:, i : i + 1])
        np.testing.assert_allclose(out.tokens[:, i], expected, rtol=1e-4, atol=1e-5)
    # And the head attends: its pooled embedding is none of the tokens.
    assert abs(out.pooled[:, None] - out.tokens).max(axis=-1).min() > 1e-2


def test_cls_tokens_go_through_the_projection():
    params, apply = image_program("cls")
    out = apply(params, pixels())
    kernel = params["params"]["projection"]["kernel"]
    assert kernel.shape == (16, 12)
    np.testing.assert_allclose(out.tokens, out.patches @ kernel, rtol=1e-4, atol=1e-5)


def test_patches_are_read_in_rows():
    # Without blocks and with one-hot weights the first state is the pixel itself.
    tower = ImageTower(**(IMAGE | {"depth": 0, "width": 16}))
    params = jax.tree.map(np.zeros_like, scrambled(shapes(tower, pixels())))
    kernel = params["params"]["patch_embedding"]["kernel"]
    row, column, channel = 5, 3, 1
    kernel[(row * 8 + column) * 3 + channel, 0] = 1
    norm = params["params"]["norm_post"]
    norm["scale"] += 1
    patches = np.asarray(jax.jit(tower.apply)(params, pixels()).patches)
    for i, (top, left) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8)]):
        state = np.zeros((3, 16))
        state[:, 0] = pixels()[:, top + row, left + column, channel]
        centred = state - state.mean(axis=1, keepdims=True)
        expected = centred / np.sqrt(centred.var(axis=1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(patches[:, i], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "stride", "grid"), [(16, 8, 2), (16, 4, 3), (16, 3, 3), (21, 8, 2)]
)
def test_patches_are_those_of_a_convolution(size, stride, grid):
    rng = np.random.default_rng(7)
    image = np.float32(rng.normal(size=(2, size, size, 3)))
    kernel = np.float32(rng.normal(size=(8, 8, 3, 5)))
    assert patch_grid(size, 8, stride) == grid
    patches = _patchify(image, grid, 8, stride)
    expected = jax.lax.conv_general_dilated(
        image, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    found = patches @ kernel.reshape(-1, 5)
    np.testing.assert_allclose(found, expected.reshape(2, grid**2, 5), rtol=1e-4, atol=1e-4)


def test_overlapping_patches_are_more_tokens():
    tower = ImageTower(**IMAGE, patch_stride=2)
    out, variables = jax.eval_shape(
        lambda: tower.init_with_output(jax.random.key(0), pixels(), tokens=True)
    )
    assert out.tokens.shape == (3, 25, 16)
    assert variables["params"]["position_embedding"].shape == (25, 16)


def test_width_of_the_mlps():
    towers = TwoTowers(image=IMAGE | CLS | {"mlp_dim": 20}, text=TEXT | EOT | {"mlp_dim": 24})
    params = shapes(towers, pixels(), TOKENS)["params"]
    assert params["image_tower"]["block_0"]["mlp"]["up"]["kernel"].shape == (16, 20)
    assert params["text_tower"]["block_0"]["mlp"]["up"]["kernel"].shape == (16, 24)
    head = shapes(ImageTower(**IMAGE, mlp_dim=20), pixels())["params"]["head"]
    assert head["mlp"]["down"]["kernel"].shape == (20, 16)


@pytest.mark.parametrize(("pool", "width"), [("last", 16), ("eot", 12)])
def test_text_tower_shapes_and_lengths(pool, width):
    params, apply = text_program(pool)
    short = apply(params, TOKENS)
    long = apply(params, np.pad(TOKENS, ((0, 0), (0, 3))))
    assert short.shape == long.shape == (3, width)
    difference = abs(short - long).max(axis=1)
    if pool == "eot":
        assert difference.max() < 1e-5
    else:
        assert difference.min() > 1e-2


def test_what_follows_the_end_of_text_is_not_seen():
    params, apply = text_program("eot")
    changed = TOKENS.copy()
    changed[0, 4:] = 9
    changed[1, 2:] = [2, 7, 2, 8]  # a second end-of-text: the first counts
    changed[2, 0] = 10
    before, after = apply(params, TOKENS), apply(params, changed)
    np.testing.assert_allclose(after[:2], before[:2], atol=1e-5)
    assert abs(after[2] - before[2]).max() > 1e-2


def test_last_sees_every_token():
    params, apply = text_program("last")
    before = apply(params, TOKENS)
    for position in range(6):
        changed = TOKENS.copy()
        changed[:, position] = 10
        assert abs(apply(params, changed) - before).max(axis=1).min() > 1e-3


def test_patch_embedder_formula():
    x = np.float32(np.random.default_rng(3).normal(size=(2, 4, 16)))
    params = scrambled(shapes(PatchEmbedder(12), x))
    found = PatchEmbedder(12).apply(params, x)
    up, down, skip = (params["params"][name] for name in ("up", "down", "skip"))
    hidden = np.maximum(x @ up["kernel"] + up["bias"], 0)
    expected = x @ skip["kernel"] + skip["bias"] + hidden @ down["kernel"] + down["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert params["params"].keys() == {"up", "down", "skip"}


def two_towers(dtype=jnp.float32, **options):
    return TwoTowers(image=IMAGE | CLS, text=TEXT | EOT, dtype=dtype, **options)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def embedded(request):
    """Everything that the model gives, with the shapes of its parameters, per compute type."""
    dtype = jnp.dtype(request.param)
    model = two_towers(dtype, patch_embedder=True)
    args, asked = (pixels(), TOKENS, TOKENS[:, :4]), {"image_tokens": True, "patch_emb": True}
    params = shapes(model, *args, **asked)
    out = jax.jit(lambda p: model.apply(p, *args, **asked))(scrambled(params))
    return out, params, dtype


def test_embeddings_have_norm_one_in_float32(embedded):
    out, _, _ = embedded
    expected = {"image": (3,), "image_tokens": (3, 4), "text": (3,), "phrase": (3,)}
    for name, shape in expected.items():
        value = getattr(out, name)
        assert (value.shape, value.dtype) == ((*shape, 12), jnp.float32), name
        np.testing.assert_allclose(np.linalg.norm(value, axis=-1), 1, rtol=1e-5, err_msg=name)


def test_parameters_are_float32_and_the_computation_is_not(embedded):
    out, params, dtype = embedded
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    # The patch embedder's tokens are not normalised, so they show the compute type.
    assert out.patch_emb.dtype == dtype
    assert (out.scale.dtype, out.bias.dtype) == (jnp.float32, jnp.float32)


def test_scale_and_bias_start_where_they_should():
    model = two_towers(init_scale=20.0)

    @jax.jit
    def start():
        params = model.init(jax.random.key(0), text=TOKENS)["params"]
        return {name: params[name] for name in ("log_scale", "bias")}

    out = model.apply({"params": start()})
    np.testing.assert_allclose(start()["log_scale"], np.log(20), rtol=1e-6)
    np.testing.assert_allclose(out.scale, 20, rtol=1e-6)
    assert float(out.bias) == -10


def test_captions_and_phrases_share_a_tower(embedded):
    out, _, _ = embedded
    # TOKENS[1] ends within the phrases' four positions, so both passes read the same text.
    np.testing.assert_allclose(out.phrase[1], out.text[1], atol=1e-2)


def test_what_is_not_given_is_not_computed():
    model = two_towers()
    out, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), text=TOKENS))
    assert (out.image, out.image_tokens, out.patch_emb, out.phrase) == (None,) * 4
    assert "image_tower" not in variables["params"]


def test_normalize_image():
    image = np.arange(0, 255, 21, dtype=np.uint8)[:12].reshape(1, 2, 2, 3)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    found = normalize_image(jnp.asarray(image), mean, std)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, (image / 255 - mean) / std, rtol=1e-5, atol=1e-6)


def image_tower(**options):
    return ImageTower(**(IMAGE | options)), pixels()


def text_tower(**options):
    return TextTower(**(TEXT | options)), TOKENS


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (image_tower, {"patch_size": 5}, "16 is not a multiple of patch_size 5"),
        (image_tower, {"patch_size": 5}, "patch_stride = 5 leaves the remainder out"),
        (image_tower, {"patch_stride": 9}, "patch_stride 9 must lie between 1 and patch_size 8"),
        (image_tower, {"patch_stride": 0}, "patch_stride 0 must lie between 1"),
        (image_tower, {"image_size": 32}, r"\(b, 32, 32, 3\); got \(3, 16, 16, 3\)"),
        (image_tower, {"pool": "mean"}, "'map'.*'cls'"),
        (image_tower, {"embed_dim": 12}, "must equal width 16"),
        (image_tower, {"heads": 3}, "multiple of heads"),
        (text_tower, {"pool": "first"}, "'last'.*'eot'"),
        (text_tower, {"length": 5}, r"t <= 5; got \(3, 6\)"),
        (text_tower, {"heads": 5}, "multiple of heads"),
    ],
)
def test_what_does_not_fit_is_named(build, options, message):
    tower, data = build(**options)
    with pytest.raises(ValueError, match=message):
        shapes(tower, data)


def test_towers_of_two_widths_are_refused():
    model = TwoTowers(image=IMAGE, text=TEXT | EOT)
    with pytest.raises(ValueError, match=r"16 \(image\) and 12 \(text\)"):
        shapes(model, pixels(), TOKENS)


def test_patch_embeddings_need_the_embedder():
    with pytest.raises(ValueError, match="patch_embedder = True"):
        shapes(two_towers(), pixels(), TOKENS, patch_emb=True)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_the_loop(causal):
    rng = np.random.default_rng(5)
    x = np.float32(rng.normal(size=(2, 4, 6)))
    module = Attention(6, 2, causal)
    params = scrambled(shapes(module, x, x))
    found = module.apply(params, x, x)
    dense = {k: (v["kernel"], v["bias"]) for k, v in params["params"].items()}
    q, k, v = (x @ dense[n][0] + dense[n][1] for n in ("query", "key", "value"))
    out = np.zeros_like(x)
    for b in range(2):
        for head in (slice(0, 3), slice(3, 6)):
            for i in range(4):
                last = i + 1 if causal else 4
                scores = np.exp(k[b, :last, head] @ q[b, i, head] / np.sqrt(3))
                out[b, i, head] = scores @ v[b, :last, head] / scores.sum()
    expected = out @ dense["out"][0] + dense["out"][1]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

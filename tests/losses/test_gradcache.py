"""GradCache equals the big batch, in less memory and without moving inputs."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ccl_jax import losses
from ccl_jax.losses import micro_batched

IMAGES, PHRASES, TOKENS, WIDTH = 32, 64, 5, 12
LOSSES = ("clip", "siglip", "npc", "xac", "ccl", "pacl")
DATA, WHOLE = PartitionSpec("data"), PartitionSpec()


def loss_of(name, emb, phrase_image, **options):
    """The loss `name` of what `embed` returns, with logits of a trainable scale and bias."""
    options |= {"scale": emb.scale}
    if name not in ("clip", "pacl"):
        options |= {"bias": emb.bias}
    arguments = {
        "clip": (losses.clip_loss, emb.image, emb.text),
        "siglip": (losses.siglip_loss, emb.image, emb.text),
        "npc": (losses.npc_loss, emb.image, emb.phrase, phrase_image),
        "xac": (losses.xac_loss, emb.tokens, emb.phrase, phrase_image),
        "ccl": (losses.ccl_loss, emb.image, emb.text, emb.tokens, emb.phrase, phrase_image),
        "pacl": (losses.pacl_loss, emb.tokens, emb.text),
    }
    function, *data = arguments[name]
    return function(*data, **options)[0]


def tower(layers, x):
    """Residual layers, each with its own checkpoint, as large towers have them."""

    @jax.checkpoint
    def layer(x, weights):
        inner, outer = weights
        return x + jnp.tanh(x @ inner) @ outer

    for weights in layers:
        x = layer(x, jax.tree.map(lambda w: w.astype(x.dtype), weights))
    return x


def embed(params, inputs):
    """(images, patches, width), (captions, width) and (phrases, width) to embeddings."""
    tokens = tower(params["image"], inputs["image"])
    return {
        "image": losses.unit(jnp.mean(tokens, axis=1)),
        "tokens": losses.unit(tokens),
        "text": losses.unit(tower(params["text"], inputs["text"])),
        "phrase": losses.unit(tower(params["text"], inputs["phrase"])),
    }


def objective(names, parts, **options):
    """`(params, inputs, phrase_image) -> (sum of the losses, each of them)`."""
    towers = micro_batched(embed, parts)

    def loss(params, inputs, phrase_image):
        scalars = {"scale": jnp.exp(params["log_scale"]), "bias": params["bias"]}
        emb = types.SimpleNamespace(**towers(params, inputs), **scalars)
        found = {name: loss_of(name, emb, phrase_image, **options) for name in names}
        return sum(found.values()), found

    return loss


def gradients(names, parts, **options):
    """Value and gradient of `objective`."""
    return jax.value_and_grad(objective(names, parts, **options), has_aux=True)


@pytest.fixture(scope="module")
def batch():
    """Parameters, inputs and owners of 32 images and captions and 64 phrases."""
    rng = np.random.default_rng(3)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    layers = {
        kind: [(normal(WIDTH, 2 * WIDTH) / 4, normal(2 * WIDTH, WIDTH) / 4) for _ in range(2)]
        for kind in ("image", "text")
    }
    params = layers | {"log_scale": jnp.float32(2.0), "bias": jnp.float32(-3.0)}
    inputs = {
        "image": normal(IMAGES, TOKENS, WIDTH),
        "text": normal(IMAGES, WIDTH),
        "phrase": normal(PHRASES, WIDTH),
    }
    return params, inputs, jnp.asarray(rng.integers(-1, IMAGES, PHRASES), jnp.int32)


@pytest.fixture(scope="module")
def big_batch(batch):
    """Sum, values and gradient of all losses, of the whole batch at once."""
    return jax.jit(gradients(LOSSES, 1))(*batch)


def mesh_of(devices):
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


def assert_equal(found, expected):
    # Sums of float32 in another order; gradients against the largest of their array.
    (total, each), gradient = found
    (expected_total, expected_each), expected_gradient = expected
    np.testing.assert_allclose(total, expected_total, rtol=1e-5)
    assert each.keys() == expected_each.keys()
    for name in each:
        np.testing.assert_allclose(each[name], expected_each[name], rtol=1e-5, err_msg=name)
    paths = jax.tree_util.tree_leaves_with_path(gradient)
    for (path, leaf), right in zip(paths, jax.tree.leaves(expected_gradient), strict=True):
        top = np.max(np.abs(right))
        np.testing.assert_allclose(leaf, right, rtol=1e-4, atol=1e-5 * top, err_msg=str(path))


@pytest.mark.parametrize("name", LOSSES)
def test_equals_the_big_batch(name, batch):
    found = jax.jit(gradients([name], 4))(*batch)
    assert_equal(found, jax.jit(gradients([name], 1))(*batch))
    slopes = jax.tree.leaves(found[1]["image"])
    assert min(np.max(np.abs(slope)) for slope in slopes) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "options"), [(2, {}), (8, {}), (8, {"chunk_size": 3})])
def test_equals_the_big_batch_inside_shard_map(devices, options, batch, big_batch):
    run = jax.jit(
        jax.shard_map(
            gradients(LOSSES, 2, axis_name="data", **options),
            mesh=mesh_of(devices),
            in_specs=(WHOLE, DATA, DATA),
            out_specs=WHOLE,
        )
    )
    assert_equal(run(*batch), big_batch)


@pytest.mark.slow
def test_equals_the_big_batch_under_jit_with_shardings(batch, big_batch):
    mesh = mesh_of(8)
    places = NamedSharding(mesh, WHOLE), NamedSharding(mesh, DATA), NamedSharding(mesh, DATA)
    placed = jax.device_put(batch, places)
    assert_equal(jax.jit(gradients(LOSSES, 4), in_shardings=places)(*placed), big_batch)


def test_bfloat16_towers_differ_by_their_rounding(batch):
    params, inputs, phrase_image = batch
    inputs = jax.tree.map(jnp.bfloat16, inputs)
    (total, _), gradient = jax.jit(gradients(["ccl"], 4))(params, inputs, phrase_image)
    (right_total, _), right = jax.jit(gradients(["ccl"], 1))(params, inputs, phrase_image)
    # Every row is computed as before. A weight's gradient leaves the tower in bfloat16: the
    # four parts are rounded by 2**-9 each and the whole by 2**-9. The parts are of about half
    # the size of the whole (random signs), so 4 * 2**-10 + 2**-9 < 2**-7 of its norm.
    np.testing.assert_allclose(total, right_total, rtol=1e-5)
    for found, leaf in zip(jax.tree.leaves(gradient), jax.tree.leaves(right), strict=True):
        assert found.dtype == jnp.float32
        assert np.linalg.norm(found - leaf) < 2**-7 * np.linalg.norm(leaf)


def test_one_micro_batch_is_the_function_itself(batch):
    params, inputs, _ = batch
    plain = jax.make_jaxpr(embed)(params, inputs)
    assert str(jax.make_jaxpr(micro_batched(embed, 1))(params, inputs)) == str(plain)
    assert str(jax.make_jaxpr(micro_batched(embed, 2))(params, inputs)) != str(plain)


def test_rows_keep_their_order_whatever_they_hold():
    keys = jax.random.split(jax.random.key(0), 6)

    def noisy(weight, inputs):
        noise = jax.vmap(jax.random.normal)(inputs["key"])
        return {"id": inputs["id"], "sum": weight * (inputs["x"] + noise), "key": inputs["key"]}

    # 6 rows beside 12, integers and keys beside floats.
    inputs = {"id": np.arange(6), "x": jnp.arange(6.0), "key": keys, "more": jnp.zeros((12, 2))}
    found, right = micro_batched(noisy, 3)(2.0, inputs), noisy(2.0, inputs)
    np.testing.assert_array_equal(found["id"], np.arange(6))
    np.testing.assert_allclose(found["sum"], right["sum"], rtol=1e-6)
    np.testing.assert_array_equal(*map(jax.random.key_data, (found["key"], keys)))
    slope = jax.grad(lambda w: jnp.sum(micro_batched(noisy, 3)(w, inputs)["sum"] ** 2))(2.0)
    np.testing.assert_allclose(slope, np.sum(np.square(right["sum"])), rtol=1e-5)


def test_inputs_have_gradients_too():
    towers = micro_batched(lambda w, x: w * jnp.square(x["x"]), 2)
    x = {"x": jnp.arange(4.0), "id": jnp.arange(4)}
    gradient = jax.grad(lambda x: towers(3.0, x) @ jnp.arange(4.0), allow_int=True)(x)
    np.testing.assert_allclose(gradient["x"], 6 * np.arange(4.0) ** 2, rtol=1e-6)
    assert gradient["id"].dtype == jax.dtypes.float0


def test_a_key_for_each_micro_batch():
    def dropped(weight, inputs):
        keep = jax.random.bernoulli(inputs["key"][0], 0.5, inputs["x"].shape)
        return weight * jnp.where(keep, inputs["x"], 0.0)

    keys = jax.random.split(jax.random.key(1), 4)
    x = jnp.ones((64, 8))
    found, pull = jax.vjp(lambda w: micro_batched(dropped, 4)(w, {"x": x, "key": keys}), 2.0)
    masks = np.asarray(found).reshape(16, 4, 8) > 0
    for j, key in enumerate(keys):
        np.testing.assert_array_equal(masks[:, j], jax.random.bernoulli(key, 0.5, (16, 8)))
    # The second forward pass drops what the first did.
    np.testing.assert_array_equal(pull(jnp.ones_like(found))[0], np.sum(masks))


@pytest.fixture(scope="module")
def temporaries():
    """`(parts, policy) -> bytes` of value and gradient of CLIP on attention layers."""
    rows, length, width, depth = 64, 16, 64, 3
    weights = jax.ShapeDtypeStruct((depth, 4, width, width), jnp.float32)
    x = jax.ShapeDtypeStruct((rows, length, width), jnp.float32)

    def attend(weights, x):
        def layer(x, w):
            scores = jnp.einsum("bld,bkd->blk", x @ w[0], x @ w[1]) / 8
            x = x + jnp.einsum("blk,bkd->bld", jax.nn.softmax(scores), x @ w[2])
            return x + jax.nn.gelu(x @ w[3]), None

        x, _ = jax.lax.scan(layer, x, weights)
        return losses.unit(jnp.mean(x, axis=1))

    @functools.cache
    def measure(parts, policy=None):
        towers = micro_batched(attend, parts, policy=policy)

        def loss(weights, x):
            emb = towers(weights, x)
            return losses.clip_loss(emb, emb[::-1], scale=8.0)[0]

        compiled = jax.jit(jax.value_and_grad(loss)).lower(weights, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    return measure


def test_memory_falls_with_micro_batches(temporaries):
    # A part needs an eighth; weights' gradients and embeddings stay.
    assert temporaries(8) < temporaries(1) / 4


def test_a_policy_keeps_what_it_names(temporaries):
    keep = jax.checkpoint_policies.everything_saveable
    assert temporaries(8, keep) > 2 * temporaries(8)


def collectives_of(function, places, arguments):
    """Collective instructions of the compiled program: by kind, and those inside loops."""
    text = jax.jit(function, in_shardings=places).lower(*arguments).compile().as_text()
    kinds = "all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute"
    pattern = re.compile(rf" = .*?\b({kinds})(?:-start)?\(")
    found, looped, inside_entry = [], [], False
    for line in text.splitlines():
        if line and not line.startswith(" "):
            inside_entry = line.startswith("ENTRY")
        elif match := pattern.search(line):
            (found if inside_entry else looped).append(match[1])
    return found, looped


@pytest.fixture(scope="module")
def places():
    mesh = mesh_of(8)
    return NamedSharding(mesh, WHOLE), NamedSharding(mesh, DATA)


def test_under_jit_no_input_moves(batch, places):
    params, inputs, _ = batch

    def consecutive(params, inputs):
        parts = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), inputs)
        return jax.lax.map(lambda part: embed(params, part), parts)

    assert collectives_of(micro_batched(embed, 4), places, (params, inputs)) == ([], [])
    assert collectives_of(consecutive, places, (params, inputs)) != ([], [])


def test_inside_shard_map_gradients_are_added_over_devices_once(batch, places):
    params, inputs, _ = batch
    image = {"image": params["image"]}

    def image_tower(params, inputs):
        return jnp.mean(tower(params["image"], inputs), axis=1)

    towers = jax.shard_map(
        micro_batched(image_tower, 2), mesh=places[0].mesh, in_specs=(WHOLE, DATA), out_specs=DATA
    )

    def loss(params, inputs):
        return jnp.sum(jnp.square(towers(params, inputs)))

    found, looped = collectives_of(jax.grad(loss), places, (image, inputs["image"]))
    assert "all-reduce" in found
    assert looped == []
    right = jax.grad(lambda p: jnp.sum(jnp.square(image_tower(p, inputs["image"]))))(image)
    gradient = jax.jit(jax.grad(loss), in_shardings=places)(image, inputs["image"])
    for leaf, expected in zip(jax.tree.leaves(gradient), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("parts", [0, -2, 2.0, None])
def test_micro_batches_must_be_a_positive_number(parts):
    with pytest.raises(ValueError, match="positive whole number"):
        micro_batched(embed, parts)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"image": jnp.ones((8, 2)), "text": jnp.ones(6)}, r"inputs\['text'\] has 6 rows, .* 4 "),
        ([jnp.ones((0, 2))], r"inputs\[0\] has 0 rows"),
        ({"x": jnp.ones(4), "step": jnp.int32(1)}, r"inputs\['step'\] has no rows .* params"),
        ({"x": jnp.ones(4), "rate": 0.5}, r"inputs\['rate'\] has no rows"),
        ({}, "no array"),
    ],
)
def test_inputs_that_cannot_be_split(inputs, message):
    with pytest.raises(ValueError, match=message):
        micro_batched(lambda params, inputs: inputs, 4)(None, inputs)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (lambda x: {"emb": x, "scale": jnp.float32(1.0)}, r"embeddings\['scale'\] of shape \(\)"),
        (lambda x: {"flat": x.reshape(-1)}, r"embeddings\['flat'\] of shape"),
    ],
)
def test_embeddings_without_an_order(parts, wrong, name):
    with pytest.raises(ValueError, match=name):
        micro_batched(lambda params, x: wrong(x), parts)(None, jnp.ones((4, 3)))

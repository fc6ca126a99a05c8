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
SUMS = ("clip", "ccl", "pacl")  # of all kinds of terms
DATA, WHOLE = PartitionSpec("data"), PartitionSpec()
# The programs are large and run a few times: compiling is what takes long.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def loss_of(name, emb, phrase_image, **options):
    """The loss `name` of what `embed` returns, with logits of a trainable scale and bias."""
    options |= {"scale": emb.scale}
    if name not in ("clip", "pacl"):
        options |= {"bias": emb.bias}
    ccl = functools.partial(losses.ccl_loss, xac_weight=0.5)
    arguments = {
        "clip": (losses.clip_loss, emb.image, emb.text),
        "siglip": (losses.siglip_loss, emb.image, emb.text),
        "npc": (losses.npc_loss, emb.image, emb.phrase, phrase_image),
        "xac": (losses.xac_loss, emb.tokens, emb.phrase, phrase_image),
        "ccl": (ccl, emb.image, emb.text, emb.tokens, emb.phrase, phrase_image),
        "pacl": (losses.pacl_loss, emb.tokens, emb.text),
    }
    function, *data = arguments[name]
    return function(*data, **options)[0]


def tower(layers, x):
    """Residual layers, each with its own checkpoint, as large towers have them."""

    @jax.checkpoint
    def layer(x, inner, outer):
        return x + jnp.tanh(x @ inner) @ outer

    for weights in layers:
        x = layer(x, *(w.astype(x.dtype) for w in weights))
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


def gradients(parts, names=LOSSES, **options):
    """`(params, inputs, phrase_image, weights) -> ((_, losses), gradient)`.

    The gradient is that of the sum of the losses times `weights`, so that one program serves
    the gradients of all.
    """
    towers = micro_batched(embed, parts)

    def loss(params, inputs, phrase_image, weights):
        scalars = {"scale": jnp.exp(params["log_scale"]), "bias": params["bias"]}
        emb = types.SimpleNamespace(**towers(params, inputs), **scalars)
        found = [loss_of(name, emb, phrase_image, **options) for name in names]
        return jnp.stack(found) @ weights, jnp.stack(found)

    return jax.value_and_grad(loss, has_aux=True)


def one_by_one(run, batch, names=LOSSES):
    """{name: (value, gradient)} from the jitted `gradients(..., names)`."""
    found = {}
    for i, name in enumerate(names):
        (_, values), gradient = run(*batch, jnp.eye(len(names))[i])
        found[name] = values[i], gradient
    return found


@pytest.fixture(scope="module")
def batch():
    """Parameters, inputs and owners of 32 images and captions and 64 phrases."""
    rng = np.random.default_rng(3)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    layers = {
        kind: [(normal(WIDTH, 2 * WIDTH) / 4, normal(2 * WIDTH, WIDTH) / 4)]
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
    """Value and gradient of every loss, of the whole batch at once."""
    return one_by_one(quick_jit(gradients(1)), batch)


def mesh_of(devices):
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


def assert_equal(found, expected):
    # Sums of float32 in another order; gradients against the largest of their array.
    for name, (value, gradient) in found.items():
        right_value, right_gradient = expected[name]
        np.testing.assert_allclose(value, right_value, rtol=1e-5, err_msg=name)
        leaves = jax.tree_util.tree_leaves_with_path(gradient)
        for (path, leaf), right in zip(leaves, jax.tree.leaves(right_gradient), strict=True):
            atol = 1e-5 * np.max(np.abs(right))
            np.testing.assert_allclose(leaf, right, 1e-4, atol, err_msg=f"{name} {path}")


def test_equals_the_big_batch(batch, big_batch):
    found = one_by_one(quick_jit(gradients(4)), batch)
    assert found.keys() == set(LOSSES)
    assert_equal(found, big_batch)
    slopes = jax.tree.leaves([gradient["image"] for _, gradient in big_batch.values()])
    assert min(np.max(np.abs(slope)) for slope in slopes) > 1e-3


@pytest.mark.slow
def test_equals_the_big_batch_inside_shard_map(batch, big_batch):
    run = jax.shard_map(
        gradients(2, SUMS, axis_name="data", chunk_size=3),
        mesh=mesh_of(8),
        in_specs=(WHOLE, DATA, DATA, WHOLE),
        out_specs=WHOLE,
    )
    assert_equal(one_by_one(quick_jit(run), batch, SUMS), big_batch)


@pytest.mark.slow
def test_equals_the_big_batch_under_jit_with_shardings(batch, big_batch):
    mesh = mesh_of(8)
    whole, split = NamedSharding(mesh, WHOLE), NamedSharding(mesh, DATA)
    run = quick_jit(gradients(4, SUMS), in_shardings=(whole, split, split, whole))
    placed = jax.device_put(batch, (whole, split, split))
    assert_equal(one_by_one(run, placed, SUMS), big_batch)


def test_bfloat16_towers_differ_by_their_rounding(batch):
    params, inputs, phrase_image = batch
    arguments = params, jax.tree.map(jnp.bfloat16, inputs), phrase_image, jnp.ones(1)
    (_, value), gradient = quick_jit(gradients(4, ["clip"]))(*arguments)
    (_, right_value), right = quick_jit(gradients(1, ["clip"]))(*arguments)
    # A step of the towers is rounded by at most 2**-9, and the compiler leaves out other
    # roundings in the one program than in the other; parts of a weight's gradient are each
    # rounded on their way to float32, where they add up. A few roundings of 2**-9 in all.
    np.testing.assert_allclose(value, right_value, rtol=2**-9)
    for found, leaf in zip(jax.tree.leaves(gradient), jax.tree.leaves(right), strict=True):
        assert found.dtype == jnp.float32
        assert np.linalg.norm(found - leaf) <= 2**-6 * np.linalg.norm(leaf)


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
    towers = micro_batched(noisy, 3)
    found, right = quick_jit(towers)(2.0, inputs), quick_jit(noisy)(2.0, inputs)
    np.testing.assert_array_equal(found["id"], np.arange(6))
    np.testing.assert_allclose(found["sum"], right["sum"], rtol=1e-6)
    np.testing.assert_array_equal(*map(jax.random.key_data, (found["key"], keys)))
    slope = quick_jit(jax.grad(lambda w: jnp.sum(towers(w, inputs)["sum"] ** 2)))(2.0)
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


def test_memory_falls_with_micro_batches():
    width = 64
    weights = jax.ShapeDtypeStruct((2, 4, width, width), jnp.float32)
    x = jax.ShapeDtypeStruct((64, 16, width), jnp.float32)

    def attend(weights, x):
        def layer(x, w):
            scores = jnp.einsum("bld,bkd->blk", x @ w[0], x @ w[1]) / 8
            x = x + jnp.einsum("blk,bkd->bld", jax.nn.softmax(scores), x @ w[2])
            return x + jax.nn.gelu(x @ w[3]), None

        x, _ = jax.lax.scan(layer, x, weights)
        return losses.unit(jnp.mean(x, axis=1))

    def temporaries(parts):
        towers = micro_batched(attend, parts)

        def loss(weights, x):
            emb = towers(weights, x)
            return losses.clip_loss(emb, emb[::-1], scale=8.0)[0]

        compiled = quick_jit(jax.value_and_grad(loss)).lower(weights, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # A part needs an eighth; the gradients of the weights and the embeddings stay.
    big, small = temporaries(1), temporaries(8)
    assert small < big / 4


def test_a_policy_keeps_what_it_names():
    def tanhs(policy):
        towers = micro_batched(lambda w, x: jnp.tanh(w * x), 2, policy=policy)
        slope = jax.grad(lambda w, x: jnp.sum(towers(w, x)))
        return str(jax.make_jaxpr(slope)(1.0, jnp.ones(4))).count("tanh")

    assert tanhs(None) == 2
    assert tanhs(jax.checkpoint_policies.everything_saveable) == 1


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

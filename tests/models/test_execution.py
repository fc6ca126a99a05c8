"""How blocks run: rematerialised, in a scan, with another attention; always the same results."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ccl_jax.models import layers
from ccl_jax.models.attention import attend, attention_implementation, traced_for
from ccl_jax.models.presets import build_model
from ccl_jax.training.sharding import create_mesh, sharded

TOWER = {"width": 16, "depth": 2, "heads": 2}
MODEL = {
    "image": TOWER | {"image_size": 16, "patch_size": 4, "pool": "map"},
    "text": TOWER | {"vocab_size": 11, "length": 6, "pool": "eot"},
}
RNG = np.random.default_rng(0)
IMAGE = np.float32(RNG.normal(size=(3, 16, 16, 3)))
TEXT = np.array([[5, 6, 2, 0], [2, 0, 0, 0], [3, 4, 5, 2]], np.int32)


@functools.cache
def params():
    model = build_model(MODEL, eot_id=2)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), IMAGE, TEXT, image_tokens=True)["params"]
    )
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape, scale=0.3)), shapes)


def value_and_gradient(**execution):
    """A function of every output, its gradient of every parameter, and the compiled program."""
    model = build_model(MODEL | execution, eot_id=2)

    def total(params):
        out = model.apply({"params": params}, IMAGE, TEXT, image_tokens=True)
        outputs = (out.image, out.image_tokens, out.text)
        weights = np.random.default_rng(2)
        return sum(jnp.sum(x * np.float32(weights.normal(size=x.shape))) for x in outputs)

    return jax.jit(jax.value_and_grad(total)).lower(params()).compile()


@functools.cache
def plain():
    program = value_and_gradient()
    return program(params()), program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    "execution",
    [
        {"remat": "dots"},
        {"remat": "full"},
        {"scan_layers": True},
        {"scan_layers": True, "remat": "dots"},
        {"scan_layers": True, "remat": "full"},
    ],
    ids=lambda execution: "-".join(map(str, execution.values())),
)
def test_values_and_gradients_are_those_of_the_plain_form(execution):
    (value, gradient), _ = plain()
    found_value, found = value_and_gradient(**execution)(params())
    np.testing.assert_allclose(found_value, value, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, gradient
    )


def test_a_scan_compiles_one_block_whatever_the_depth():
    def products(depth):
        model = build_model({part: MODEL[part] | {"depth": depth} for part in MODEL}, eot_id=2)
        scanned = model.clone(scan_layers=True)
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGE, TEXT))
        # Initialised by the scanned model, the tree is the same.
        again = jax.eval_shape(lambda: scanned.init(jax.random.key(0), IMAGE, TEXT))
        assert jax.tree.structure(shapes) == jax.tree.structure(again)
        counts = []
        for each in (model, scanned):
            jaxpr = jax.make_jaxpr(lambda p, m=each: m.apply(p, IMAGE, TEXT).image)(shapes)
            counts.append(str(jaxpr).count("dot_general["))
        return counts

    (short, scanned_short), (long, scanned_long) = products(2), products(4)
    assert long > short
    assert scanned_long == scanned_short


def test_looped_layers_keep_states_on_the_devices_of_their_images():
    """Left to the compiler, states are split as weights are, and lie on several devices each."""
    mesh = create_mesh(shape={"data": 2, "fsdp": 4})
    wide = TOWER | {"width": 32, "depth": 6}
    sizes = {"image": MODEL["image"] | wide, "text": MODEL["text"] | wide, "remat": "full"}
    image = jax.ShapeDtypeStruct((64, 16, 16, 3), jnp.float32, sharding=sharded(mesh))

    def split(x):
        spec = P(None, "fsdp") if x.ndim == 2 and x.shape[1] % 4 == 0 else P()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    def temporaries(states):
        model = build_model(sizes | {"scan_layers": True}, eot_id=2).clone(states=states)
        params = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGE, TEXT))
        gradient = jax.jit(jax.grad(lambda p, x: jnp.sum(model.apply(p, x).image ** 3)))
        compiled = gradient.lower(jax.tree.map(split, params), image).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(sharded(mesh)) < 0.8 * temporaries(None)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_rematerialisation_keeps_less_the_more_it_computes_again(scan_layers):
    big = MODEL["image"] | {"image_size": 48}  # 144 patches
    image = jnp.zeros((4, 48, 48, 3))
    kept = {}
    for remat in layers.REMAT:
        model = build_model(MODEL | {"image": big, "remat": remat}, eot_id=2)
        model = model.clone(scan_layers=scan_layers)
        shapes = jax.eval_shape(lambda m=model: m.init(jax.random.key(0), image))
        _, pull = jax.eval_shape(
            lambda p, m=model: jax.vjp(lambda p: m.apply(p, image).image, p), shapes
        )
        kept[remat] = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pull))
    assert kept["none"] > 1.5 * kept["dots"] > 1.5 * kept["full"]


@pytest.mark.parametrize("field", ["remat", "attention"])
def test_unknown_names_are_named(field):
    with pytest.raises(ValueError, match=f"config.model.{field} = 'all'; use one of '"):
        value_and_gradient(**{field: "all"})


def gpu(kind="NVIDIA H200", capability="9.0"):
    return types.SimpleNamespace(platform="gpu", device_kind=kind, compute_capability=capability)


@pytest.mark.parametrize(
    ("device", "queries", "head_dim", "dtype", "expected"),
    [
        (gpu(), 196, 64, "bfloat16", "cudnn"),
        (gpu(), 197, 72, "float16", "cudnn"),  # So400m's heads
        (gpu(capability="8.0"), 196, 128, "bfloat16", "cudnn"),
        (gpu(), 196, 64, "float32", "xla"),
        (gpu(), 1, 64, "bfloat16", "xla"),
        (gpu(), 196, 12, "bfloat16", "xla"),
        (gpu(), 196, 136, "bfloat16", "xla"),
        (gpu(capability="7.5"), 196, 64, "bfloat16", "xla"),
        (gpu("AMD Instinct MI300X", "9.4"), 196, 64, "bfloat16", "xla"),
        (types.SimpleNamespace(platform="tpu"), 196, 64, "bfloat16", "xla"),
        (types.SimpleNamespace(platform="cpu"), 196, 64, "float32", "folded"),
    ],
)
def test_flash_attention_where_the_backend_has_it(
    monkeypatch, device, queries, head_dim, dtype, expected
):
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert attention_implementation(queries, head_dim, dtype) == expected


def test_flash_attention_is_what_the_blocks_ask_for(monkeypatch):
    asked = []

    def attention(q, k, v, *, is_causal, implementation):
        asked.append((q.shape[1], is_causal, implementation))
        return q

    monkeypatch.setattr(jax, "local_devices", lambda: [gpu()])
    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    model = build_model(MODEL | {"dtype": jnp.bfloat16}, eot_id=2)
    jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGE, TEXT))
    # Two blocks of 16 patches, the MAP head's one query, two causal blocks of 4 tokens.
    assert asked == [(16, False, "cudnn")] * 2 + [(1, False, "xla")] + [(4, True, "cudnn")] * 2
    asked.clear()
    jax.eval_shape(lambda: model.clone(attention="xla").init(jax.random.key(0), IMAGE))
    assert {how for _, _, how in asked} == {"xla"}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_folded_attention_is_that_of_jax(causal, dtype):
    rng = np.random.default_rng(4)
    # Logits in the hundreds: an exp without the maximum taken off would overflow.
    query, key, value, weight = (
        jnp.asarray(rng.normal(size=(2, 5, 2, 8)) * size, dtype) for size in (9, 9, 1, 1)
    )

    def total(implementation, *arrays):
        out = attend(*arrays, causal=causal, implementation=implementation)
        assert out.dtype == dtype
        return jnp.sum((out * weight).astype(jnp.float32))

    function = lambda how: jax.value_and_grad(functools.partial(total, how), argnums=(0, 1, 2))  # noqa: E731
    (value_a, found), (value_b, expected) = (
        jax.jit(function(how))(query, key, value) for how in ("folded", "xla")
    )
    near = {"rtol": 1e-4, "atol": 1e-4} if dtype == "float32" else {"rtol": 0.1, "atol": 0.1}
    np.testing.assert_allclose(value_a, value_b, **near)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(np.float32(a), np.float32(b), **near)


def test_flash_attention_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="heads of 8 in float32 on .*: use 'auto'"):
        value_and_gradient(attention="cudnn")


def test_what_is_compiled_for_another_machine_is_traced_for_it():
    choose = functools.partial(attention_implementation, 4, 64, jnp.bfloat16)
    assert choose() == "folded"  # here, on a CPU
    with traced_for("tpu"):
        assert choose() == "xla"
    assert choose() == "folded"


def test_a_single_row_of_queries_is_that_of_every_row():
    rng = np.random.default_rng(0)
    context = jnp.asarray(rng.normal(size=(3, 5, 8)), jnp.float32)
    query = jnp.asarray(rng.normal(size=(1, 1, 8)), jnp.float32)
    module = layers.Attention(8, 2)
    params = module.init(jax.random.key(0), query, context)
    one = module.apply(params, query, context)
    each = module.apply(params, jnp.repeat(query, 3, axis=0), context)
    np.testing.assert_allclose(one, each, rtol=1e-6, atol=1e-6)
    assert one.shape == (3, 1, 8)

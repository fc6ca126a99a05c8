"""The programs of docs/losses.md and of the README run, and its tables leave nothing out."""

import ast
import inspect
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import losses

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
LOSSES = [name for name in losses.__all__ if name.endswith("_loss")]


def blocks(page):
    """Python blocks by the heading above them."""
    found, title, block = {}, "", None
    for line in page.splitlines():
        if block is not None:
            if line == "```":
                found[title], block = "\n".join(block), None
            else:
                block.append(line)
        elif line == "```python":
            assert title not in found, f"a second block under {title}: give it a heading"
            block = []
        elif line.startswith("#"):
            title = line.strip("# ")
    return found


PROGRAMS = blocks(PAGE)


@pytest.fixture(autouse=True)
def quick():
    """The programs are small: compiling is what takes long."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


LOOPS = [title for title, program in PROGRAMS.items() if "history" in program]


@pytest.mark.parametrize(
    "title",
    [pytest.param(t, marks=[pytest.mark.slow] if t in LOOPS else []) for t in PROGRAMS],
)
def test_program_of_the_page_runs(title):
    program = PROGRAMS[title]
    assert len(program.splitlines()) <= 30
    assert max(map(len, program.splitlines())) <= 105
    namespace = {"__name__": "program"}
    exec(compile(program, f"docs/losses.md: {title}", "exec"), namespace)
    if title in LOOPS:
        history = np.array(namespace["history"])
        assert np.isfinite(history).all()
        assert history[-1] < history[0] / 2


def test_the_page_has_the_three_programs():
    for title, needs in zip(LOOPS, ("optax", "jax.shard_map", "nnx.Module"), strict=True):
        assert needs in PROGRAMS[title]
    assert jax.device_count() == 8  # so that shard_map has something to share out
    assert PAGE.count("```python") == len(PROGRAMS)


def test_program_of_the_readme_runs():
    (program,) = [
        block
        for block in blocks((ROOT / "README.md").read_text(encoding="utf-8")).values()
        if "from ccl_jax import losses" in block
    ]
    x = losses.unit(jax.random.normal(jax.random.key(0), (6, 3, 8)))

    @jax.jit
    def run(x):
        namespace = {"image_emb": x[:4, 0], "text_emb": x[:4, 1], "image_tokens": x[:4]}
        namespace |= {"phrase_emb": x[:, 2], "phrase_image": jnp.array([0, 0, 1, 2, 3, -1])}
        namespace |= {"scale": 10.0, "bias": -10.0}
        exec(compile(program, "README.md", "exec"), namespace)
        return namespace["loss"], namespace["metrics"]

    loss, metrics = run(x)
    assert 0 < loss < 100
    assert {"contrastive", "npc", "xac"} <= metrics.keys()


def named(section):
    """What a section of the page has in backticks."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return set(re.findall(r"`([a-z_]+)`", text))


def test_every_loss_and_option_is_on_the_page():
    assert set(LOSSES) <= named("Which loss")
    for name in LOSSES:
        parameters = inspect.signature(getattr(losses, name)).parameters.values()
        options = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        assert options - named("Options") == set(), name
    mentioned = set(re.findall(r"`([a-z_]+)|losses\.([a-z_]+)\(", PAGE))
    mentioned = {name for names in mentioned for name in names}
    assert set(losses.__all__) - mentioned == {"Metrics"}


@pytest.mark.slow
def test_what_the_page_says_of_check_vma():
    emb = losses.unit(jax.random.normal(jax.random.key(0), (2, 16, 8)))
    weight = jax.random.normal(jax.random.key(1), (8, 8))
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    whole, split = jax.P(), jax.P(None, "data")

    def loss(weight, emb, axis_name=None):
        image = losses.unit(emb[0] @ weight)
        return losses.clip_loss(image, emb[1], scale=5.0, axis_name=axis_name)[0]

    def inside(weight, emb):
        gradient = jax.grad(loss)(weight, emb, "data")
        return gradient, jax.lax.pmean(gradient, "data"), jax.lax.psum(gradient, "data")

    def mapped(function, check_vma):
        options = {"mesh": mesh, "in_specs": (whole, split), "out_specs": whole}
        return jax.jit(jax.shard_map(function, check_vma=check_vma, **options))

    dense = jax.jit(jax.grad(loss))(weight, emb)
    as_it_is, mean, total = mapped(inside, True)(weight, emb)
    for gradient in (as_it_is, mean, total / devices):
        np.testing.assert_allclose(gradient, dense, rtol=1e-4, atol=1e-6)
    as_it_is, mean, total = mapped(inside, False)(weight, emb)
    for gradient in (mean, total / devices):
        np.testing.assert_allclose(gradient, dense, rtol=1e-4, atol=1e-6)
    assert np.linalg.norm(as_it_is - dense) > 0.1 * np.linalg.norm(dense)
    outside = jax.jit(jax.grad(mapped(lambda *x: loss(*x, "data"), False)))
    np.testing.assert_allclose(outside(weight, emb), dense, rtol=1e-4, atol=1e-6)


def test_what_the_page_says_of_precision():
    x = jnp.eye(8)
    precision = jax.default_matmul_precision

    def loss(x, chunk_size):
        return losses.clip_loss(x, x, scale=5.0, chunk_size=chunk_size)[0]

    def loss_with_precision(x, chunk_size):
        with precision("float32"):
            return loss(x, chunk_size)

    def products(function, chunk_size):
        """Matrix products of the gradient, and those of them with a precision."""
        text = str(jax.make_jaxpr(jax.grad(function), static_argnums=1)(x, chunk_size))
        return text.count("dot_general["), text.count("precision=(")

    with precision("float32"):
        total, precise = products(loss, 3)
        assert total == precise > 2
    total, precise = products(loss_with_precision, 3)
    assert total > precise > 0
    total, precise = products(loss_with_precision, None)
    assert total == precise > 2


def test_every_metric_is_on_the_page():
    def metrics():
        x, owner = jnp.eye(4), jnp.arange(4)
        ccl = losses.ccl_loss(x, x, x[:, None], x, owner, scale=1.0, bias=0.0)[1]
        return ccl | losses.pacl_loss(x[:, None], x, scale=1.0)[1]

    keys = jax.eval_shape(metrics)
    reported = {key.split("/")[-1].replace("negative_", "positive_") for key in keys}
    assert {"image_norm", "effective_patches", "xac"} <= reported
    assert reported - named("Diagnostics") == set()


def test_the_losses_import_what_the_base_install_has():
    folder = pathlib.Path(losses.__file__).parent
    found = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module)
    ours = {name for name in found if name.startswith("ccl_jax")}
    assert all(name.startswith("ccl_jax.losses") for name in ours)
    others = {name.split(".")[0] for name in found - ours}
    assert others - set(sys.stdlib_module_names) <= {"jax", "jaxtyping", "numpy"}

"""Building blocks of both towers, in Flax Linen. Parameters are float32."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jaxtyping import Array, Float

from ccl_jax.models.attention import ATTENTION, attend

ACTIVATIONS = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}

# What a block keeps of its forward pass for its backward pass; the rest is computed again.
# "dots" keeps the results of its dense layers, and neither attention's nor elementwise ones.
REMAT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Execution(NamedTuple):
    """How the blocks of a tower run; results are the same but for rounding.

    Attributes:
      remat: a name in `REMAT`, what is kept for the backward pass.
      scan_layers: whether to compile one block and loop over the layers, instead of compiling
        every layer. The parameters stay one tree a layer, and are stacked for the loop: a
        copy of the blocks' kernels in the compute type. Layers that are frozen one by one
        have a backward pass like the others then.
      attention: `implementation` of `attend` in the blocks.
      states: how the states between blocks lie on the devices, in a loop over layers; None
        leaves it to the compiler, which would split them as the weights are, and keep each of
        them on many devices.
    """

    remat: str = "none"
    scan_layers: bool = False
    attention: str = "auto"
    states: Sharding | None = None

    def place(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """The states between two blocks, where they are to lie."""
        return x if self.states is None else jax.lax.with_sharding_constraint(x, self.states)

    def check(self) -> None:
        """Checks the names.

        Raises:
          ValueError: for one that is unknown.
        """
        for field, known in (("remat", tuple(REMAT)), ("attention", ATTENTION)):
            if (value := getattr(self, field)) not in known:
                names = ", ".join(map(repr, known))
                raise ValueError(f"config.model.{field} = {value!r}; use one of {names}")


PLAIN = Execution()


def flat_dot_general(x, kernel, dimension_numbers, **options):
    """`jax.lax.dot_general` of (*batch, d) with (d, e), batch axes merged into one.

    XLA's CPU compiler turns the gradient of a product over two batch axes into code half as
    fast as over one; on TPU and GPU the reshape is free.
    """
    flat = x.reshape(-1, x.shape[-1])
    out = jax.lax.dot_general(flat, kernel, (((1,), (0,)), ((), ())), **options)
    return out.reshape(*x.shape[:-1], kernel.shape[-1])


Dense = functools.partial(nn.Dense, dot_general=flat_dot_general)


class Mlp(nn.Module):
    """Two dense layers around an activation; hidden width `hidden`."""

    hidden: int
    activation: str = "gelu_tanh"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        width = x.shape[-1]
        dense = functools.partial(
            Dense,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            bias_init=nn.initializers.normal(1e-6),
        )
        x = dense(self.hidden, name="up")(x)
        return dense(width, name="down")(ACTIVATIONS[self.activation](x))


class Attention(nn.Module):
    """Multi-head attention of `queries` over `context`; optionally causal.

    Queries of a single row are those of every row: they are projected once.
    """

    width: int
    heads: int
    causal: bool = False
    dtype: Any = jnp.float32
    implementation: str = "auto"

    def setup(self):
        if self.width % self.heads:
            raise ValueError(
                f"width {self.width} does not divide into {self.heads} heads; choose a width "
                "that is a multiple of heads"
            )
        dense = functools.partial(
            Dense, self.width, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform()
        )
        self.query, self.key, self.value, self.out = dense(), dense(), dense(), dense()

    def __call__(
        self, queries: Float[Array, "#b q d"], context: Float[Array, "b k d"]
    ) -> Float[Array, "b q d"]:
        q, k, v = self.query(queries), self.key(context), self.value(context)
        q = jnp.broadcast_to(q, (len(k), *q.shape[1:]))
        head_dim = self.width // self.heads
        split = lambda x: x.reshape(*x.shape[:-1], self.heads, head_dim)  # noqa: E731
        pooled = attend(
            split(q), split(k), split(v), causal=self.causal, implementation=self.implementation
        )
        return self.out(pooled.reshape(q.shape))

    def value_path(self, context: Float[Array, "b k d"]) -> Float[Array, "b k d"]:
        """What a query that attends to one position alone would read there."""
        return self.out(self.value(context))


class EncoderBlock(nn.Module):
    """Pre-norm transformer block."""

    heads: int
    mlp_dim: int
    causal: bool = False
    activation: str = "gelu_tanh"
    norm_eps: float = 1e-6
    dtype: Any = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        norm = functools.partial(nn.LayerNorm, epsilon=self.norm_eps, dtype=self.dtype)
        attention = Attention(
            x.shape[-1], self.heads, self.causal, self.dtype, self.attention, name="attention"
        )
        y = norm(name="norm_attention")(x)
        x = x + attention(y, y)
        mlp = Mlp(self.mlp_dim, self.activation, self.dtype, name="mlp")
        return x + mlp(norm(name="norm_mlp")(x))


def run_blocks(
    tower: nn.Module, x: Float[Array, "b l d"], depth: int, execution: Execution, **fields: Any
) -> Float[Array, "b l d"]:
    """The blocks of a tower one after the other; their parameters are `block_0` and so on.

    Args:
      tower: whose compact method this is called in.
      x: states that enter the first block.
      depth: number of blocks.
      execution: how they run.
      **fields: of `EncoderBlock`.
    """
    execution.check()
    policy = REMAT[execution.remat]
    fields["attention"] = execution.attention
    if execution.scan_layers and depth > 1 and not tower.is_initializing():
        block = EncoderBlock(**fields, parent=None)
        layers = [tower.variables["params"][f"block_{i}"] for i in range(depth)]
        # Kernels as the dense layers use them; norms compute in float32.
        cast = lambda w: w.astype(block.dtype) if w.ndim > 1 else w  # noqa: E731
        stacked = jax.tree.map(lambda *ws: jnp.stack([cast(w) for w in ws]), *layers)

        def body(x, layer):
            return block.apply({"params": layer}, execution.place(x)), None

        if policy is not None:
            body = jax.checkpoint(body, policy=policy, prevent_cse=False)
        return execution.place(jax.lax.scan(body, x, stacked)[0])
    kind = EncoderBlock if policy is None else nn.remat(EncoderBlock, policy=policy)
    for i in range(depth):
        x = kind(**fields, name=f"block_{i}")(x)
    return x


class MapHead(nn.Module):
    """Multi-head attention pooling of SigLIP: a learnt probe attends over the patches.

    Zhai et al., "Scaling Vision Transformers" (2022), section 3.
    """

    heads: int
    mlp_dim: int
    activation: str = "gelu_tanh"
    norm_eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l d"], *, value_tokens: bool = False
    ) -> tuple[Float[Array, "b d"], Float[Array, "b l d"] | None]:
        """Pools, and gives the value-path tokens if asked.

        A value-path token is the head's output with its attention replaced by one-hot on
        that patch: u = out(value(x)), token = u + mlp(norm(u)). Query, key and probe take
        no part in it.

        Returns:
          The pooled embedding and the tokens (None unless `value_tokens`), not normalised.
        """
        width = x.shape[-1]
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, width))
        attention = Attention(width, self.heads, dtype=self.dtype, name="attention")
        norm = nn.LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name="norm")
        mlp = Mlp(self.mlp_dim, self.activation, self.dtype, name="mlp")
        pooled = attention(probe.astype(self.dtype), x)
        pooled = pooled + mlp(norm(pooled))
        if not value_tokens:
            return pooled[:, 0], None
        tokens = attention.value_path(x)
        return pooled[:, 0], tokens + mlp(norm(tokens))


class PatchEmbedder(nn.Module):
    """PACL's residual vision embedder: Linear - ReLU - Linear plus a linear skip.

    Mukhoti et al., "Patch Aligned Contrastive Learning" (2023), section 3.
    """

    embed_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l e"]:
        hidden = nn.relu(Dense(self.embed_dim, dtype=self.dtype, name="up")(x))
        skip = Dense(self.embed_dim, dtype=self.dtype, name="skip")(x)
        return skip + Dense(self.embed_dim, dtype=self.dtype, name="down")(hidden)

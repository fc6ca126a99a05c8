"""The text transformer, SigLIP style (no mask, last position) or CLIP style (causal, EOT)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ccl_jax.models.layers import PLAIN, Execution, run_blocks


class TextTower(nn.Module):
    """Text transformer.

    Attributes:
      vocab_size: number of token ids.
      length: most tokens a text may have; shorter inputs use the first positions.
      width: of the transformer.
      depth: number of blocks.
      heads: attention heads of a block.
      mlp_dim: hidden width of the MLPs; 4 times `width` if None.
      pool: "last" (SigLIP: every position sees every other, padding included, and the last
        is pooled, so the length of the padding matters) or "eot" (CLIP: causal, the first
        end-of-text token is pooled, so that shorter padding gives the same result).
      eot_id: id of the end-of-text token, for "eot".
      embed_dim: width of the embeddings; `width` if None.
      activation: a name in `layers.ACTIVATIONS`.
      norm_eps: epsilon of every layer norm.
      dtype: of the computation; parameters are float32.
    """

    vocab_size: int
    length: int
    width: int
    depth: int
    heads: int
    pool: str = "last"
    eot_id: int = 2
    embed_dim: int | None = None
    activation: str = "gelu_tanh"
    norm_eps: float = 1e-6
    dtype: Any = jnp.float32
    mlp_dim: int | None = None

    @nn.compact
    def __call__(
        self, text: Int[Array, "b t"], *, execution: Execution = PLAIN
    ) -> Float[Array, "b e"]:
        """Encodes token ids to embeddings, not normalised; `execution` says how blocks run.

        Raises:
          ValueError: for texts longer than `length` or an unknown `pool`.
        """
        if self.pool not in ("last", "eot"):
            raise ValueError(f"pool={self.pool!r}: use 'last' (SigLIP) or 'eot' (CLIP)")
        if text.ndim != 2 or text.shape[1] > self.length:
            raise ValueError(
                f"the text tower takes token ids of shape (b, t), t <= {self.length}; got "
                f"{text.shape}"
            )
        x = nn.Embed(
            self.vocab_size,
            self.width,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(0.02),
            name="token_embedding",
        )(text)
        positions = self.param(
            "position_embedding", nn.initializers.normal(0.01), (self.length, self.width)
        )
        x = x + positions[: text.shape[1]].astype(self.dtype)
        x = run_blocks(
            self,
            x,
            self.depth,
            execution,
            heads=self.heads,
            mlp_dim=self.mlp_dim or 4 * self.width,
            causal=self.pool == "eot",
            activation=self.activation,
            norm_eps=self.norm_eps,
            dtype=self.dtype,
        )
        x = nn.LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name="norm_post")(x)
        if self.pool == "last":
            pooled = x[:, -1]
        else:
            end = jnp.argmax(text == self.eot_id, axis=1)
            pooled = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        # SigLIP's head has a bias, CLIP's projection has none.
        return nn.Dense(
            self.embed_dim or self.width,
            use_bias=self.pool == "last",
            dtype=self.dtype,
            name="projection",
        )(pooled)

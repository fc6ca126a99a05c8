"""The vision transformer and its two ways to pool: SigLIP's MAP head, CLIP's class token."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ccl_jax.models.layers import PLAIN, Dense, Execution, MapHead, run_blocks


class ImageFeatures(NamedTuple):
    """What the image tower gives; nothing is normalised.

    Attributes:
      pooled: (b, e) global embedding.
      tokens: (b, l, e) patch tokens in the space of `pooled`, or None if not asked for.
      patches: (b, l, d) patch states after the final norm, without the class token.

    Where patches were left out, l is the number of those that were kept.
    """

    pooled: Float[Array, "b e"]
    tokens: Float[Array, "b l e"] | None
    patches: Float[Array, "b l d"]


class ImageTower(nn.Module):
    """Vision transformer.

    Attributes:
      image_size: side of the square input in pixels; a multiple of `patch_size`, unless
        `patch_stride` is given.
      patch_size: side of a patch in pixels.
      patch_stride: pixels between neighbouring patches; `patch_size` if None. A smaller one
        makes patches overlap. If it is given, `image_size` need not be a multiple of it:
        pixels right and below that fill no patch are not seen, as in a convolution without
        padding (So400m/14 at 384 sees 27 x 27 patches, 378 pixels).
      width: of the transformer.
      depth: number of blocks.
      heads: attention heads of a block.
      mlp_dim: hidden width of the MLPs; 4 times `width` if None.
      pool: "map" (SigLIP: attention pooling, no projection) or "cls" (CLIP: class token,
        norm before the blocks, linear projection to `embed_dim`).
      embed_dim: width of the embeddings; with "map" it must equal `width`.
      activation: a name in `layers.ACTIVATIONS`.
      norm_eps: epsilon of every layer norm.
      dtype: of the computation; parameters are float32.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    pool: str = "map"
    embed_dim: int | None = None
    activation: str = "gelu_tanh"
    norm_eps: float = 1e-6
    dtype: Any = jnp.float32
    patch_stride: int | None = None
    mlp_dim: int | None = None

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b h w 3"],
        *,
        tokens: bool = False,
        kept: Int[Array, "b k"] | None = None,
        execution: Execution = PLAIN,
    ) -> ImageFeatures:
        """Encodes normalised images.

        Args:
          image: normalised pixels.
          tokens: whether to give the patch tokens in embedding space.
          kept: numbers of the patches that enter the blocks, row by row of the grid; all by
            default. The class token always does.
          execution: how the blocks run.

        Raises:
          ValueError: for images of another size or options that do not fit together.
        """
        self._check(image)
        grid = patch_grid(self.image_size, self.patch_size, self.patch_stride)
        mlp_dim = self.mlp_dim or 4 * self.width
        x = _patchify(image.astype(self.dtype), grid, self.patch_size, self.patch_stride)
        if kept is not None:
            x = jnp.take_along_axis(x, kept[:, :, None], axis=1)
        # CLIP's patch embedding has no bias, SigLIP's has one.
        x = Dense(
            self.width,
            use_bias=self.pool == "map",
            dtype=self.dtype,
            kernel_init=nn.initializers.lecun_normal(),
            name="patch_embedding",
        )(x)
        if self.pool == "cls":
            token = self.param("class_token", nn.initializers.normal(0.02), (1, 1, self.width))
            token = jnp.broadcast_to(token.astype(self.dtype), (x.shape[0], 1, self.width))
            x = jnp.concatenate([token, x], axis=1)
        first = int(self.pool == "cls")
        count = grid * grid + first
        scale = 1 / self.width**0.5
        positions = self.param(
            "position_embedding", nn.initializers.normal(scale), (count, self.width)
        )
        positions = positions.astype(self.dtype)
        if kept is not None:
            places = jnp.pad(kept + first, ((0, 0), (first, 0)))
            positions = positions[places]
        x = x + positions
        norm_args = {"epsilon": self.norm_eps, "dtype": self.dtype}
        if self.pool == "cls":
            x = nn.LayerNorm(**norm_args, name="norm_pre")(x)
        x = run_blocks(
            self,
            x,
            self.depth,
            execution,
            heads=self.heads,
            mlp_dim=mlp_dim,
            activation=self.activation,
            norm_eps=self.norm_eps,
            dtype=self.dtype,
        )
        x = nn.LayerNorm(**norm_args, name="norm_post")(x)
        if self.pool == "map":
            head = MapHead(
                self.heads, mlp_dim, self.activation, self.norm_eps, self.dtype, name="head"
            )
            return ImageFeatures(*head(x, value_tokens=tokens), patches=x)
        project = Dense(
            self.embed_dim or self.width, use_bias=False, dtype=self.dtype, name="projection"
        )
        patches = x[:, 1:]
        return ImageFeatures(project(x[:, 0]), project(patches) if tokens else None, patches)

    def _check(self, image) -> None:
        if self.pool not in ("map", "cls"):
            raise ValueError(f"pool={self.pool!r}: use 'map' (SigLIP) or 'cls' (CLIP)")
        stride = self.patch_stride
        if stride is None and self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}; "
                f"patch_stride = {self.patch_size} leaves the remainder out"
            )
        if stride is not None and not 0 < stride <= self.patch_size <= self.image_size:
            raise ValueError(
                f"patch_stride {stride} must lie between 1 and patch_size {self.patch_size}, and "
                f"that within image_size {self.image_size}"
            )
        if image.shape[1:] != (self.image_size, self.image_size, 3):
            raise ValueError(
                f"the image tower takes images of shape (b, {self.image_size}, "
                f"{self.image_size}, 3); got {image.shape}"
            )
        if self.pool == "map" and self.embed_dim not in (None, self.width):
            raise ValueError(
                f"pool='map' has no projection: embed_dim {self.embed_dim} must equal width "
                f"{self.width}, or be left out"
            )


def patch_grid(image_size: int, patch_size: int, patch_stride: int | None = None) -> int:
    """Patches along one side of an image.

    >>> patch_grid(224, 16), patch_grid(224, 16, 4), patch_grid(384, 14, 14)
    (14, 53, 27)
    """
    return (image_size - patch_size) // (patch_stride or patch_size) + 1


def draw_patches(
    key: Key[Array, ""], images: int, patches: int, dropout: float
) -> Int[Array, "images kept"]:
    """Patches that each image keeps: a random choice without repetition, in ascending order.

    (1 - dropout) `patches` are kept, rounded, and one at least. Li et al., "Scaling
    Language-Image Pre-training via Masking" (FLIP, 2023).

    Args:
      key: of the draw.
      images: rows.
      patches: of an image.
      dropout: share of the patches that are left out, in [0, 1).

    >>> draw_patches(jax.random.key(0), 3, 16, 0.75).shape
    (3, 4)
    """
    count = max(1, round((1 - dropout) * patches))
    order = jax.random.uniform(key, (images, patches))
    return jnp.sort(jax.lax.top_k(order, count)[1], axis=1)


def _patchify(
    image: Float[Array, "b h w c"], grid: int, patch: int, stride: int | None
) -> Float[Array, "b l p"]:
    """Patches in row-major order, each flattened as (row, column, channel)."""
    b, c = image.shape[0], image.shape[-1]
    if stride in (None, patch):
        side = grid * patch
        x = image[:, :side, :side].reshape(b, grid, patch, grid, patch, c)
    else:
        index = stride * np.arange(grid)[:, None] + np.arange(patch)
        x = image[:, index][:, :, :, index]
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, grid**2, patch**2 * c)

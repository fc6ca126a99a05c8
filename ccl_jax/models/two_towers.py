"""Image and text tower with the learnt scale and bias: what the objectives train."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax.sharding import Sharding
from jaxtyping import Array, Float, Int, Key, UInt8

from ccl_jax.models.image_tower import ImageTower, draw_patches, patch_grid
from ccl_jax.models.layers import Execution, PatchEmbedder
from ccl_jax.models.text_tower import TextTower


@flax.struct.dataclass
class Embeddings:
    """What a forward pass gives; None for what was not asked for.

    Attributes:
      image: (b, e) global image embeddings, L2-normalised.
      image_tokens: (b, l, e) patch tokens in embedding space, L2-normalised.
      patch_emb: (b, l, e) tokens of PACL's patch embedder, not normalised.
      text: (b, e) caption embeddings, L2-normalised.
      phrase: (p, e) phrase embeddings, L2-normalised.
      scale: multiplier of the similarities, exp(log_scale).
      bias: added to sigmoid logits.
    """

    image: Float[Array, "b e"] | None = None
    image_tokens: Float[Array, "b l e"] | None = None
    patch_emb: Float[Array, "b l e"] | None = None
    text: Float[Array, "b e"] | None = None
    phrase: Float[Array, "p e"] | None = None
    scale: Float[Array, ""] | None = None
    bias: Float[Array, ""] | None = None


class TwoTowers(nn.Module):
    """CLIP/SigLIP-style model.

    Attributes:
      image: fields of `ImageTower`.
      text: fields of `TextTower`.
      patch_embedder: whether to add PACL's patch embedder.
      init_scale: initial multiplier (its logarithm is learnt).
      init_bias: initial bias of the sigmoid losses.
      dtype: of the computation; parameters are float32.
      remat: what blocks keep for their backward pass, a name in `layers.REMAT`.
      scan_layers: whether to compile one block a tower and loop over the layers.
      attention: a name in `attention.ATTENTION`.
      patch_dropout: share of an image's patches that a training step leaves out; the module
        itself leaves out what it is told to (`draw_patches`).
      states: how the states between blocks lie on the devices; see `layers.Execution`.
    """

    image: Mapping[str, Any]
    text: Mapping[str, Any]
    patch_embedder: bool = False
    init_scale: float = 10.0
    init_bias: float = -10.0
    dtype: Any = jnp.float32
    remat: str = "none"
    scan_layers: bool = False
    attention: str = "auto"
    patch_dropout: float = 0.0
    states: Sharding | None = None

    def setup(self):
        self.execution = Execution(self.remat, self.scan_layers, self.attention, self.states)
        self.image_tower = ImageTower(**self.image, dtype=self.dtype)
        self.text_tower = TextTower(**self.text, dtype=self.dtype)
        embed_dim = self.text_tower.embed_dim or self.text_tower.width
        image_dim = self.image_tower.embed_dim or self.image_tower.width
        if image_dim != embed_dim:
            raise ValueError(
                f"the towers embed into {image_dim} (image) and {embed_dim} (text) dimensions; "
                "set embed_dim of one to that of the other"
            )
        if self.patch_embedder:
            self.embedder = PatchEmbedder(embed_dim, dtype=self.dtype)
        start = jnp.log(jnp.float32(self.init_scale))
        self.log_scale = self.param("log_scale", nn.initializers.constant(start), ())
        self.bias = self.param("bias", nn.initializers.constant(self.init_bias), ())

    def __call__(
        self,
        image: Float[Array, "b h w 3"] | None = None,
        text: Int[Array, "b t"] | None = None,
        phrase_text: Int[Array, "p t"] | None = None,
        *,
        image_tokens: bool = False,
        patch_emb: bool = False,
        kept_patches: Int[Array, "b k"] | None = None,
    ) -> Embeddings:
        """Embeds what is given.

        Args:
          image: images normalised as the tower expects.
          text: token ids of captions.
          phrase_text: token ids of phrases; they go through the same text tower.
          image_tokens: whether to give the patch tokens in embedding space.
          patch_emb: whether to give the patch embedder's tokens.
          kept_patches: the patches that are seen, as `draw_patches` gives them; all by
            default. Patch tokens are then those of these patches alone.

        Raises:
          ValueError: if `patch_emb` is asked of a model without a patch embedder.
        """
        out: dict[str, Any] = {"scale": jnp.exp(self.log_scale), "bias": self.bias}
        if image is not None:
            features = self.image_tower(
                image, tokens=image_tokens, kept=kept_patches, execution=self.execution
            )
            out["image"] = _normalize(features.pooled)
            if image_tokens:
                out["image_tokens"] = _normalize(features.tokens)
            if patch_emb:
                if not self.patch_embedder:
                    raise ValueError(
                        "the model has no patch embedder; set config.model.patch_embedder = True"
                    )
                out["patch_emb"] = self.embedder(features.patches)
        if text is not None:
            out["text"] = _normalize(self.text_tower(text, execution=self.execution))
        if phrase_text is not None:
            out["phrase"] = _normalize(self.text_tower(phrase_text, execution=self.execution))
        return Embeddings(**out)

    def draw_patches(self, key: Key[Array, ""], images: int) -> Int[Array, "images k"] | None:
        """`kept_patches` of a training step; None without patch dropout."""
        if not self.patch_dropout:
            return None
        image = self.image
        grid = patch_grid(image["image_size"], image["patch_size"], image.get("patch_stride"))
        return draw_patches(key, images, grid**2, self.patch_dropout)


def normalize_image(
    image: UInt8[Array, "b h w 3"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "b h w 3"]:
    """(image / 255 - mean) / std per channel in float32, on the device.

    >>> import jax.numpy as jnp
    >>> normalize_image(jnp.full((1, 1, 1, 3), 255, jnp.uint8), (0.5,) * 3, (0.5,) * 3).tolist()
    [[[[1.0, 1.0, 1.0]]]]
    """
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    shift = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return image.astype(jnp.float32) * scale - shift


def _normalize(x: Float[Array, "*batch e"]) -> Float[Array, "*batch e"]:
    """To norm 1 over the last axis, in float32 whatever the compute type."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

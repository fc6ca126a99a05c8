"""The arithmetic that a training step needs, and what chips can do: how well a run uses them."""

from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict

from ccl_jax.models.image_tower import patch_grid
from ccl_jax.models.two_towers import TwoTowers
from ccl_jax.training import objective

# Dense bfloat16 operations a second of a device, in 10^12, from its maker's data sheet; the first
# name that `device_kind` contains counts.
PEAKS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "TPU v4": 275,
    "TPU v5 lite": 197,
    "TPU v5e": 197,
    "TPU v5": 459,  # v5p calls itself so
    "TPU v6": 918,
}


def peak(device_kind: str) -> float | None:
    """Nominal dense bfloat16 operations a second of a device, None if it is not in the table.

    Args:
      device_kind: of a `jax.Device`.
    """
    found = [value for name, value in PEAKS.items() if name in device_kind]
    return found[0] * 1e12 if found else None


def tower_flops(tokens: int, width: int, depth: int, mlp_dim: int | None = None, **_: Any) -> int:
    """Operations of the matrix products of a transformer for one sequence, forward.

    Two for each multiply-add: 4 projections and 2 layers of an MLP for every token, and
    tokens^2 scores and weighted sums, of which a causal mask takes none away.
    """
    mlp_dim = mlp_dim or 4 * width
    dense = tokens * (4 * width**2 + 2 * width * mlp_dim)
    return 2 * depth * (dense + 2 * tokens**2 * width)


def loss_flops(
    name: str, images: int, phrases: int, tokens: int, width: int, captions: int | None = None
) -> int:
    """Operations of the matrix products that value and gradients of a loss need.

    For b images, l tokens, n texts, width d, two for each multiply-add. Plain similarities
    take three products, 6 b n d. Pooled ones, per image, the cheaper of

        2 (3 l n d + 2 l^2 d + 2 l^2 n)   through the (l, l) products of the tokens
        2 (6 l n d)                       through the pooled vectors

    Nothing is counted twice, whether a layout computes it twice or not; a loss that is not known
    here counts as 0.

    Args:
      name: of the loss, as in `objective.TERMS`, or "ccl" for its three terms.
      images: b.
      phrases: n of NPC and XAC.
      tokens: l.
      width: d.
      captions: n of the others; one an image if None.
    """
    captions = captions or images

    def pooled(n: int) -> int:
        gram = 3 * tokens * n * width + 2 * tokens**2 * width + 2 * tokens**2 * n
        return 2 * images * min(gram, 6 * tokens * n * width)

    return {
        "clip": 6 * images * captions * width,
        "siglip": 6 * images * captions * width,
        "npc": 6 * images * phrases * width,
        "xac": pooled(phrases),
        "pacl": pooled(captions),
        "ccl": 6 * images * (captions + phrases) * width + pooled(phrases),
    }.get(name, 0)


def model_flops(
    config: ConfigDict, model: TwoTowers, trainable: Collection[str] | None = None
) -> int:
    """Operations of the matrix products of a training step of the global batch.

    Forward and backward of what is trained: three times the forward ones, but twice for the
    patch embedding, whose input has no gradient. Towers with low-rank updates alone have no
    gradient of their kernels (twice), frozen ones no backward pass (once), and stored ones do
    not run. What rematerialisation computes again is not counted, nor what is not a product.

    Args:
      config: of a single run.
      model: its towers.
      trainable: paths of the parameters that are not frozen; all if None.
    """
    wanted = objective.needs(config.objective.to_dict())
    image, text, images = model.image, model.text, config.data.batch_size
    patches = patch_grid(image["image_size"], image["patch_size"], image.get("patch_stride")) ** 2
    if model.patch_dropout:
        patches = max(1, round((1 - model.patch_dropout) * patches))
    embed_dim = text.get("embed_dim") or text["width"]

    passes = _passes("image_tower", config, trainable)
    total = passes * images * _image_flops(image, patches, embed_dim, "image_tokens" in wanted)
    # The patch embedding's input has no gradient.
    patch = 2 * patches * 3 * image["patch_size"] ** 2 * image["width"]
    total += images * patch * {3: 2, 2: 1}.get(passes, passes)
    if "patch_emb" in wanted:
        dense = 2 * image["width"] * embed_dim + embed_dim**2
        total += 3 * 2 * images * patches * dense

    passes = _passes("text_tower", config, trainable)
    phrases = round(images * config.data.phrases_per_image) * ("phrase" in wanted)
    phrase_length = text["length"] if text.get("pool") != "eot" else config.data.phrase_length
    for count, length in ((images, text["length"]), (phrases, phrase_length)):
        one = tower_flops(length, **text) + 2 * text["width"] * embed_dim
        total += passes * count * one
    return total + sum(
        loss_flops(name, images, phrases, patches, embed_dim) for name in config.objective
    )


def _image_flops(image: dict[str, Any], patches: int, embed_dim: int, tokens: bool) -> int:
    """Of the image tower for one image, forward, without the patch embedding."""
    width, classes = image["width"], image.get("pool", "map") == "cls"
    mlp_dim = image.get("mlp_dim") or 4 * width
    total = tower_flops(patches + classes, **image)
    if classes:
        return total + 2 * width * embed_dim * (1 + patches * tokens)
    # What the probe reads, and its MLP; keys and values of every patch; scores and weighted sum.
    total += 2 * (width**2 + 2 * width * mlp_dim + patches * (2 * width**2 + 2 * width))
    return total + tokens * 2 * patches * (width**2 + 2 * width * mlp_dim)


def _passes(tower: str, config: ConfigDict, trainable: Collection[str] | None) -> int:
    """How many times the forward products of a tower a step takes."""
    if trainable is None or any(path.startswith(f"{tower}/") for path in trainable):
        return 3
    if any(path.startswith(f"lora/{tower}/") for path in trainable):
        return 2
    return 0 if config.tower_store.folder else 1

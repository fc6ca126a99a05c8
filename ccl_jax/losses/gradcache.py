"""GradCache: the loss of a batch whose towers do not fit in memory at once.

Gao, Zhang, Han, Callan: "Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup" (RepL4NLP 2021, arXiv 2101.06983).
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Shaped

from ccl_jax.losses import collectives

Params = TypeVar("Params", bound=PyTree)
Inputs = TypeVar("Inputs", bound=PyTree[Shaped[Array, "_ ..."]])
Embeddings = TypeVar("Embeddings", bound=PyTree[Shaped[Array, "_ ..."]])


def micro_batched(
    embed: Callable[[Params, Inputs], Embeddings],
    micro_batches: int,
    *,
    policy: Callable[..., Any] | None = None,
) -> Callable[[Params, Inputs], Embeddings]:
    """`embed`, computed one micro-batch after the other, forward and backward.

    The forward pass keeps the embeddings and nothing of the towers. A loss on them sees the
    whole batch, negatives included; its gradient goes back one micro-batch at a time, whose
    towers are computed anew, and the gradients of the parameters add up. Value and gradient
    are those of `embed` on the whole batch, for a second forward pass of the towers and 1 /
    `micro_batches` of their memory. It is differentiated as any other function::

        towers = micro_batched(embed, 8)

        def loss(params, batch):
            image_emb, text_emb = towers(params, batch)
            return clip_loss(image_emb, text_emb, scale=jnp.exp(params["log_scale"]))

        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch)

    Rows must not see each other inside `embed`: batch normalisation would be over a
    micro-batch. Gradients add up in the types of `params`, so keep those in float32 and cast
    inside `embed`. Under `jit` with a batch split over W devices, let W divide the rows of a
    micro-batch, so that no input has to move.

    Args:
      embed: `(params, inputs) -> embeddings`. The leaves of `inputs` are arrays whose first
        axes are rows, of images, captions or phrases, each leaf with its own number. So are
        those of `embeddings`; each has as many rows as some leaf of `inputs`. Scalars such as
        log_scale go from `params` to the loss directly.
      micro_batches: k; divides the rows of every leaf. Row i k + j is row i of micro-batch j.
        With 1, `embed` is called as it is.
      policy: what is kept instead of computed anew, one of `jax.checkpoint_policies`; nothing
        by default. What it names is kept for the whole batch.

    Returns:
      `(params, inputs) -> embeddings` of the whole batch, rows in the order of `inputs`. For
      dropout, give `inputs` a leaf of `jax.random.split(key, k)`: each micro-batch finds one
      key in it. A key in `params` would be the same for all.

    Raises:
      ValueError: if `micro_batches` is not a positive number; when called, if it does not
        divide the rows of an input, or `embed` returns other numbers of rows than it gets.

    Reference: Gao et al. (2021), section 3.

    >>> towers = micro_batched(lambda w, x: (w * x["image"], x["text"]), 2)
    >>> x = {"image": jnp.arange(4.0), "text": jnp.arange(6.0)}
    >>> towers(2.0, x)[0]
    Array([0., 2., 4., 6.], dtype=float32)
    >>> jax.grad(lambda w: jnp.sum(towers(w, x)[0]) ** 2)(2.0)
    Array(144., dtype=float32, weak_type=True)
    """
    if not isinstance(micro_batches, int) or micro_batches < 1:
        raise ValueError(f"micro_batches={micro_batches!r}: use a positive whole number")

    def embed_all(params: Params, inputs: Inputs) -> Embeddings:
        rows = _rows_of_a_part(inputs, micro_batches)
        if micro_batches == 1:
            return _checked(embed(params, inputs), rows)
        # Without this shard_map would sum gradients over devices once a micro-batch.
        for x in jax.tree.leaves(inputs):
            params = collectives.like(params, x)
        parts = jax.tree.map(lambda x: _split(x, micro_batches), inputs)

        # Parts are cut out in here, so that they are not kept beside the inputs. In a loop
        # prevent_cse would only be in the way.
        @functools.partial(jax.checkpoint, prevent_cse=False, policy=policy)
        def embed_part(j, params, parts):
            part = jax.tree.map(
                lambda x: jax.lax.dynamic_index_in_dim(x, j, 1, keepdims=False), parts
            )
            return _checked(embed(params, part), rows)

        numbers = jnp.arange(micro_batches)
        return jax.tree.map(_join, jax.lax.map(lambda j: embed_part(j, params, parts), numbers))

    return embed_all


def _split(x: Shaped[Array, "b *shape"], parts: int) -> Shaped[Array, "_ parts *shape"]:
    # Strided: of rows that lie on several devices in consecutive shares, every device has as
    # many in each part, and finds them at home. Consecutive parts would lie on few devices.
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:])


def _join(x: Shaped[Array, "parts _ *shape"]) -> Shaped[Array, "b *shape"]:
    return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])


def _rows_of_a_part(inputs, parts):
    leaves = jax.tree_util.tree_leaves_with_path(inputs)
    if not leaves:
        raise ValueError("inputs has no array: give what embed needs of the batch")
    for path, x in leaves:
        shape = getattr(x, "shape", ())
        name = "inputs" + jax.tree_util.keystr(path)
        if not shape:
            raise ValueError(
                f"{name} has no rows to split: give it one for each image or text, or put it "
                "into params"
            )
        if shape[0] == 0 or shape[0] % parts:
            raise ValueError(
                f"{name} has {shape[0]} rows, which {parts} micro-batches cannot share evenly: "
                "pad it, or choose micro_batches among the divisors"
            )
    return {x.shape[0] // parts for _, x in leaves}


def _checked(embeddings, rows):
    for path, x in jax.tree_util.tree_leaves_with_path(embeddings):
        if not x.shape or x.shape[0] not in rows:
            raise ValueError(
                f"embed returned embeddings{jax.tree_util.keystr(path)} of shape {x.shape} for "
                f"inputs of {', '.join(map(str, sorted(rows)))} rows, so that its rows have no "
                "order in the batch: return one row for each row of an input, and scalars not "
                "at all"
            )
    return embeddings

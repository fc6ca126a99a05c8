"""The objective: a weighted sum of terms, each a loss of `ccl_jax.losses`.

A new term is a function here (or in a file of its own) and a line in `TERMS`.
"""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Float

from ccl_jax import losses
from ccl_jax.models.two_towers import Embeddings

Batch = Mapping[str, Array]


def _clip(embeddings: Embeddings, batch: Batch):
    del batch
    return losses.clip_loss(embeddings.image, embeddings.text, scale=embeddings.scale)


def _siglip(embeddings: Embeddings, batch: Batch):
    del batch
    return losses.siglip_loss(
        embeddings.image, embeddings.text, scale=embeddings.scale, bias=embeddings.bias
    )


def _npc(embeddings: Embeddings, batch: Batch, *, duplicates: str = "negative"):
    return losses.npc_loss(
        embeddings.image,
        embeddings.phrase,
        batch["phrase_image"],
        **_concept_arguments(embeddings, batch, duplicates),
    )


def _xac(
    embeddings: Embeddings,
    batch: Batch,
    *,
    sharpness: float = 1.0,
    duplicates: str = "negative",
):
    return losses.xac_loss(
        embeddings.image_tokens,
        embeddings.phrase,
        batch["phrase_image"],
        sharpness=sharpness,
        **_concept_arguments(embeddings, batch, duplicates),
    )


def _concept_arguments(embeddings: Embeddings, batch: Batch, duplicates: str) -> dict[str, Any]:
    return {
        "scale": embeddings.scale,
        "bias": embeddings.bias,
        "phrase_ids": batch["phrase_text"],
        "duplicates": duplicates,
    }


def _pacl(
    embeddings: Embeddings,
    batch: Batch,
    *,
    sharpness: float = 10.0,
    scores: str = "cosine",
    values: str = "raw",
):
    del batch
    return losses.pacl_loss(
        embeddings.patch_emb,
        embeddings.text,
        scale=embeddings.scale,
        sharpness=sharpness,
        scores=scores,
        values=values,
    )


@dataclasses.dataclass(frozen=True)
class Term:
    """A term of the objective.

    Attributes:
      loss: `(embeddings, batch, **options) -> (loss, metrics)`.
      needs: the fields of `Embeddings` that it reads; others are not computed.
    """

    loss: Callable[..., tuple[Float[Array, ""], losses.Metrics]]
    needs: frozenset[str]


TERMS: dict[str, Term] = {
    "clip": Term(_clip, frozenset({"image", "text"})),
    "siglip": Term(_siglip, frozenset({"image", "text"})),
    "npc": Term(_npc, frozenset({"image", "phrase"})),
    "xac": Term(_xac, frozenset({"image_tokens", "phrase"})),
    "pacl": Term(_pacl, frozenset({"patch_emb", "text"})),
}


def needs(objective: Mapping[str, Mapping[str, Any]]) -> frozenset[str]:
    """The fields of `Embeddings` that the objective reads."""
    return frozenset().union(*(TERMS[name].needs for name in objective))


def check(objective: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks the names of terms and their options.

    Raises:
      ValueError: naming the first that is unknown and the nearest that is known.
    """
    if not objective:
        raise ValueError(f"config.objective names no term; choose from {', '.join(TERMS)}")
    for name, entry in objective.items():
        if name not in TERMS:
            close = difflib.get_close_matches(name, TERMS, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"config.objective has no term {name!r}; did you mean {close!r}? "
                f"Known: {', '.join(TERMS)}"
            )
        parameters = inspect.signature(TERMS[name].loss).parameters.values()
        known = ["weight", *(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)]
        for key in entry:
            if key not in known:
                raise ValueError(
                    f"config.objective.{name} has no option {key!r}; known: {', '.join(known)}"
                )


def total_loss(
    objective: Mapping[str, Mapping[str, Any]], embeddings: Embeddings, batch: Batch
) -> tuple[Float[Array, ""], losses.Metrics]:
    """The weighted sum of the terms.

    Returns:
      The sum, and the metrics: each term's value as `loss/NAME` and its own as `NAME/...`.
    """
    total, metrics = 0.0, {}
    for name, entry in objective.items():
        options = dict(entry)
        weight = options.pop("weight", 1.0)
        value, details = TERMS[name].loss(embeddings, batch, **options)
        total = total + weight * value
        metrics[f"loss/{name}"] = value
        metrics |= {f"{name}/{key}": detail for key, detail in details.items()}
    return total, metrics

"""The objective: a weighted sum of terms, each a loss of `ccl_jax.losses`.

A new term is a loss in `ccl_jax.losses` and a line in `TERMS`.
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


@dataclasses.dataclass(frozen=True)
class Term:
    """A term of the objective.

    Attributes:
      loss: a loss of `ccl_jax.losses`.
      needs: the fields of `Embeddings` that it reads; others are not computed.
      arguments: its arrays from embeddings and batch, by position and by name. Phrases are
        those of all devices (`losses.gather_phrases`).
    """

    loss: Callable[..., tuple[Float[Array, ""], losses.Metrics]]
    needs: frozenset[str]
    arguments: Callable[[Embeddings, Batch], tuple[tuple[Array, ...], dict[str, Array]]]

    @property
    def options(self) -> list[str]:
        """What a config may set beside the weight: all that the loss takes but arrays."""
        parameters = inspect.signature(self.loss).parameters.values()
        return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _ARRAYS]


_ARRAYS = frozenset(
    "scale bias text_image where image_where token_where text_ids phrase_ids hard_text_emb "
    "hard_where axis_name".split()
)


def _captions(e: Embeddings, batch: Batch):
    return (e.image, e.text), {"scale": e.scale, "text_ids": batch["text"]}


def _captions_biased(e: Embeddings, batch: Batch):
    arrays, named = _captions(e, batch)
    return arrays, named | {"bias": e.bias}


def _patches(e: Embeddings, batch: Batch):
    return (e.patch_emb, e.text), {"scale": e.scale, "text_ids": batch["text"]}


def _phrases(of_image: str):
    def arguments(e: Embeddings, batch: Batch):
        del batch
        return (getattr(e, of_image), e.phrase), {"scale": e.scale, "bias": e.bias}

    return arguments


TERMS: dict[str, Term] = {
    "clip": Term(losses.clip_loss, frozenset({"image", "text"}), _captions),
    "siglip": Term(losses.siglip_loss, frozenset({"image", "text"}), _captions_biased),
    "npc": Term(losses.npc_loss, frozenset({"image", "phrase"}), _phrases("image")),
    "xac": Term(losses.xac_loss, frozenset({"image_tokens", "phrase"}), _phrases("image_tokens")),
    "pacl": Term(losses.pacl_loss, frozenset({"patch_emb", "text"}), _patches),
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
        known = ["weight", *TERMS[name].options]
        for key in entry:
            if key not in known:
                raise ValueError(
                    f"config.objective.{name} has no option {key!r}; known: {', '.join(known)}"
                )


def total_loss(
    objective: Mapping[str, Mapping[str, Any]],
    embeddings: Embeddings,
    batch: Batch,
    *,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], losses.Metrics]:
    """The weighted sum of the terms.

    Args:
      objective: name of a term -> its weight and options.
      embeddings: with the fields that `needs` names.
      batch: as the pipeline makes it; only its integers are read.
      axis_name: mapped axis over which both are split; the loss is that of the whole batch.

    Returns:
      The sum, and the metrics: each term's value as `loss/NAME` and its own as `NAME/...`.
    """
    total, metrics = 0.0, {}
    if "phrase" in needs(objective):
        # Once for all terms, so that one sum of their gradients goes back.
        phrases = losses.gather_phrases(
            embeddings.phrase,
            batch["phrase_image"],
            phrase_ids=batch["phrase_text"],
            axis_name=axis_name,
        )
        embeddings = embeddings.replace(phrase=phrases)
    for name, entry in objective.items():
        term = TERMS[name]
        # In blocks losses are as fast and far lighter (benchmarks/losses.py).
        options = {"chunk_size": "auto", **entry}
        weight = options.pop("weight", 1.0)
        arrays, named = term.arguments(embeddings, batch)
        value, details = term.loss(*arrays, **named, axis_name=axis_name, **options)
        total = total + weight * value
        metrics[f"loss/{name}"] = value
        metrics |= {f"{name}/{key}": detail for key, detail in details.items()}
    return total, metrics

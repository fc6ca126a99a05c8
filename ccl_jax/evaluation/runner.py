"""Runs a configured set of evaluators over their sources."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from absl import logging

from ccl_jax.data.records import Source
from ccl_jax.evaluation import classification, compositionality, retrieval, segmentation

if TYPE_CHECKING:
    from ccl_jax.evaluation.embeddings import Predictor

EVALUATORS: dict[str, Callable[..., dict[str, float]]] = {
    "retrieval": retrieval.run,
    "zero_shot": classification.run,
    "compositionality": compositionality.run,
    "segmentation": segmentation.run,
}
"""Name in a config -> `run(predictor, source, *, options) -> {metric: percent}`."""


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
    return f"did you mean {close[0]!r}? Known: {', '.join(known)}"


def _parse(name: str, entry: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(evaluator, source, options) of one entry, checked."""
    options = dict(entry)
    for key in ("evaluator", "source"):
        if key not in options:
            raise ValueError(f"evaluators[{name!r}] has no {key!r}; add one")
    kind, source = options.pop("evaluator"), dict(options.pop("source"))
    if kind not in EVALUATORS:
        raise ValueError(
            f"evaluators[{name!r}]: no evaluator is called {kind!r}; "
            + _nearest(str(kind), list(EVALUATORS))
        )
    if "kind" not in source:
        raise ValueError(f"evaluators[{name!r}]: its source has no 'kind'; add one, e.g. 'scenes'")
    valid = [
        parameter.name
        for parameter in inspect.signature(EVALUATORS[kind]).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    unknown = sorted(set(options) - set(valid))
    if unknown:
        raise ValueError(
            f"evaluators[{name!r}]: {kind!r} has no option {', '.join(map(repr, unknown))}; "
            f"its options are {', '.join(valid)}"
        )
    return kind, source, options


def check(evaluators: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks names and options of every entry, without opening a source.

    Raises:
      ValueError: as `evaluate` does for them.
    """
    for name, entry in evaluators.items():
        _parse(name, entry)


def evaluate(
    predictor: Predictor,
    evaluators: Mapping[str, Mapping[str, Any]],
    open_source: Callable[..., Source],
) -> dict[str, float]:
    """Runs every evaluator, all of them checked before the first one starts.

    Args:
      predictor: the model.
      evaluators: {name: {"evaluator": a key of `EVALUATORS`, "source": {"kind": ..., the
        options of that source}, and the options of that evaluator's `run`}}.
      open_source: `open_source(kind, **options)` -> source; called once per distinct source.

    Returns:
      {"name/metric": percent}, in the order of `evaluators`.

    Raises:
      ValueError: an unknown evaluator or option, an entry without evaluator or source, or
        what the evaluators raise.
    """
    plan = {name: _parse(name, entry) for name, entry in evaluators.items()}
    sources: dict[str, Source] = {}
    results: dict[str, float] = {}
    for name, (kind, source_options, options) in plan.items():
        identity = json.dumps(source_options, sort_keys=True, default=repr)
        if identity not in sources:
            sources[identity] = open_source(**source_options)
        logging.info("Evaluating %s (%s) on %s", name, kind, sources[identity].name)
        metrics = EVALUATORS[kind](predictor, sources[identity], **options)
        results.update({f"{name}/{metric}": value for metric, value in metrics.items()})
    return results

"""Runs a configured set of evaluators over their sources."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
from absl import logging

from ccl_jax.data.records import Source
from ccl_jax.evaluation import (
    classification,
    compositionality,
    published,
    retrieval,
    segmentation,
)

if TYPE_CHECKING:
    from ccl_jax.evaluation.embeddings import Predictor


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """What an entry of a config can name.

    Attributes:
      run: `run(predictor, source, *, options) -> {metric: percent}`.
      has_source: whether there is that `source`; one that reads files of its own has none.
      check: `check(*, options)`, with those of `run`, raises a ValueError for what would end a run
        later; None if its options alone say nothing.
    """

    run: Callable[..., dict[str, float]]
    has_source: bool = True
    check: Callable[..., None] | None = None


EVALUATORS: dict[str, Evaluator] = {
    "retrieval": Evaluator(retrieval.run),
    "zero_shot": Evaluator(classification.run),
    "compositionality": Evaluator(compositionality.run),
    "segmentation": Evaluator(segmentation.run),
    "benchmarks": Evaluator(published.run, has_source=False, check=published.check),
}
"""Name in a config -> evaluator."""


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
    return f"did you mean {close[0]!r}? Known: {', '.join(known)}"


@dataclasses.dataclass(frozen=True)
class _Entry:
    """An entry of a config, checked: `source` is None of an evaluator without one."""

    kind: str
    source: dict[str, Any] | None
    options: dict[str, Any]


def _parse(name: str, entry: Mapping[str, Any]) -> _Entry:
    options = dict(entry)
    kind = _taken(options, "evaluator", name)
    if kind not in EVALUATORS:
        raise ValueError(
            f"evaluators[{name!r}]: no evaluator is called {kind!r}; "
            + _nearest(str(kind), list(EVALUATORS))
        )
    source = None
    if EVALUATORS[kind].has_source:
        source = dict(_taken(options, "source", name))
        if "kind" not in source:
            raise ValueError(
                f"evaluators[{name!r}]: its source has no 'kind'; add one, e.g. 'scenes'"
            )
    valid = {
        parameter.name: parameter.default is parameter.empty
        for parameter in inspect.signature(EVALUATORS[kind].run).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    unknown = sorted(set(options) - set(valid))
    if unknown:
        raise ValueError(
            f"evaluators[{name!r}]: {kind!r} has no option {', '.join(map(repr, unknown))}; "
            f"its options are {', '.join(valid)}"
        )
    for option, needed in valid.items():
        if needed and option not in options:
            raise ValueError(f"evaluators[{name!r}] has no {option!r}; add one")
    return _Entry(kind, source, options)


def _taken(options: dict[str, Any], key: str, name: str) -> Any:
    if key not in options:
        raise ValueError(f"evaluators[{name!r}] has no {key!r}; add one")
    return options.pop(key)


def check(evaluators: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks every entry before a run: names, options, and the files of benchmarks.

    No source is opened. Files are looked for by the first process, which is the one that evaluates.

    Raises:
      ValueError: as `evaluate` does for them.
    """
    for name, entry in evaluators.items():
        parsed = _parse(name, entry)
        checked = EVALUATORS[parsed.kind].check
        if checked is None or jax.process_index():
            continue
        try:
            checked(**parsed.options)
        except ValueError as error:
            raise ValueError(f"evaluators[{name!r}]: {error}") from error


def evaluate(
    predictor: Predictor,
    evaluators: Mapping[str, Mapping[str, Any]],
    open_source: Callable[..., Source],
) -> dict[str, float]:
    """Runs every evaluator, all of them checked before the first one starts.

    Args:
      predictor: the model.
      evaluators: {name: {"evaluator": a key of `EVALUATORS`, "source": {"kind": ..., the
        options of that source}, and the options of that evaluator's `run`}}; no "source" where the
        evaluator has none.
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
    for name, entry in plan.items():
        inputs = []
        if entry.source is not None:
            identity = json.dumps(entry.source, sort_keys=True, default=repr)
            if identity not in sources:
                sources[identity] = open_source(**entry.source)
            inputs.append(sources[identity])
        logging.info(
            "Evaluating %s (%s)%s", name, entry.kind, "".join(f" on {s.name}" for s in inputs)
        )
        metrics = EVALUATORS[entry.kind].run(predictor, *inputs, **entry.options)
        results.update({f"{name}/{metric}": value for metric, value in metrics.items()})
    return results

"""The model card of an exported run: what its files say, and nothing else."""

import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

import ccl_jax
from ccl_jax.evaluation.report import markdown_row, markdown_table
from ccl_jax.training import config as configs

_HEADER = """\
---
license: other  # a placeholder: the terms of the data and of the starting weights decide
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags:
{tags}
---"""

_USE = """\
```python
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, {architecture}

folder = "."  # this folder
model = {architecture}.from_pretrained(folder)
processor = AutoImageProcessor.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
images = processor(Image.open("image.jpg"), return_tensors="pt")
texts = tokenizer(["a red cube"], padding="max_length", truncation=True, return_tensors="pt")
logits = model(**images, **texts).logits_per_image
```"""


class Trained(NamedTuple):
    """A run, as far as its card needs it.

    Attributes:
      config: of the single run, settled.
      label: what results call it.
      run: its name in `config.runs`, "" for a workdir of one run.
      step: of the checkpoint.
      results: the content of its `results.json`, None if there is none yet.
      parameters: how many numbers the model has.
    """

    config: ConfigDict
    label: str
    run: str
    step: int
    results: Mapping[str, Any] | None
    parameters: int


def model_card(trained: Trained, hf_config: Mapping[str, Any], notes: Sequence[str]) -> str:
    """The text of `README.md`.

    Folders of absolute paths in the config are left out: they say nothing to others.

    Args:
      trained: the run.
      hf_config: the content of `config.json`.
      notes: what a user has to know.

    Returns:
      Markdown with a YAML header as Hugging Face reads it.
    """
    config, architecture = trained.config, hf_config["architectures"][0]
    sections = [
        _header(config, hf_config["model_type"]),
        f"# {trained.label}",
        _summary(trained, hf_config, architecture),
        "## Use",
        _USE.format(architecture=architecture),
        *(["## Note", "\n".join(f"- {note}" for note in notes)] if notes else []),
        "## Training",
        _objective(config),
        _settings(trained),
        "## Results",
        *_results(trained),
        "## Commands and versions",
        _commands(trained.run),
        "<details><summary>Config of the run</summary>",
        f"```json\n{json.dumps(_public(configs.to_json(config)), indent=2)}\n```",
        "</details>",
    ]
    return "\n\n".join(sections) + "\n"


def _header(config: ConfigDict, family: str) -> str:
    tags = "\n".join(f"- {tag}" for tag in dict.fromkeys(["ccl_jax", family, *config.objective]))
    return _HEADER.format(tags=tags)


def _summary(trained: Trained, hf_config: Mapping[str, Any], architecture: str) -> str:
    vision, text = hf_config["vision_config"], hf_config["text_config"]
    size, patch = vision["image_size"], vision["patch_size"]
    return (
        f"A `{architecture}` of {trained.parameters:,} parameters, trained with ccl_jax: images "
        f"of {size} x {size} pixels in patches of {patch} x {patch}, image tower of width "
        f"{vision['hidden_size']} and depth {vision['num_hidden_layers']}, text tower of width "
        f"{text['hidden_size']} and depth {text['num_hidden_layers']}, {text['vocab_size']:,} "
        f"tokens, texts of up to {text['max_position_embeddings']} tokens."
    )


def _objective(config: ConfigDict) -> str:
    rows = [("term", "weight", "options")]
    for name, entry in config.objective.to_dict().items():
        options = ", ".join(f"{k} = {v!r}" for k, v in entry.items() if k != "weight")
        rows.append((name, f"{entry.get('weight', 1.0)}", options or "defaults"))
    return (
        "The loss is the weighted sum of terms of `ccl_jax.losses`, the rest of their options at "
        "their defaults:\n\n" + _table(rows)
    )


def _settings(trained: Trained) -> str:
    config = trained.config
    data, optimizer = config.data, config.optimizer
    rows = [
        ("setting", "value"),
        ("data", _inline(data.source)),
        ("start", _inline(config.init_from) if config.init_from else "from scratch"),
        ("steps", f"{trained.step:,} of {config.train.steps:,}"),
        ("images in a batch", f"{data.batch_size:,}"),
        ("learning rate, at its highest", f"{optimizer.learning_rate}"),
        ("weight decay", f"{optimizer.weight_decay}"),
        ("computed in", config.model.dtype),
        ("seed", f"{config.seed}"),
    ]
    if frozen := optimizer.get("frozen"):
        rows.append(("not trained", frozen))
    if rank := config.get("lora", {}).get("rank"):
        rows.append(("low-rank updates, added to the kernels", f"rank {rank}"))
    if decay := config.train.get("ema_decay"):
        rows.append(("weights", f"moving average, decay {decay}"))
    return _table(rows)


def _results(trained: Trained) -> list[str]:
    found = trained.results or {}
    if not found.get("metrics"):
        return ["There are none: the run has not been evaluated."]
    entries = trained.config.evaluators.to_dict()
    rows = [("name", "evaluator", "data")]
    for name, entry in entries.items():
        options = {k: v for k, v in entry.items() if k not in ("evaluator", "source")}
        parts = [part for part in (entry.get("source"), options) if part]
        rows.append((name, entry["evaluator"], ", ".join(map(_inline, parts))))
    if found["step"] == trained.step:
        first = f"Measured at step {found['step']:,}, in percent."
    else:
        first = f"In percent, measured at step {found['step']:,}; the weights are of another one."
    return [first, markdown_table({trained.label: found["metrics"]}), "Measured on:", _table(rows)]


def _commands(run: str) -> str:
    tail = f" --run {run}" if run else ""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("flax", "transformers")
    )
    return (
        "```bash\n"
        "python -m ccl_jax.main --config CONFIG --workdir DIR  # the fields of CONFIG are below\n"
        "python -m ccl_jax.tools.evaluate --workdir DIR\n"
        f"python -m ccl_jax.tools.export --workdir DIR --out OUT{tail}\n"
        "```\n\n"
        f"Exported with ccl_jax {ccl_jax.__version__}, jax {jax.__version__}, {versions}."
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    first, *rest = rows
    return "\n".join(map(markdown_row, [first, ["---"] * len(first), *rest]))


def _inline(value: Any) -> str:
    value = value.to_dict() if isinstance(value, ConfigDict) else value
    value = _public(value)
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _public(value: Any) -> Any:
    """The same value with absolute paths shortened to their last part."""
    if isinstance(value, Mapping):
        return {key: _public(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_public(part) for part in value]
    if isinstance(value, str) and (os.path.isabs(value) or value.startswith("~")):
        return os.path.basename(value.rstrip("/"))
    return value

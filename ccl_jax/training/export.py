"""A run as a Hugging Face folder: weights, tokenizer, image processor and model card."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from flax import traverse_util
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from ccl_jax import weights
from ccl_jax.data.image_options import ImageOptions, processor_config
from ccl_jax.data.text import EOT_ID, HF_FILE, Tokenizer, read_json
from ccl_jax.data.text_formats import open_tokenizer
from ccl_jax.data.text_ids import swap_ids
from ccl_jax.training import config as configs
from ccl_jax.training import pretrained
from ccl_jax.training.checkpoints import Checkpoints
from ccl_jax.training.loop import RESULTS
from ccl_jax.training.model_card import Trained, model_card
from ccl_jax.training.sharding import create_mesh
from ccl_jax.training.step import abstract_state, create_trainer

EMBEDDER_FILE = "patch_embedder.safetensors"
PROCESSOR_FILE = "preprocessor_config.json"

_EMBEDDINGS = "text_tower/token_embedding/embedding"
# Cleanings that no tokenizer of transformers does; in what they differ.
_OWN_CLEANING = {
    "openai": "HTML entities are decoded and typographic quotes made straight",
    "openai_ftfy": "HTML entities are decoded and texts repaired by ftfy",
    "big_vision": "an underscore is a space",
}


class Exported(NamedTuple):
    """What was written.

    Attributes:
      architecture: the class of transformers, "SiglipModel" or "CLIPModel".
      step: of the checkpoint.
      notes: what a user of the folder has to know; they are in the model card, too.
    """

    architecture: str
    step: int
    notes: tuple[str, ...]


class _Parts(NamedTuple):
    """A checkpoint as it goes out."""

    model: dict[str, dict[str, Any]]  # fields of the towers
    params: dict[str, np.ndarray]  # by path
    tokenizer: Tokenizer
    step: int


def export(workdir: str, out: str, run: str = "") -> Exported:
    """Writes the latest checkpoint of a run as `transformers` loads it.

    The weights are those that are evaluated: averaged ones where the run has them, low-rank
    updates added to their kernels. `out` then holds `config.json`, `model.safetensors` (float32),
    the tokenizer's files, `preprocessor_config.json` and `README.md`, and for PACL
    `patch_embedder.safetensors`. It is there whole or not at all. `config.init_from` takes it:
    what is read from it and exported again is the same to the bit.

    Where a tokenizer trained here ends texts for a CLIPModel, its end-of-text token changes
    ids with the last one, rows of the embedding table included: transformers takes an
    `eos_token_id` of 2 to mean the greatest id of a text. Embeddings stay the same to the bit.

    Args:
      workdir: of `ccl_jax.main`.
      out: folder to make; an empty one may be there.
      run: a name in `config.runs`, needed if there are several.

    Returns:
      What was written.

    Raises:
      ValueError: saying what to do, if `out` is taken, there is no such run or no checkpoint of
        it, or neither SiglipModel nor CLIPModel can express model or preparation of images.
    """
    out_path = Path(os.path.abspath(out))
    if out_path.exists() and (not out_path.is_dir() or any(out_path.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder; choose another --out")
    config, folder, label = _find_run(workdir, run)
    config, parts = _restore(config, folder)
    parts = _with_another_end(parts)
    _check_end(parts)
    processor = _processor(config, parts)
    results = os.path.join(folder, RESULTS)
    out_path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the move is one step.
    with tempfile.TemporaryDirectory(dir=out_path.parent, prefix=".export-") as scratch:
        made = Path(scratch) / "model"
        params = traverse_util.unflatten_dict(parts.params, sep="/")
        weights.save(made, params, parts.model)
        notes = [*_write_tokenizer(made, parts), *_write_embedder(made, parts)]
        (made / PROCESSOR_FILE).write_text(json.dumps(processor, indent=2), encoding="utf-8")
        hf_config = read_json(str(made / "config.json"))
        bias = parts.params["bias"]
        if hf_config["model_type"] == "clip" and bias != np.float32(config.model.init_bias):
            notes.append(
                f"CLIPModel has no bias: that of the sigmoid losses, {float(bias)}, is left out. "
                "Embeddings and their order do not depend on it."
            )
        trained = Trained(
            config=config,
            label=label,
            run=run,
            step=parts.step,
            results=read_json(results) if os.path.exists(results) else None,
            parameters=sum(x.size for x in parts.params.values()),
        )
        card = model_card(trained, hf_config, notes)
        (made / "README.md").write_text(card, encoding="utf-8")
        made.replace(out_path)
    for note in notes:
        logging.warning("%s: %s", out, note)
    return Exported(hf_config["architectures"][0], parts.step, tuple(notes))


def _find_run(workdir: str, run: str) -> tuple[ConfigDict, str, str]:
    """Config, folder and label of a single run."""
    for name in ("config.json", pretrained.RUN_FILE):
        path = os.path.join(workdir, name)
        if os.path.exists(path):
            break
    else:
        raise ValueError(f"{workdir} holds no run: there is no config.json in it; check --workdir")
    singles = configs.run_configs(configs.from_json(read_json(path)))
    names = ", ".join(filter(None, singles))
    if run in singles:
        folder = os.path.join(workdir, run) if run else workdir
        return singles[run], folder, run or "+".join(singles[run].objective)
    if not names:
        raise ValueError(f"{workdir} holds one run without a name; leave --run {run} out")
    if not run:
        raise ValueError(f"{workdir} holds several runs; choose one by --run: {names}")
    raise ValueError(f"{workdir} holds no run {run!r}; choose one by --run: {names}")


def _restore(config: ConfigDict, folder: str) -> tuple[ConfigDict, _Parts]:
    if not os.path.isdir(os.path.join(folder, "checkpoints")):  # opening would make it
        raise ValueError(f"there is no checkpoint in {folder}; train first, or check --workdir")
    config = pretrained.settle(config, folder)
    tokenizer = open_tokenizer(folder)
    mesh = create_mesh()
    trainer = create_trainer(config, mesh, eot_id=tokenizer.eot_id)
    checkpoints = Checkpoints(folder, read_only=True)
    state = checkpoints.restore(abstract_state(trainer))
    checkpoints.close()
    params = jax.tree.map(np.asarray, trainer.evaluated(state))
    params = traverse_util.flatten_dict(params, sep="/")
    model = {"image": dict(trainer.model.image), "text": dict(trainer.model.text)}
    return config, _Parts(model, params, tokenizer, int(state.step))


def _with_another_end(parts: _Parts) -> _Parts:
    """The same model with another end-of-text id, if CLIPModel does not take this one."""
    text, tokenizer = parts.model["text"], parts.tokenizer
    if text.get("pool") != "eot" or not text["eot_id"] == tokenizer.eot_id == EOT_ID:
        return parts
    last = tokenizer.vocab_size - 1
    if tokenizer.family != "trained" or last <= EOT_ID:
        return parts  # refused with the reason when the config is written
    rows = parts.params[_EMBEDDINGS].copy()
    rows[[EOT_ID, last]] = rows[[last, EOT_ID]]
    return _Parts(
        parts.model | {"text": text | {"eot_id": last}},
        parts.params | {_EMBEDDINGS: rows},
        swap_ids(tokenizer, EOT_ID, last),
        parts.step,
    )


def _check_end(parts: _Parts) -> None:
    text, end = parts.model["text"], parts.tokenizer.eot_id
    if text.get("pool") == "eot" and text["eot_id"] != end:
        raise ValueError(
            f"the model pools at token {text['eot_id']} and its tokenizer ends texts with {end}: "
            "the text embeddings mean nothing; train with the tokenizer of the checkpoint that "
            "the run started from (config.data.tokenizer), or set config.model.text.eot_id"
        )


def _processor(config: ConfigDict, parts: _Parts) -> dict[str, Any]:
    data = config.data
    options = ImageOptions(
        size=parts.model["image"]["image_size"],
        transform=data.eval_transform,
        resample=data.resample,
        crop_share=data.crop_share,
        mean=tuple(data.mean),
        std=tuple(data.std),
    )
    return processor_config(options)


def _write_tokenizer(folder: Path, parts: _Parts) -> list[str]:
    """Writes the tokenizer's files, and its ids into `config.json`; gives notes."""
    tokenizer, text = parts.tokenizer, parts.model["text"]
    tokenizer.save(str(folder))
    values = read_json(str(folder / "config.json"))
    ids = {"bos": tokenizer.start_id, "eos": tokenizer.eot_id, "pad": tokenizer.pad_id}
    # In place of the defaults, which are those of OpenAI's tokenizer whatever the family.
    _change(folder / "config.json", text_config=values["text_config"] | _named(ids))
    if not (folder / HF_FILE).exists():
        return [
            f"transformers cannot read the tokenizer ({tokenizer.family}, a sentencepiece model): "
            "take that of the checkpoint that the run started from, or "
            "`ccl_jax.data.text_formats.open_tokenizer`."
        ]
    # SigLIP sees its padding, so there is no mask over it.
    names = ["input_ids"] if values["model_type"] == "siglip" else ["input_ids", "attention_mask"]
    _change(folder / HF_FILE, model_max_length=text["length"], model_input_names=names)
    notes = []
    padding = read_json(str(folder / HF_FILE)).get("pad_token")
    if text["pool"] == "last" and padding != tokenizer.encoder.token_of(tokenizer.pad_id):
        notes.append(
            f"Texts were padded with token {tokenizer.pad_id}, and transformers pads with "
            f"{padding!r}: the model sees its padding, so pad with {tokenizer.pad_id} yourself."
        )
    if tokenizer.cleaning in _OWN_CLEANING:
        notes.append(
            f"In training, texts were cleaned by `{tokenizer.cleaning}` of "
            f"`ccl_jax.data.text_cleaning` ({_OWN_CLEANING[tokenizer.cleaning]}); the tokenizer "
            "of transformers does not do that."
        )
    return notes


def _write_embedder(folder: Path, parts: _Parts) -> list[str]:
    """Writes PACL's patch embedder beside the weights, if there is one; gives notes."""
    embedder = {
        path.removeprefix("embedder/"): np.asarray(value, np.float32, order="C")
        for path, value in parts.params.items()
        if path.startswith("embedder/")
    }
    if not embedder:
        return []
    save_file(embedder, folder / EMBEDDER_FILE)
    return [
        f"PACL's patch embedder has no place in the classes of transformers. `{EMBEDDER_FILE}` "
        "holds the parameters of `ccl_jax.models.layers.PatchEmbedder`, which takes the patch "
        "states after the image tower's last norm; without it the model gives the global "
        "embeddings alone."
    ]


def _named(ids: Mapping[str, int | None]) -> dict[str, int | None]:
    return {f"{name}_token_id": value for name, value in ids.items()}


def _change(path: Path, **values: Any) -> None:
    changed = read_json(str(path)) | values
    path.write_text(json.dumps(changed, indent=2, sort_keys=True) + "\n", encoding="utf-8")

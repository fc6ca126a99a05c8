"""Starting from trained towers: which fields, tokenizer and parameters a run begins with.

Precedence: what the workdir of a run holds, then `config.init_from`, then scratch.
"""

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ccl_jax import weights
from ccl_jax.data.image_options import PROCESSOR_FILES, read_image_options
from ccl_jax.data.records import BadRecord, Source
from ccl_jax.data.text import SETTINGS_FILE, Tokenizer, read_json
from ccl_jax.data.text_checks import check_checkpoint_tokenizer, check_vocabulary
from ccl_jax.data.text_formats import open_tokenizer
from ccl_jax.models.presets import build_model
from ccl_jax.training import config as configs
from ccl_jax.training import lora
from ccl_jax.training.checkpoints import Checkpoints
from ccl_jax.training.step import Trainer, TrainState, abstract_state, create_trainer

# The config of a single run with everything that its start has settled.
RUN_FILE = "run.json"
_IMAGE_FIELDS = ("eval_transform", "resample", "crop_share", "mean", "std")


def settle(config: ConfigDict, workdir: str) -> ConfigDict:
    """The config with the fields that `config.init_from` settles; nothing is written.

    Sizes of the towers come from the checkpoint, changed by what `config.model.image` and
    `config.model.text` say; `config.data` gets what its image processor says, unless
    `config.data.image_options` is "config". A run that has begun keeps what it began with.

    Args:
      config: of a single run.
      workdir: of that run.

    Raises:
      ValueError: if the checkpoint cannot be read.
    """
    path = os.path.join(workdir, RUN_FILE)
    if os.path.exists(path):
        return configs.from_json(read_json(path))
    if not config.init_from:
        return config
    config = config.copy_and_resolve_references().unlock()
    own_run = _run_of_ours(config.init_from)
    towers = _towers(own_run) if own_run else weights.model_config(config.init_from)
    config.model.preset = None
    for part, fields in towers.items():
        config.model[part] = ConfigDict({**fields, **config.model[part].to_dict()})
    if config.data.image_options == "checkpoint":
        _settle_images(config, own_run)
    if config.model.text.pool == "last":
        # The last position is pooled: a shorter text would be another text.
        config.data.phrase_length = config.model.text.length
    return config.lock()


def write_settled(config: ConfigDict, workdir: str) -> None:
    """Writes what `settle` gave into the run's folder, where it finds it again."""
    path = os.path.join(workdir, RUN_FILE)
    if not os.path.exists(path):
        with open(path + ".partial", "w", encoding="utf-8") as file:
            json.dump(configs.to_json(config), file, indent=2)
        os.replace(path + ".partial", path)


def run_tokenizer(config: ConfigDict, source: Source, workdir: str) -> Tokenizer:
    """The tokenizer of a run: its own, or the first time that of the config or checkpoint.

    Without either it is trained on the captions of `source`. It is saved in the workdir.

    Raises:
      ValueError: if there is none, or it does not fit the model.
    """
    folder = os.path.join(workdir, "tokenizer")
    table = build_model(config.model.to_dict(), eot_id=0).text["vocab_size"]
    if os.path.exists(os.path.join(folder, SETTINGS_FILE)):
        return open_tokenizer(workdir)
    wanted = config.data.tokenizer
    if wanted == "train" or not (wanted or config.init_from):
        limit = config.data.tokenizer_captions
        tokenizer = Tokenizer.train(itertools.islice(_captions(source), limit), table)
    elif wanted:
        tokenizer = open_tokenizer(wanted)
    else:
        tokenizer = _checkpoint_tokenizer(config.init_from)
    check_vocabulary(tokenizer, table)
    text = config.model.text
    if text.get("pool") == "eot" and text.get("eot_id", tokenizer.eot_id) != tokenizer.eot_id:
        raise ValueError(
            f"the tokenizer ends a text with id {tokenizer.eot_id}, the model pools at id "
            f"{text.eot_id}: use the checkpoint's tokenizer (config.data.tokenizer), or set "
            f"config.model.text.eot_id = {tokenizer.eot_id}"
        )
    tokenizer.save(folder)
    return tokenizer


def start(config: ConfigDict, trainer: Trainer, mesh: Mesh) -> TrainState:
    """A fresh state, with the parameters of `config.init_from` in place of its own.

    Those of a run of ours are the ones that it evaluates.

    Raises:
      ValueError: if the checkpoint cannot be read or does not fit the model.
    """
    state = trainer.init()
    if not config.init_from:
        return state
    model = {part: config.model[part].to_dict() for part in ("image", "text")}
    own_run = _run_of_ours(config.init_from)
    if own_run is None:
        loaded = weights.load(config.init_from, model, init_bias=config.model.init_bias).params
    else:
        loaded = weights.adapt(_trained(own_run, config.init_from, mesh), _towers(own_run), model)
    return trainer.start(state, weights.merge(lora.without(state.params), loaded))


def start_weights(config: ConfigDict, workdir: str, mesh: Mesh):
    """The weights that a run began with, as `Trainer.evaluated` gives them.

    Raises:
      ValueError: without `config.init_from`, or if what it names cannot be read any more.
    """
    if not config.init_from:
        raise ValueError(
            f"the run in {workdir} began with random weights (config.init_from is empty): there "
            "is no model to interpolate with; leave --wise_ft out"
        )
    config = settle(config, workdir)
    trainer = create_trainer(config, mesh, eot_id=open_tokenizer(workdir).eot_id)
    return trainer.evaluated(start(config, trainer, mesh))


def _run_of_ours(source: str) -> ConfigDict | None:
    path = os.path.join(source, RUN_FILE)
    if os.path.exists(path):
        return configs.from_json(read_json(path))
    names = sorted(p.parent.name for p in Path(source).glob(f"*/{RUN_FILE}"))
    if names:
        raise ValueError(
            f"{source} holds several runs; give config.init_from the folder of one: "
            + ", ".join(os.path.join(source, name) for name in names)
        )
    return None


def _towers(config: ConfigDict) -> dict:
    model = build_model(config.model.to_dict(), eot_id=0)
    return {"image": dict(model.image), "text": _without_eot(dict(model.text), config)}


def _without_eot(fields, config):
    # Where the tokenizer says which token ends a text, the fields do not.
    return fields if "eot_id" in config.model.text else {**fields, "eot_id": Tokenizer.eot_id}


def _trained(config: ConfigDict, workdir: str, mesh: Mesh):
    trainer = create_trainer(config, mesh, eot_id=open_tokenizer(workdir).eot_id)
    checkpoints = Checkpoints(workdir, read_only=True)
    state = checkpoints.restore(abstract_state(trainer))
    checkpoints.close()
    return jax.tree.map(np.asarray, trainer.evaluated(state))


def _settle_images(config: ConfigDict, own_run: ConfigDict | None) -> None:
    if own_run is not None:
        for name in _IMAGE_FIELDS:
            config.data[name] = own_run.data[name]
        return
    folder = weights.side_files(config.init_from)
    if folder is None or not any((folder / name).exists() for name in PROCESSOR_FILES):
        logging.warning(
            "%s has no image processor's config; config.data says how images are prepared",
            config.init_from,
        )
        return
    options = read_image_options(str(folder))
    config.data.eval_transform = options.transform
    for name in _IMAGE_FIELDS[1:]:
        config.data[name] = getattr(options, name)


def _checkpoint_tokenizer(source: str) -> Tokenizer:
    if _run_of_ours(source):
        return open_tokenizer(source)
    folder = weights.side_files(source)
    if folder is None:
        raise ValueError(
            f"{source} is a file of weights alone: set config.data.tokenizer to the folder or "
            "file of its tokenizer, or to 'train' for one of its own"
        )
    tokenizer = open_tokenizer(str(folder))
    values = read_json(str(folder / "config.json")) if (folder / "config.json").exists() else {}
    if "text_config" in values:
        check_checkpoint_tokenizer(tokenizer, values, source)
    return tokenizer


def _captions(source: Source) -> Iterator[str]:
    for index in range(len(source)):
        try:
            yield from source[index].captions
        except BadRecord as error:
            logging.warning("No caption for the tokenizer from %s", error)

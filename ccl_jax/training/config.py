"""The config: every field with its default, and the checks that need no data."""

import dataclasses
import difflib
import json
from collections.abc import Iterable
from typing import Any

import jax
from ml_collections import ConfigDict

from ccl_jax.data.images import RESAMPLE
from ccl_jax.data.pipeline import PipelineOptions
from ccl_jax.models.presets import build_model
from ccl_jax.training import forward, objective, tower_outputs
from ccl_jax.training.optimizer import create_optimizer, trainable_paths
from ccl_jax.training.step import initial_params

# Parts of a config whose fields are all known beforehand.
_SECTIONS = ("model", "data", "optimizer", "train", "mesh", "sharding", "lora", "tower_store")


def default_config() -> ConfigDict:
    """A config with every field; `configs/*.py` start from it and change what they need."""
    config = ConfigDict()
    config.seed = 0

    # Trained towers to start from: a folder or hub name of a SiglipModel, Siglip2Model, CLIPModel
    # or OpenCLIP model, a big_vision .npz, or the folder of a run of ours. Empty: from scratch.
    # Sizes then come from there, and config.model.image and .text change them.
    config.init_from = ""

    # What is trained: name of a term -> {"weight": float, options of the term}. The names
    # are those of `training.objective.TERMS`.
    config.objective = {"siglip": {"weight": 1.0}}

    # Runs to compare: name -> changes to this config, as {"objective": {...}}, and the order
    # in which to train them. Both empty: this config itself.
    config.runs = ConfigDict()
    config.run_order = ()

    config.model = ConfigDict()
    config.model.preset = "B/16"  # a name in models.presets.PRESETS; unused with init_from
    config.model.image = ConfigDict()  # fields of ImageTower over the preset's
    config.model.text = ConfigDict()  # fields of TextTower over the preset's
    config.model.patch_embedder = False  # PACL's
    config.model.init_scale = 10.0  # multiplier of the similarities at the start
    config.model.init_bias = -10.0  # of the sigmoid losses at the start
    config.model.dtype = "float32"  # of the computation: "float32" or "bfloat16"
    # What a block keeps for its backward pass instead of computing it again: all of it ("none"),
    # what its dense layers gave ("dots"), or nothing but its input ("full").
    config.model.remat = "none"
    # Compile one block of a tower and loop over the layers, instead of compiling every layer. It
    # takes more memory; measure with benchmarks/train_step.py --scan_layers 0,1 --compile_only.
    config.model.scan_layers = False
    # "cudnn" (flash attention), "xla", or "auto" for the former where the GPU has it.
    config.model.attention = "auto"
    # Share of the patches that a training step leaves out, drawn anew for each image (FLIP).
    # Phrases of CCL then attend over the others alone; evaluation sees every patch.
    config.model.patch_dropout = 0.0

    config.data = ConfigDict()
    config.data.source = ConfigDict()  # {"kind": a name in data.sources.SOURCES, options}
    config.data.batch_size = 256  # images, over all devices
    config.data.transform = "random_resized_crop"  # a name in data.images.TRANSFORMS
    config.data.crop_scale = (0.9, 1.0)  # share of the area that a crop keeps
    config.data.eval_transform = "squash"
    config.data.resample = "bicubic"  # a name in data.images.RESAMPLE
    config.data.crop_share = 1.0  # side of a centre crop, as a share of the shortest edge
    # With init_from, how images are prepared: as the "checkpoint" says, or as the "config" does.
    config.data.image_options = "checkpoint"
    config.data.mean = (0.5, 0.5, 0.5)  # per channel, of pixels in [0, 1]
    config.data.std = (0.5, 0.5, 0.5)
    config.data.phrase_length = 16  # tokens of a phrase
    config.data.phrases_per_image = 4.0  # budget of the batch, on average
    config.data.phrase_group = 8  # images that share a budget; divides a device's share
    config.data.max_pixels = 100_000_000  # width x height of the largest image that is decoded
    config.data.concepts = "embedded"  # who finds phrases where there are none, or "spacy"
    config.data.max_bad_share = 0.05  # of the records, before the run stops
    config.data.workers = 0  # threads that prepare images and texts; 0 for one a core
    # Folder or file of a tokenizer, or "train" for one of the captions' own. Empty: that of
    # init_from where there is one, else trained.
    config.data.tokenizer = ""
    config.data.tokenizer_captions = 50_000  # captions that the tokenizer is trained on

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-3  # at the top of the schedule
    config.optimizer.warmup_steps = 500  # linear from 0; then cosine to 0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.1  # none for vectors and scalars (norms, biases, scale)
    # Fine-tuning: (regex, value) pairs over paths of parameters, as in
    # (("text_tower/.*", 0.1), (".*", 1.0)). A regex matches a whole path, the first match
    # counts, and every parameter needs one. Empty: 1 for all, and weight_decay as above.
    config.optimizer.lr_multipliers = ()  # of learning_rate (and so of the decay); 0: frozen
    config.optimizer.weight_decays = ()  # in place of weight_decay; "default" for what it does
    # Learning rate of a layer over that of the next one up, in each tower: 0.75, say.
    config.optimizer.layer_decay = 1.0
    # "image" (LiT), "text" or "towers" (PACL: all but patch embedder, scale and bias).
    config.optimizer.frozen = ""
    config.optimizer.clip_norm = 0.0  # of the whole gradient; 0 for none
    config.optimizer.max_scale = 100.0  # the learnt multiplier is kept in [1, max_scale]

    # Devices along each axis of the mesh; -1 for all that are left. A batch is split over data
    # and fsdp, state over fsdp and tensor. On large slices a side of the torus suits fsdp best
    # (docs/scaling.md).
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.sharding = ConfigDict()
    # (regex, rule) pairs over paths of parameters (training/partition.py). Empty: the largest
    # dimension over fsdp, and Megatron's rules where there is a tensor axis.
    config.sharding.rules = ()

    config.train = ConfigDict()
    config.train.steps = 10_000
    # Images that go through the towers at a time, over all devices, where memory is short; the
    # loss and its gradient are those of the whole batch. 0 for all at once.
    config.train.micro_batch = 0
    # Of a moving average of the weights, evaluated instead of them: 0.999, say; 0 for none.
    config.train.ema_decay = 0.0
    config.train.log_every = 50  # steps
    config.train.eval_every = 0  # steps; 0 for at the end alone
    config.train.checkpoint_every = 1_000  # steps; the last step is always saved
    config.train.checkpoint_minutes = 0.0  # since the last one, looked at with the log; 0: never
    config.train.keep_checkpoints = 2  # the latest
    config.train.keep_checkpoints_every = 0  # those of steps that it divides stay too; 0: none
    # Of the evaluations by eval_every, the checkpoint with the highest value of this metric
    # stays, as in "retrieval/image_to_text_recall@1"; empty for none.
    config.train.best_metric = ""
    # Steps whose loss or gradient is not finite change nothing; so many in a row end the run.
    config.train.max_skipped_steps = 20
    # Folder for compiled programs, so that a run which begins again need not compile; "": none.
    config.train.compilation_cache = "~/.cache/ccl_jax/compiled"
    config.train.profile_steps = ()  # (first, last) for a trace in WORKDIR/profile
    config.train.wandb_project = ""  # of Weights & Biases; empty for none

    # Low-rank updates in place of training the towers themselves (training/lora.py).
    config.lora = ConfigDict()
    config.lora.rank = 0  # 0 for none
    config.lora.alpha = 16.0  # the update is alpha / rank * A B
    config.lora.targets = (r"(image|text)_tower/.*(attention|mlp)/\w+/kernel",)  # whole paths

    # Outputs of frozen towers, computed once, stored, and trained from (training/tower_storing.py).
    # Needs optimizer.frozen = "towers" (PACL) or "image" (LiT) and a transform without chance.
    config.tower_store = ConfigDict()
    config.tower_store.folder = ""  # of the store, which several runs can use; empty for none
    # Of patch tokens: "bfloat16", "float16" or "float32". Global embeddings are float32.
    config.tower_store.dtype = "bfloat16"
    config.tower_store.batch_size = 64  # images or texts in the towers at a time, in storing
    config.tower_store.images_per_shard = 512  # a killed run stores those of one shard again
    config.tower_store.verify = False  # read all of it and compare checksums before training

    # name -> {"evaluator": a name in evaluation.runner.EVALUATORS, "source": {...}, options};
    # "benchmarks" has "data_dir", "names" and "items" in place of a source (docs/benchmarks.md).
    config.evaluators = ConfigDict()

    config.heatmaps = ConfigDict()
    config.heatmaps.source = ConfigDict()  # {"kind": ..., ...}; empty for no heat maps
    config.heatmaps.images = 4
    return config.lock()


def run_configs(config: ConfigDict) -> dict[str, ConfigDict]:
    """The configs of `config.runs` by name; the config itself, as "", if it names none.

    Raises:
      ValueError: if a run changes a field that there is not, or the order names other runs.
    """
    if set(config.run_order) != set(config.runs):
        raise ValueError(
            f"config.run_order = {tuple(config.run_order)} must list the names in config.runs: "
            f"{tuple(config.runs)}"
        )
    if not config.runs:
        return {"": config}
    configs = {}
    for name in config.run_order:
        changes = config.runs[name]
        single = config.copy_and_resolve_references()
        single.unlock()
        single.runs, single.run_order = ConfigDict(), ()
        for key, value in changes.items():
            if key not in single:
                raise ValueError(f"config.runs.{name} changes {key!r}; {nearest(key, single)}")
            if key in ("objective", "evaluators"):
                single[key] = value
            else:
                single.lock()
                single[key].update(value)
                single.unlock()
        configs[name] = single.lock()
    return configs


def check_config(config: ConfigDict, devices: int = 1) -> None:
    """Checks what can be checked before any data is read.

    Args:
      config: of a single run.
      devices: number of devices that share a batch.

    Raises:
      ValueError: naming the first field that does not fit and what to change.
    """
    objective.check(config.objective.to_dict())
    build_model(config.model.to_dict(), eot_id=0)
    batch_size, group = config.data.batch_size, config.data.phrase_group
    if batch_size % (devices * group):
        raise ValueError(
            f"config.data.batch_size = {batch_size} does not divide over {devices} devices in "
            f"groups of config.data.phrase_group = {group} images; choose a multiple of "
            f"{devices * group}, or a smaller group"
        )
    forward.check(config, devices)
    if config.data.resample not in RESAMPLE:
        hint = nearest(config.data.resample, RESAMPLE)
        raise ValueError(f"config.data.resample = {config.data.resample!r}; {hint}")
    if config.data.image_options not in ("checkpoint", "config"):
        raise ValueError(
            f"config.data.image_options = {config.data.image_options!r}; use 'checkpoint' or "
            "'config'"
        )
    if "kind" not in config.data.source:
        raise ValueError("config.data.source names no kind; e.g. {'kind': 'webdataset', ...}")
    if not 0 < config.train.steps:
        raise ValueError(f"config.train.steps = {config.train.steps}; it must be at least 1")
    if config.optimizer.warmup_steps >= config.train.steps:
        raise ValueError(
            f"config.optimizer.warmup_steps = {config.optimizer.warmup_steps} does not end "
            f"before config.train.steps = {config.train.steps}; make it smaller"
        )
    if config.train.best_metric and not config.train.eval_every:
        raise ValueError(
            f"config.train.best_metric = {config.train.best_metric!r} needs evaluations: set "
            "config.train.eval_every"
        )
    if len(config.train.profile_steps) not in (0, 2):
        raise ValueError(
            f"config.train.profile_steps = {tuple(config.train.profile_steps)}; give the first "
            "and the last step, as in (10, 15)"
        )
    if not 0 <= config.train.ema_decay < 1:
        raise ValueError(
            f"config.train.ema_decay = {config.train.ema_decay}; it must be below 1, and 0 for "
            "no average"
        )
    _check_fine_tuning(config)
    if not config.optimizer.max_scale >= 1:
        raise ValueError("config.optimizer.max_scale must be at least 1")
    if config.model.dtype not in ("float32", "bfloat16"):
        raise ValueError(
            f"config.model.dtype = {config.model.dtype!r}; use 'float32' or 'bfloat16'"
        )


def _check_fine_tuning(config: ConfigDict) -> None:
    """Checks the lists over parameters, so that no run of several stops at its start."""
    chosen, stores = config.optimizer, bool(config.tower_store.folder)
    lists = (*chosen.lr_multipliers, *chosen.weight_decays)
    if not (lists or chosen.frozen or chosen.layer_decay != 1 or config.lora.rank or stores):
        return
    model = build_model(config.model.to_dict(), eot_id=0)
    params = jax.eval_shape(lambda: initial_params(config, model))
    create_optimizer(chosen, config.train.steps, params)
    if stores:
        tower_outputs.check(config, trainable_paths(chosen, params))


def pipeline_options(config: ConfigDict) -> PipelineOptions:
    """The options of the training pipeline."""
    data = config.data
    model = build_model(config.model.to_dict(), eot_id=0)
    wanted = objective.needs(config.objective.to_dict())
    shared = {
        field.name: data[field.name]
        for field in dataclasses.fields(PipelineOptions)
        if field.name in data
    }
    shared["crop_scale"] = tuple(data.crop_scale)
    if "phrase" not in wanted:
        shared["phrases_per_image"] = 0.0
    return PipelineOptions(
        **shared,
        image_size=model.image["image_size"],
        text_length=model.text["length"],
        seed=config.seed,
    )


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "config") -> list[str]:
    """Lines `config.a.b: 1 -> 2` for every field in which two config dicts differ."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        name = f"{prefix}.{key}"
        left, right = old.get(key), new.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            lines += differences(left, right, name)
        elif left != right:
            lines.append(f"{name}: {left!r} -> {right!r}")
    return lines


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The config as plain JSON values (tuples become lists)."""
    return json.loads(json.dumps(config.to_dict()))


def from_json(values: dict[str, Any]) -> ConfigDict:
    """A config from what `to_json` gave; fields that it does not know yet have their defaults."""
    config = ConfigDict(values)
    for name, default in default_config().items():
        if name not in config:
            config[name] = default
        elif name in _SECTIONS:
            config[name].update({k: v for k, v in default.items() if k not in config[name]})
    config.run_order = tuple(config.run_order)
    return config.lock()


def nearest(word: str, known: Iterable[str]) -> str:
    """Words for an error message: the nearest known name, and all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"{guess}Known: {', '.join(known)}"

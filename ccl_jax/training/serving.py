"""A model by name, ready to embed: a run of ours, a Hugging Face or OpenCLIP folder, a hub name."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ccl_jax import weights
from ccl_jax.data.image_options import PROCESSOR_FILES, read_image_options
from ccl_jax.data.text import Tokenizer, read_json
from ccl_jax.data.text_checks import check_checkpoint_tokenizer, check_vocabulary
from ccl_jax.data.text_formats import open_tokenizer
from ccl_jax.evaluation import html_report, suite, tables
from ccl_jax.evaluation.cache import EmbeddingCache
from ccl_jax.evaluation.embeddings import Predictor
from ccl_jax.evaluation.models import EvaluatedModel
from ccl_jax.models.presets import build_model
from ccl_jax.training import config as configs
from ccl_jax.training.pretrained import RUN_FILE

# Of PACL's patch embedder beside exported weights; `export.EMBEDDER_FILE`, whose module is slow to
# import.
EMBEDDER_FILE = "patch_embedder.safetensors"

# On a CPU a batch does not run faster for being larger, and the last one is padded.
_CPU_BATCH, _ACCELERATOR_BATCH = 32, 256


def open_model(
    name: str, *, tokenizer: str | None = None, dtype: str = "float32", batch_size: int = 0
) -> Predictor:
    """Opens a model for evaluation.

    Args:
      name: the workdir of a run of `ccl_jax.main` (of one of several: WORKDIR/RUN), or what
        `weights.load` takes: a folder or hub name of a SiglipModel, Siglip2Model, CLIPModel or
        OpenCLIP model, or a big_vision .npz.
      tokenizer: folder or file of a tokenizer in place of the model's own.
      dtype: of the computation, "float32" or "bfloat16"; a run of ours keeps its own.
      batch_size: images or texts in one call; 0 for one that suits the devices.

    Raises:
      ValueError: saying what to do, if there is no such model, it cannot be read, or it has no
        tokenizer.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is float32 or bfloat16; got {dtype!r}")
    if batch_size < 0:
        raise ValueError(f"the batch size cannot be {batch_size}; 0 lets it be chosen")
    if not batch_size:
        each = _CPU_BATCH if jax.default_backend() == "cpu" else _ACCELERATOR_BATCH
        batch_size = each * jax.local_device_count()
    if _is_run(name):
        predictor = _open_run(name)
        predictor.batch_size = batch_size
        if tokenizer:
            predictor.tokenizer = _fitting(open_tokenizer(tokenizer), predictor.model)
        return predictor
    return _open_checkpoint(name, tokenizer, dtype, batch_size)


def open_evaluated(name: str, *, cache_dir: str | None = None, **options) -> EvaluatedModel:
    """Opens a model with its cache of embeddings, named after the last part of `name`.

    Args:
      name: as for `open_model`.
      cache_dir: folder of embeddings of all models; None for none on disk.
      **options: as for `open_model`.
    """
    predictor = open_model(name, **options)
    cache = EmbeddingCache(cache_dir, predictor.fingerprint()) if cache_dir else None
    label = os.path.basename(os.path.normpath(name)) or name
    return EvaluatedModel(
        label, predictor, cache, restride=functools.partial(with_patch_stride, predictor)
    )


def with_patch_stride(predictor: Predictor, stride: int) -> Predictor:
    """The same model with another patch stride: its positions are resampled, nothing else.

    A stride below the patch size makes patches overlap and the grid of tokens finer (PACL's
    trick at test time: 16 to 4 gives 53 x 53 tokens at 224 pixels).

    Raises:
      ValueError: if the stride does not fit the patches.
    """
    model = predictor.model
    old = {"image": dict(model.image), "text": dict(model.text)}
    new = {"image": old["image"] | {"patch_stride": stride}, "text": old["text"]}
    params = weights.adapt(jax.tree.map(np.asarray, predictor.params), old, new)
    mean, std = predictor.normalisation
    options = {k: v for k, v in predictor.image_options.items() if k != "size"}
    return Predictor(
        model.clone(image=new["image"]),
        params,
        predictor.tokenizer,
        **options,
        mean=mean,
        std=std,
        batch_size=predictor.batch_size,
    )


def _is_run(name: str) -> bool:
    if os.path.exists(os.path.join(name, RUN_FILE)):
        return True
    path = os.path.join(name, "config.json")
    return os.path.exists(path) and "objective" in read_json(path)


def _open_run(folder: str) -> Predictor:
    from ccl_jax.training import loop  # slow to import: it brings TensorFlow

    path = os.path.join(folder, RUN_FILE)
    if not os.path.exists(path):
        path = os.path.join(folder, "config.json")
    config = configs.from_json(read_json(path))
    singles = configs.run_configs(config)
    if "" not in singles:
        names = " or ".join(os.path.join(folder, run) for run in singles)
        raise ValueError(f"{folder} holds several runs; give one of them: {names}")
    if not os.path.isdir(os.path.join(folder, "checkpoints")):  # opening would make it
        raise ValueError(f"there is no checkpoint in {folder}; train first, or check the name")
    return loop.load_predictor(singles[""], folder)


def _open_checkpoint(
    name: str, tokenizer_path: str | None, dtype: str, batch_size: int
) -> Predictor:
    loaded = weights.load(name)
    folder = weights.side_files(name)
    tokenizer = _tokenizer(name, folder, tokenizer_path)
    params = dict(loaded.params)
    embedder = _embedder(folder)
    if embedder is not None:
        params["embedder"] = embedder
    model = build_model(
        {**loaded.model, "dtype": jnp.dtype(dtype), "patch_embedder": embedder is not None},
        eot_id=tokenizer.eot_id,
    )
    options = {}
    if folder is not None and any((folder / file).exists() for file in PROCESSOR_FILES):
        found = read_image_options(str(folder))
        options = {
            name: getattr(found, name)
            for name in ("transform", "resample", "crop_share", "mean", "std")
        }
    else:
        logging.warning(
            "%s does not say how images are prepared; they are squashed to the model's square and "
            "scaled to [-1, 1], as SigLIP has it",
            name,
        )
    return Predictor(model, params, _fitting(tokenizer, model), **options, batch_size=batch_size)


def _tokenizer(name: str, folder: Path | None, path: str | None) -> Tokenizer:
    if path:
        return open_tokenizer(path)
    if folder is None:
        raise ValueError(
            f"{name} is a file of weights alone; give the folder or file of its tokenizer "
            "(--tokenizer)"
        )
    try:
        tokenizer = open_tokenizer(str(folder))
    except ValueError as error:
        raise ValueError(f"{error}; or give another place (--tokenizer)") from error
    config = folder / "config.json"
    values = read_json(str(config)) if config.exists() else {}
    if "text_config" in values:
        check_checkpoint_tokenizer(tokenizer, values, name)
    return tokenizer


def _fitting(tokenizer: Tokenizer, model) -> Tokenizer:
    text = model.text
    check_vocabulary(tokenizer, text["vocab_size"])
    if text.get("pool") == "eot" and text["eot_id"] != tokenizer.eot_id:
        raise ValueError(
            f"the tokenizer ends a text with id {tokenizer.eot_id}, the model pools at id "
            f"{text['eot_id']}; give the model's own tokenizer"
        )
    return tokenizer


def _embedder(folder: Path | None):
    """PACL's patch embedder as `export` writes it beside the weights; None if there is none."""
    path = None if folder is None else folder / EMBEDDER_FILE
    if path is None or not path.is_file():
        return None
    try:
        return traverse_util.unflatten_dict(load_file(path), sep="/")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); export the run again") from error


def evaluate(
    names: Sequence[str],
    suites: Sequence[str],
    data_dir: str,
    *,
    output: str | None = None,
    cache_dir: str | None = None,
    tokenizers: Sequence[str] = (),
    **options,
) -> str:
    """Evaluates models by name on suites of benchmarks, and writes the tables.

    Args:
      names: of the models, as for `open_model`; later ones are compared with the first.
      suites: names in `benchmarks.SUITES` and `benchmarks.BENCHMARKS`.
      data_dir: folder with the benchmarks.
      output: folder for JSON, CSV and Markdown; None for none.
      cache_dir: folder of embeddings; None for none on disk.
      tokenizers: none, one for all models, or one for each.
      **options: `dtype` and `batch_size` of `open_model`.

    Returns:
      The results as Markdown.

    Raises:
      ValueError: saying what to do, for a model or suite that is not there, or if no benchmark
        could be run.
    """
    chosen = suite.chosen_benchmarks(suites)
    if len(tokenizers) not in (0, 1, len(names)):
        raise ValueError(f"{len(tokenizers)} tokenizers for {len(names)} models; give one or each")
    each = list(tokenizers) * (len(names) if len(tokenizers) == 1 else 1) or [None] * len(names)
    opened = [
        open_evaluated(name, cache_dir=cache_dir, tokenizer=tokenizer, **options)
        for name, tokenizer in zip(names, each, strict=True)
    ]
    for model, label in zip(opened, _labels(names), strict=True):
        model.name = label
    result = suite.run_suite(opened, chosen, data_dir)
    for label, name in zip(result.models, names, strict=True):
        result.settings[f"model {label}"] = name
    rows = tables.rows_of(result)
    if output:
        tables.write_tables(result, rows, output)
        page = os.path.join(output, "report.html")
        html_report.write_suite_report(page, result, rows, models=opened, workdirs=names)
    return tables.to_markdown(result, rows)


def _labels(names: Sequence[str]) -> list[str]:
    """The last parts of names, longer where they would be the same."""
    parts = [os.path.normpath(name).split(os.sep) for name in names]
    for count in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-count:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{label} ({i})" for i, label in enumerate(labels, 1)]

"""A run from config to report: train, evaluate, draw, write; resume where it stopped."""

import contextlib
import json
import os
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ccl_jax.data.pipeline import TrainingBatches
from ccl_jax.data.position import check_position
from ccl_jax.data.records import Source
from ccl_jax.data.sources import open_source
from ccl_jax.data.text import Tokenizer
from ccl_jax.data.text_formats import open_tokenizer
from ccl_jax.data.tf_import import import_tensorflow
from ccl_jax.evaluation import report, runner
from ccl_jax.evaluation.embeddings import Predictor
from ccl_jax.evaluation.heatmaps import draw_heatmaps
from ccl_jax.training import (
    averaging,
    distributed,
    notes,
    partition,
    pretrained,
    tower_storing,
    workdir_lock,
)
from ccl_jax.training import config as configs
from ccl_jax.training.checkpoints import Checkpoints
from ccl_jax.training.compilation import keep_compiled
from ccl_jax.training.distributed import is_first, say
from ccl_jax.training.fit import Fit
from ccl_jax.training.sharding import batch_devices, create_mesh, local_groups
from ccl_jax.training.step import Trainer, TrainState, abstract_state, create_trainer

RESULTS = "results.json"
REPORT = "report.md"
DATA_POSITION = "data_position.json"
_REPRODUCIBLE = (
    "The same command with the same seed gives the same weights to the bit on the same machine, "
    "devices and versions, interrupted or not. Another number of devices, other hardware or other "
    "versions add up in another order and give weights that are close, not equal; on a GPU some "
    "sums are in no fixed order without XLA_FLAGS=--xla_gpu_deterministic_ops=true. Times and "
    "memory differ from run to run."
)


def run(config: ConfigDict, workdir: str) -> dict[str, dict[str, float]]:
    """Trains and evaluates every run of the config, then writes `workdir/report.md`.

    The same call again continues an interrupted run; of a finished one it repeats nothing.

    Args:
      config: from `configs/*.py`.
      workdir: folder for everything that the run leaves; created if missing.

    Returns:
      {run: {metric: percent}}.

    Raises:
      ValueError: for a config that does not fit, unusable data, or a workdir that was made
        with another config or has another run in it.
      Stopped: if the process was told to stop (SIGTERM); the state is saved then.
    """
    if "://" in workdir:
        raise ValueError(
            f"--workdir {workdir} is no path: mount the bucket (gcsfuse) and give the folder in it"
        )
    import_tensorflow()
    keep_compiled(config.train.compilation_cache)
    singles = configs.run_configs(config)
    folders = {name: os.path.join(workdir, name) if name else workdir for name in singles}
    singles = {name: pretrained.settle(singles[name], folders[name]) for name in singles}
    for single in singles.values():
        mesh = create_mesh(shape=single.mesh.to_dict())
        configs.check_config(single, batch_devices(mesh))
        runner.check(single.evaluators.to_dict())
    with contextlib.ExitStack() as stack:
        with distributed.first_before_others("workdir"):
            _claim(workdir, config)
            if is_first():
                stack.enter_context(workdir_lock.locked(workdir))
        return _run(config, workdir, singles, folders)


def evaluate(
    workdir: str,
    evaluators: dict[str, Any] | None = None,
    wise_ft: Sequence[float] = (),
) -> dict[str, dict[str, float]]:
    """Evaluates the latest checkpoint of every run in a workdir, without training.

    Args:
      workdir: of a run.
      evaluators: entries as in `config.evaluators`; those of the run itself if None.
      wise_ft: shares of the trained weights, the rest being those of `config.init_from`
        (`averaging.interpolate`); one row of results for each. Empty: the trained weights alone.

    Raises:
      ValueError: if the folder holds no run or no checkpoint, or a share is not in [0, 1].
    """
    if not all(0 <= alpha <= 1 for alpha in wise_ft):
        raise ValueError(f"shares of the trained weights are in [0, 1]; got {list(wise_ft)}")
    path = os.path.join(workdir, "config.json")
    if not os.path.exists(path):
        raise ValueError(f"{workdir} holds no run: there is no {path}; check --workdir")
    with open(path, encoding="utf-8") as file:
        config = configs.from_json(json.load(file))
    results = {}
    for name, single in configs.run_configs(config).items():
        predictor = load_predictor(single, os.path.join(workdir, name))
        entries = evaluators or single.evaluators.to_dict()
        label = name or "+".join(single.objective)
        if not wise_ft:
            results[label] = runner.evaluate(predictor, entries, open_source)
            continue
        start = pretrained.start_weights(single, os.path.join(workdir, name), create_mesh())
        trained = predictor.params
        for alpha in wise_ft:
            predictor.params = averaging.interpolate(start, trained, alpha)
            found = runner.evaluate(predictor, entries, open_source)
            results[f"{label}, {alpha:g} trained"] = found
    return results


def load_predictor(config: ConfigDict, workdir: str) -> Predictor:
    """The model of the latest checkpoint of a single run.

    Raises:
      ValueError: if there is no checkpoint or no tokenizer.
    """
    config = pretrained.settle(config, workdir)
    tokenizer = open_tokenizer(workdir)
    mesh = create_mesh()
    trainer = create_trainer(config, mesh, eot_id=tokenizer.eot_id)
    checkpoints = Checkpoints(workdir, read_only=True)
    state = checkpoints.restore(abstract_state(trainer))
    checkpoints.close()
    return _predictor(config, trainer, state, tokenizer)


def _claim(workdir: str, config: ConfigDict) -> None:
    """Writes the config into a new workdir; refuses one made with another config."""
    path = os.path.join(workdir, "config.json")
    values = configs.to_json(config)
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            changed = configs.differences(json.load(file), values)
        if changed:
            raise ValueError(
                f"{workdir} was made with another config; choose another --workdir or undo: "
                + "; ".join(changed)
            )
        return
    os.makedirs(workdir, exist_ok=True)
    _write_json(path, values)


def _run(
    config: ConfigDict, workdir: str, singles: dict[str, ConfigDict], folders: dict[str, str]
) -> dict[str, dict[str, float]]:
    if all(os.path.exists(os.path.join(folder, RESULTS)) for folder in folders.values()):
        say(f"Nothing to do: {workdir} holds a finished run.")
    done = {}
    for name, single in singles.items():
        label = name or "+".join(single.objective)
        done[label] = _train_and_evaluate(single, folders[name], label)
    results = {label: values["metrics"] for label, values in done.items()}
    # Drawing needs all processes: each holds a part of the weights.
    predictors = _heatmap_predictors(config, workdir, list(done))
    if not any(results.values()):
        say("config.evaluators is empty: there is no report; tools.evaluate evaluates the run")
    elif is_first():
        _report(config, workdir, done, predictors)
        print(report.format_table(results))
        print(f"Report: {os.path.join(workdir, REPORT)}")
    distributed.wait("report")
    return results


def _train_and_evaluate(config: ConfigDict, workdir: str, label: str) -> dict[str, Any]:
    results_path = os.path.join(workdir, RESULTS)
    if os.path.exists(results_path):
        with open(results_path, encoding="utf-8") as file:
            return json.load(file)
    with distributed.first_before_others("data"):
        os.makedirs(workdir, exist_ok=True)
        source = open_source(**config.data.source)
        pretrained.write_settled(config, workdir)
        tokenizer = pretrained.run_tokenizer(config, source, workdir)
    mesh = create_mesh(shape=config.mesh.to_dict())
    trainer = create_trainer(config, mesh, eot_id=tokenizer.eot_id)
    state, checkpoints = _begin(config, workdir, label, trainer, mesh)
    predictor = _predictor(config, trainer, state, tokenizer)
    batches = _batches(config, workdir, mesh, trainer, state, source, tokenizer)
    path = os.path.join(workdir, DATA_POSITION)
    if checkpoints.latest is not None:
        check_position(path, batches.position(int(state.step)))
    elif is_first():
        batches.position(0).save(path)

    def evaluate_state(state: TrainState) -> dict[str, float]:
        predictor.params = distributed.local(trainer.evaluated(state))
        found = None
        if is_first():
            found = runner.evaluate(predictor, config.evaluators.to_dict(), open_source)
        return distributed.from_first(found)

    fit = Fit(config, workdir, label, trainer, state, mesh, checkpoints, evaluate_state)
    try:
        fit.run(batches)
    except BaseException:  # Ctrl-C too
        checkpoints.abandon()
        raise
    checkpoints.close()
    done = {
        "metrics": evaluate_state(fit.state),
        "seconds_per_step": fit.seconds_per_step,
        "skipped_records": dict(batches.skipped),
        "dropped_phrases": batches.dropped_phrases,
        "skipped_steps": int(fit.state.skipped[0]),
        "step": int(fit.state.step),
        "notes": notes.read(workdir),
    }
    if is_first():
        _write_json(results_path, done)
    return done


def _begin(
    config: ConfigDict, workdir: str, label: str, trainer: Trainer, mesh: Mesh
) -> tuple[TrainState, Checkpoints]:
    """The state to train from, and where it will be saved."""
    train = config.train
    checkpoints = Checkpoints(
        workdir,
        train.keep_checkpoints,
        keep_every=train.keep_checkpoints_every,
        best=train.best_metric,
    )
    if mesh.size > 1 and checkpoints.latest is None:
        shapes = abstract_state(trainer).params
        placed = partition.place(shapes, config.sharding.rules, mesh)
        say(partition.table(placed, mesh))
    if checkpoints.latest is None:
        return pretrained.start(config, trainer, mesh), checkpoints
    state, damaged = checkpoints.resume(abstract_state(trainer))
    for line in (*damaged, f"continuing at step {int(state.step):,} on {mesh.size} devices"):
        say(f"{label}: {line}")
        notes.add(workdir, line)
    return state, checkpoints


def _batches(
    config: ConfigDict,
    workdir: str,
    mesh: Mesh,
    trainer: Trainer,
    state: TrainState,
    source: Source,
    tokenizer: Tokenizer,
) -> TrainingBatches | tower_storing.StoredBatches:
    """This process's part of the training batches."""
    options = configs.pipeline_options(config)
    own = {
        "groups": local_groups(mesh, options.batch_size, options.phrase_group),
        "skipped_path": os.path.join(workdir, f"skipped_records-{jax.process_index()}.jsonl"),
    }
    if not config.tower_store.folder:
        return TrainingBatches(source, tokenizer, options, **own)
    return tower_storing.stored_batches(
        config, trainer.model, state.params, source, tokenizer, options, **own
    )


def _predictor(config: ConfigDict, trainer: Trainer, state: TrainState, tokenizer) -> Predictor:
    return Predictor(
        trainer.model,
        distributed.local(trainer.evaluated(state)),
        tokenizer,
        transform=config.data.eval_transform,
        resample=config.data.resample,
        crop_share=config.data.crop_share,
        mean=config.data.mean,
        std=config.data.std,
    )


def _heatmap_predictors(
    config: ConfigDict, workdir: str, labels: Sequence[str]
) -> dict[str, Predictor]:
    """The models of the runs, by label, if heat maps are still to be drawn."""
    if not config.heatmaps.source or os.path.exists(os.path.join(workdir, REPORT)):
        return {}
    singles = configs.run_configs(config)
    return {
        label: load_predictor(single, os.path.join(workdir, name))
        for label, (name, single) in zip(labels, singles.items(), strict=True)
    }


def _report(
    config: ConfigDict,
    workdir: str,
    done: dict[str, dict[str, Any]],
    predictors: dict[str, Predictor],
) -> None:
    """Draws the heat maps and writes the report, unless both are there."""
    path = os.path.join(workdir, REPORT)
    if os.path.exists(path):
        return
    figures = []
    if predictors:
        source = open_source(**config.heatmaps.source)
        records = [source[i] for i in range(min(config.heatmaps.images, len(source)))]
        figures.append(os.path.join(workdir, "heatmaps.png"))
        draw_heatmaps(predictors, records, figures[0])
    settings = {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": f"{jax.device_count()} x {jax.devices()[0].device_kind}, "
        f"{os.cpu_count()} CPU cores",
        "jax": jax.__version__,
        "model": config.model.preset,
        "steps": f"{config.train.steps:,}",
        "batch size": config.data.batch_size,
        "seed": config.seed,
    }
    remarks = [_REPRODUCIBLE]
    for label, values in done.items():
        settings[f"median time per step, {label}"] = f"{1000 * values['seconds_per_step']:.0f} ms"
        if values["dropped_phrases"]:
            remarks.append(
                f"{label}: {values['dropped_phrases']:,} phrases found no room in the budget "
                "(`config.data.phrases_per_image`)."
            )
        if values["skipped_steps"]:
            remarks.append(
                f"{label}: {values['skipped_steps']:,} steps changed nothing, as their loss or "
                "gradient was not finite."
            )
        for reason, count in values["skipped_records"].items():
            remarks.append(f"{label}: {count:,} records skipped ({reason}); the log names them.")
        remarks += [f"{label}, {line}" for line in values.get("notes", ())]  # older runs have none
    report.write_report(
        path,
        title="Results",
        rows={label: values["metrics"] for label, values in done.items()},
        settings=settings,
        figures=figures,
        notes=remarks,
    )


def _write_json(path: str, values: Any) -> None:
    """Writes a file that is there whole or not at all."""
    partial = path + ".partial"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(values, file, indent=2)
    os.replace(partial, path)

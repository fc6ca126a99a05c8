"""A run from config to report: train, evaluate, draw, write; resume where it stopped."""

import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from ccl_jax.data.pipeline import TrainingBatches
from ccl_jax.data.sources import open_source
from ccl_jax.data.text_formats import open_tokenizer
from ccl_jax.evaluation import report, runner
from ccl_jax.evaluation.embeddings import Predictor
from ccl_jax.evaluation.heatmaps import draw_heatmaps
from ccl_jax.training import averaging, pretrained
from ccl_jax.training import config as configs
from ccl_jax.training.checkpoints import Checkpoints
from ccl_jax.training.metrics import MetricsWriter, Progress
from ccl_jax.training.sharding import create_mesh, to_devices
from ccl_jax.training.step import Trainer, TrainState, abstract_state, create_trainer

RESULTS = "results.json"


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
        with another config.
    """
    singles = configs.run_configs(config)
    folders = {name: os.path.join(workdir, name) if name else workdir for name in singles}
    singles = {name: pretrained.settle(singles[name], folders[name]) for name in singles}
    for single in singles.values():
        configs.check_config(single, jax.device_count())
        runner.check(single.evaluators.to_dict())
    _claim(workdir, config)
    if all(os.path.exists(os.path.join(folder, RESULTS)) for folder in folders.values()):
        print(f"Nothing to do: {workdir} holds a finished run.", file=sys.stderr)
    done = {}
    for name, single in singles.items():
        label = name or "+".join(single.objective)
        done[label] = _train_and_evaluate(single, folders[name], label)
    results = {label: values["metrics"] for label, values in done.items()}
    _report(config, workdir, done)
    print(report.format_table(results))
    print(f"Report: {os.path.join(workdir, 'report.md')}")
    return results


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
    checkpoints = Checkpoints(workdir)
    state = checkpoints.restore(abstract_state(trainer, mesh))
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


def _train_and_evaluate(config: ConfigDict, workdir: str, label: str) -> dict[str, Any]:
    results_path = os.path.join(workdir, RESULTS)
    if os.path.exists(results_path):
        with open(results_path, encoding="utf-8") as file:
            return json.load(file)
    os.makedirs(workdir, exist_ok=True)
    source = open_source(**config.data.source)
    pretrained.write_settled(config, workdir)
    tokenizer = pretrained.run_tokenizer(config, source, workdir)
    mesh = create_mesh()
    trainer = create_trainer(config, mesh, eot_id=tokenizer.eot_id)
    checkpoints = Checkpoints(workdir, config.train.keep_checkpoints)
    if checkpoints.latest is None:
        state = pretrained.start(config, trainer, mesh)
    else:
        state = checkpoints.restore(abstract_state(trainer, mesh))
        print(f"{label}: continuing at step {int(state.step):,}", file=sys.stderr)
    predictor = _predictor(config, trainer, state, tokenizer)
    batches = TrainingBatches(source, tokenizer, configs.pipeline_options(config))
    state, seconds = _train(config, workdir, label, trainer, state, batches, predictor, checkpoints)
    checkpoints.close()
    predictor.params = trainer.evaluated(state)
    metrics = runner.evaluate(predictor, config.evaluators.to_dict(), open_source)
    done = {
        "metrics": metrics,
        "seconds_per_step": seconds,
        "skipped_records": dict(batches.skipped),
        "dropped_phrases": batches.dropped_phrases,
        "step": int(state.step),
    }
    _write_json(results_path, done)
    return done


def _train(
    config: ConfigDict,
    workdir: str,
    label: str,
    trainer: Trainer,
    state: TrainState,
    batches: TrainingBatches,
    predictor: Predictor,
    checkpoints: Checkpoints,
) -> tuple[TrainState, float]:
    """Trains to the last step; returns the state and the median seconds of a step."""
    train, first = config.train, int(state.step)
    if first >= train.steps:
        return state, 0.0
    writer = MetricsWriter(workdir, first)
    progress = Progress(label, train.steps, first, config.data.batch_size)
    stream = to_devices(batches.batches(first, train.steps), create_mesh())
    rates = []
    for step, batch in enumerate(stream, first + 1):
        state, metrics = trainer.step(state, batch)
        last = step == train.steps
        if step == first + 1 or step % train.log_every == 0 or last:
            values = {name: float(value) for name, value in metrics.items()}
            rate = progress.show(step, values["loss"])
            if step > first + 1:  # the first step compiles
                rates.append(rate)
                values["images_per_second"] = rate
            writer.write(step, values)
        if train.eval_every and step % train.eval_every == 0 and not last:
            predictor.params = trainer.evaluated(state)
            found = runner.evaluate(predictor, config.evaluators.to_dict(), open_source)
            writer.write(step, {f"evaluation/{name}": value for name, value in found.items()})
            progress.resume(step)
        if step % train.checkpoint_every == 0 or last:
            checkpoints.save(state)
            progress.resume(step)
    writer.close()
    return state, config.data.batch_size / statistics.median(rates or [rate])


def _predictor(config: ConfigDict, trainer: Trainer, state: TrainState, tokenizer) -> Predictor:
    return Predictor(
        trainer.model,
        trainer.evaluated(state),
        tokenizer,
        transform=config.data.eval_transform,
        resample=config.data.resample,
        crop_share=config.data.crop_share,
        mean=config.data.mean,
        std=config.data.std,
    )


def _report(config: ConfigDict, workdir: str, done: dict[str, dict[str, Any]]) -> None:
    """Draws the heat maps and writes the report, unless both are there."""
    path = os.path.join(workdir, "report.md")
    if os.path.exists(path):
        return
    figures = []
    if config.heatmaps.source:
        source = open_source(**config.heatmaps.source)
        records = [source[i] for i in range(min(config.heatmaps.images, len(source)))]
        singles = configs.run_configs(config)
        predictors = {
            label: load_predictor(single, os.path.join(workdir, name))
            for label, (name, single) in zip(done, singles.items(), strict=True)
        }
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
    notes = []
    for label, values in done.items():
        settings[f"median time per step, {label}"] = f"{1000 * values['seconds_per_step']:.0f} ms"
        if values["dropped_phrases"]:
            notes.append(
                f"{label}: {values['dropped_phrases']:,} phrases found no room in the budget "
                "(`config.data.phrases_per_image`)."
            )
        for reason, count in values["skipped_records"].items():
            notes.append(f"{label}: {count:,} records skipped ({reason}); the log names them.")
    report.write_report(
        path,
        title="Results",
        rows={label: values["metrics"] for label, values in done.items()},
        settings=settings,
        figures=figures,
        notes=notes,
    )


def _write_json(path: str, values: Any) -> None:
    """Writes a file that is there whole or not at all."""
    partial = path + ".partial"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(values, file, indent=2)
    os.replace(partial, path)

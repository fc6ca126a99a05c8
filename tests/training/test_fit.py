"""The loop over steps with a step that only counts: when it saves, evaluates, stops."""

import dataclasses
import json
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax.training import fit as fits
from ccl_jax.training import notes
from ccl_jax.training.checkpoint_files import complete_steps, read_facts
from ccl_jax.training.checkpoints import DAMAGED, Checkpoints
from ccl_jax.training.fit import Fit
from ccl_jax.training.sharding import create_mesh
from ccl_jax.training.step import TrainState
from ccl_jax.training.stopping import Stopped


@dataclasses.dataclass(frozen=True)
class Position:
    step: int


class Batches:
    """Batches that hold their own step."""

    def batches(self, start, stop):
        for step in range(start, stop):
            yield {"image": np.full((8, 1), step, np.int32)}

    def position(self, step):
        return Position(step)


class CountingStep:
    """Adds up what batches hold; from `bad_from` on its loss is not finite."""

    def __init__(self, bad_from=None, at=None):
        self.compiled, self._bad_from, self._at = 1, bad_from, at or {}

    def _cache_size(self):
        return self.compiled

    def __call__(self, state, batch):
        step = int(state.step) + 1
        if step in self._at:
            self._at[step](self)
        bad = self._bad_from is not None and step >= self._bad_from
        skipped = state.skipped + 1 if bad else state.skipped * jnp.array([1, 0])
        total = state.params["total"] + (0 if bad else batch["image"][0, 0])
        metrics = {
            "loss": jnp.where(bad, jnp.nan, 1.0 / step),
            "skipped_steps": skipped[0],
            "skipped_in_a_row": skipped[1],
        }
        return state.replace(step=state.step + 1, params={"total": total}, skipped=skipped), metrics


class Trainer:
    flops = 10**6

    def __init__(self, step):
        self.step = step


@pytest.fixture
def train(make_config, tmp_path):
    """Trains to the last step, or from where the workdir stands."""

    def run(step=None, evaluate=lambda state: {}, pauses=(0.01,), **changes):
        config = make_config()
        config.train.update({"steps": 12, "checkpoint_every": 4, "log_every": 2} | changes)
        checkpoints = Checkpoints(str(tmp_path), 5, best=config.train.best_metric, pauses=pauses)
        params = {"total": jnp.zeros((), jnp.int32)}
        state = TrainState(jnp.zeros((), jnp.int32), params, (), None, jnp.zeros(2, jnp.int32))
        if checkpoints.latest is not None:
            state = checkpoints.restore(state)
        mesh = create_mesh(jax.devices()[:1])
        trainer = Trainer(step or CountingStep())
        fit = Fit(config, str(tmp_path), "x", trainer, state, mesh, checkpoints, evaluate)
        fit.run(Batches())
        checkpoints.close()
        return fit

    return run


def saved(workdir):
    return complete_steps(os.path.join(workdir, "checkpoints"))


def lines(workdir):
    with open(os.path.join(workdir, "metrics.jsonl")) as file:
        return [json.loads(line) for line in file]


def test_it_logs_and_saves_when_the_config_says(train, tmp_path):
    fit = train()
    assert int(fit.state.params["total"]) == sum(range(12))
    assert saved(tmp_path) == [4, 8, 12]
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 4, 6, 8, 10, 12]
    assert read_facts(str(tmp_path / "checkpoints"), 8)["data_position"] == {"step": 8}
    assert fit.seconds_per_step > 0
    for line in lines(tmp_path)[1:]:
        assert line["seconds/waiting_for_data"] >= 0 and line["seconds/step"] >= 0
        # A million operations a step of 16 images, on one device whose peak is not known.
        expected = 1e6 / 16 * line["images_per_second"] / 1e12
        assert line["tflops_per_device"] == pytest.approx(expected)
        assert line["compilations"] == 1 and "utilisation" not in line


def test_time_lets_it_save_too(train, tmp_path):
    train(checkpoint_every=100, checkpoint_minutes=1e-9)
    assert saved(tmp_path) == [4, 6, 8, 10, 12]  # with each line of the log; five stay


def test_sigterm_saves_and_stops_and_the_run_goes_on(train, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    stop = CountingStep(at={5: lambda _: os.kill(os.getpid(), signal.SIGTERM)})
    with pytest.raises(Stopped, match="saved at step 5"):
        train(stop)
    assert signal.getsignal(signal.SIGTERM) is before
    assert saved(tmp_path) == [4, 5]
    assert int(train().state.params["total"]) == sum(range(12))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 4, 6, 8, 10, 12]


def test_steps_that_are_not_finite_end_the_run_after_a_while(train, tmp_path, caplog):
    with pytest.raises(ValueError, match="10 steps in a row up to step 16.*step 4, which is good"):
        train(CountingStep(bad_from=7), steps=40, checkpoint_every=4, max_skipped_steps=10)
    assert "not finite for 2 steps up to 8" in caplog.text
    # None is written while the weights stand still: the run goes on from before the trouble.
    assert saved(tmp_path) == [4]
    (note,) = notes.read(str(tmp_path))
    assert "10 steps in a row" in note
    assert train(steps=40, checkpoint_every=4).state.step == 40  # without what made it fail


def test_a_damaged_checkpoint_does_not_end_the_way_back(train, tmp_path, capsys):
    def damage(_):
        place = tmp_path / "checkpoints" / "8" / "state"
        while not place.is_dir():  # it is written in the background
            time.sleep(0.01)
        for path in place.rglob("*"):
            if path.is_file():
                path.write_bytes(b"")

    step = CountingStep(bad_from=11, at={13: damage})
    with pytest.raises(ValueError, match="went back to the checkpoint of step 4"):
        train(step, steps=40, checkpoint_every=4, max_skipped_steps=6, pauses=())
    assert saved(tmp_path) == [4]
    assert "step 8 " in notes.read(str(tmp_path))[0] and "step 8 " in capsys.readouterr().err
    assert (tmp_path / DAMAGED / "8").is_dir()


def test_a_few_steps_that_are_not_finite_do_not(train, tmp_path):
    class Recovering(CountingStep):
        def __call__(self, state, batch):
            self._bad_from = 3 if int(state.step) + 1 in (3, 4) else None
            return super().__call__(state, batch)

    fit = train(Recovering(), max_skipped_steps=10)
    assert fit.state.skipped.tolist() == [2, 0]
    assert int(fit.state.params["total"]) == sum(range(12)) - 2 - 3


def test_the_best_checkpoint_by_a_metric_stays(train, tmp_path):
    train(
        evaluate=lambda state: {"recall": -abs(int(state.step) - 3)},
        eval_every=3,
        best_metric="recall",
        checkpoint_every=100,
        keep_checkpoints=1,
    )
    opened = Checkpoints(str(tmp_path), 1, best="recall")
    assert opened.best == 3
    opened.close()
    evaluated = [line["step"] for line in lines(tmp_path) if "evaluation/recall" in line]
    assert evaluated == [3, 6, 9]


def test_use_is_by_the_peak_of_the_device(train, tmp_path, monkeypatch):
    monkeypatch.setattr(fits.flops, "peak", lambda kind: 1e9)
    train()
    for line in lines(tmp_path)[1:]:
        assert line["utilisation"] == pytest.approx(1e3 * line["tflops_per_device"])


def test_metrics_that_cannot_be_written_do_not_end_the_run(train, tmp_path, caplog):
    def remove(_):
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").mkdir()

    train(CountingStep(at={6: remove}))
    assert saved(tmp_path) == [4, 8, 12]
    assert "the metrics of step 8 are not written" in caplog.text


def test_a_second_compilation_is_told_and_counted(train, tmp_path, caplog):
    def again(step):
        step.compiled += 1

    train(CountingStep(at={6: again}))
    assert [line["compilations"] for line in lines(tmp_path)] == [1, 1, 1, 2, 2, 2, 2]
    assert "step 6 compiled the training step again" in caplog.text


def test_a_window_is_profiled(train, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(fits.jax.profiler, "start_trace", lambda path: calls.append(path))
    monkeypatch.setattr(fits.jax.profiler, "stop_trace", lambda: calls.append("stop"))
    train(profile_steps=(3, 5))
    assert calls == [str(tmp_path / "profile"), "stop"]
    calls.clear()


def test_a_profile_ends_with_the_run(train, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(fits.jax.profiler, "start_trace", lambda path: calls.append("start"))
    monkeypatch.setattr(fits.jax.profiler, "stop_trace", lambda: calls.append("stop"))
    train(profile_steps=(11, 99))
    assert calls == ["start", "stop"]
